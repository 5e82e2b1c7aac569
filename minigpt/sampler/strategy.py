"""What every decoding strategy is, and the options that all of them share.

No torch here: the command line reads every strategy's options to answer `--help` at once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from minigpt.sampler import option_values
from minigpt.sampler.events import Event, LanguageModel, Request
from minigpt.sampler.options import option

if TYPE_CHECKING:
    from torch import Tensor

    from minigpt.sampler.engine.random_stream import RandomStream
    from minigpt.sampler.regex.mask import Regex

    Processor = Callable[[Tensor, Tensor], Tensor]  # (logits (B, V), tokens (B, S)) -> logits (B, V)
    # (text so far, name of the step, logits before it (V,), after it (V,)): told, and cannot change anything
    Watch = Callable[[tuple[int, ...], str, Tensor, Tensor], None]

WATERMARK_RATIO = 0.25
WATERMARK_KEY = 15485863  # the millionth prime; use a secret key of your own so that only you can detect it


@dataclass(frozen=True, kw_only=True)
class Strategy(ABC):
    """A way of decoding. Its fields are its options, `decode` is the whole method.

    A new strategy is one new file in this folder, with one subclass of this; the file's name is its name
    on the command line, the first line of its docstring is its help.
    """

    # The command line picks the strategy with the fewest of these that has every flag the user gave.
    implied_by: ClassVar[frozenset[str]] = frozenset()

    repetition_penalty: float = option(
        1.0,
        "tokens already in the text lose this factor; above 1 repeats less (1.1 to 1.3)",
        group="control",
        metavar="F",
    )
    presence_penalty: float = option(
        0.0, "tokens already written lose P, from -2 to 2; those of the prompt do not count",
        group="control", metavar="P",
    )  # fmt: skip
    frequency_penalty: float = option(
        0.0, "tokens already written lose P for each time, from -2 to 2; those of the prompt do not count",
        group="control", metavar="P",
    )  # fmt: skip
    dry_multiplier: float = option(
        0.0, "a token that goes on repeating the text loses M, the more the longer (0.8 is usual); 0 is off",
        group="control", metavar="M",
    )  # fmt: skip
    dry_base: float = option(
        1.75, "with --dry-multiplier: how the loss grows with each token repeated (1.75 unless given)",
        group="control", needs="dry_multiplier", metavar="F",
    )  # fmt: skip
    dry_allowed_length: int = option(
        2, "with --dry-multiplier: runs of less than N tokens may repeat (2 unless given)",
        group="control", needs="dry_multiplier", parse=int, metavar="N",
    )  # fmt: skip
    dry_sequence_breakers: Sequence[int] = option(
        (), "with --dry-multiplier: no repetition goes across a token with this in it (usual: a line's end,"
        ' ":", \'"\' and "*"); repeatable',
        group="control", needs="dry_multiplier", parse=option_values.not_empty, collect=option_values.holding, metavar="TEXT",
    )  # fmt: skip
    no_repeat_ngram_size: int = option(
        0, "no run of N tokens occurs twice (3 is usual); 0 is off", group="control", parse=int, metavar="N"
    )
    bad_words: Sequence[Sequence[int]] = option(
        (),
        "never write this; repeatable",
        group="control",
        parse=str,
        collect=option_values.spellings,
        metavar="TEXT",
    )
    logit_bias: Mapping[int, float] = option(
        {}, "add BIAS to the logit of token ID; repeatable", group="control",
        parse=option_values.bias, collect=lambda pairs, _: dict(pairs), metavar="ID=BIAS",
    )  # fmt: skip
    min_new_tokens: int = option(
        0, "no end token before N new tokens", group="length", parse=int, metavar="N"
    )
    exponential_decay_length_penalty: tuple[int, float] | None = option(
        None, "after START new tokens end tokens gain, by FACTOR more with each token (20,1.1)",
        group="length", parse=option_values.start_and_factor, metavar="START,FACTOR",
    )  # fmt: skip
    regex: Regex | None = option(
        None, 'the new text matches this as a whole, or is cut off by its length (" ?(yes|no)": mind the space)',
        group="control", parse=option_values.pattern, resolve=option_values.regex, metavar="RE",
    )  # fmt: skip
    watermark: bool = option(
        False, "mark the text so that minigpt.detect_watermark knows it", group="control", parse=bool
    )
    watermark_bias: float = option(
        2.0, "with --watermark: how strong the mark is, at a price in quality (2 unless given)",
        group="control", needs="watermark", metavar="BIAS",
    )  # fmt: skip
    watermark_ratio: float = option(
        WATERMARK_RATIO, "with --watermark: the share of tokens that are favoured (0.25 unless given)",
        group="control", needs="watermark", metavar="SHARE",
    )  # fmt: skip
    watermark_key: int = option(
        WATERMARK_KEY, "with --watermark: a number to keep secret; the mark is found with the same one alone",
        group="control", needs="watermark", parse=int, metavar="N",
    )  # fmt: skip
    processors: tuple[Processor, ...] = ()  # your own, between the penalties and the temperature
    watch: Watch | None = None  # told what each step on the logits did, at every token

    def __post_init__(self) -> None:
        from minigpt.sampler.processors import chain  # only here, for torch is slow to import

        # Each processor checks its own range.
        chain(self, Request(prompt=(0,), max_new_tokens=1, end_tokens=frozenset([0])))

    def random_stream(self, request: Request, index: int) -> RandomStream | None:
        """The random numbers that text `index` of a prompt is sampled by; None takes the likeliest tokens."""
        return None

    @abstractmethod
    def decode(self, model: LanguageModel, requests: Sequence[Request]) -> Iterator[Event]:
        """Yields tokens as soon as they are settled, and each prompt's texts when they are finished."""

"""What every decoding strategy is given, what it gives back, and the options that all of them share.

No torch here: the command line reads every strategy's options to answer `--help` at once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

from minigpt.sampler import option_values

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from minigpt.sampler.regex.mask import Regex

    Processor = Callable[[Tensor, Tensor], Tensor]  # (logits (B, V), tokens (B, S)) -> logits (B, V)
    # (text so far, name of the step, logits before it (V,), after it (V,)): told, and cannot change anything
    Watch = Callable[[tuple[int, ...], str, Tensor, Tensor], None]

WATERMARK_RATIO = 0.25
WATERMARK_KEY = 15485863  # the millionth prime; whoever keeps another one secret alone can find his mark
OVERFLOWS = ("error", "truncate", "stop", "slide")


class Cache(Protocol):
    """What a strategy may ask of a model's memory; `minigpt.cache.KVCache` is one."""

    length: int

    def rewind(self, length: int) -> None: ...
    def select(self, rows: Sequence[int]) -> None: ...


class ModelConfig(Protocol):
    """The numbers that a strategy may ask for; `minigpt.GPT2Config` has them."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def n_positions(self) -> int: ...
    @property
    def end_tokens(self) -> frozenset[int]: ...


class LanguageModel(Protocol):
    """All that a strategy may ask of a model; a fake with a table can provide it."""

    @property
    def config(self) -> ModelConfig: ...
    @property
    def device(self) -> torch.device: ...
    def next_logits(self, tokens: Tensor, cache: Any) -> Tensor: ...
    def trunk(self, tokens: Tensor, cache: Any) -> Tensor: ...
    def residuals(self, tokens: Tensor, cache: Any) -> Tensor: ...
    def unembed(self, x: Tensor) -> Tensor: ...
    def new_cache(self, n_max: int, rows: int = 1, pad: Tensor | None = None) -> Cache: ...


class PromptTooLong(ValueError):
    """Prompt and new tokens do not fit the model's window."""


@dataclass(frozen=True)
class Request:
    """One prompt, and when the texts that continue it are done."""

    prompt: tuple[int, ...]
    max_new_tokens: int
    limit_reason: str = "length"  # what running into max_new_tokens is called
    end_tokens: frozenset[int] = frozenset()
    stop: Callable[[Sequence[int]], bool] | None = None  # new tokens -> whether the text is complete
    top_logprobs: int = 0
    dropped: int = 0  # oldest prompt tokens that were left out to make room

    def finish_reason(self, new_tokens: Sequence[int]) -> str | None:
        """Why a text with these new tokens is done, or None."""
        if new_tokens[-1] in self.end_tokens:
            return "eos"
        if self.stop is not None and self.stop(new_tokens):
            return "stop"
        return self.limit_reason if len(new_tokens) >= self.max_new_tokens else None


@dataclass(frozen=True)
class Completion:
    """One finished text: new ids only, an end token included.

    `logprobs` are those of the unprocessed model, in nats; `score` is their sum, or for beam search the
    processed sum after the length penalty. `finish_reason` is "eos", "stop", "length" or "overflow".
    """

    tokens: list[int]
    logprobs: list[float]
    score: float
    finish_reason: str
    top_logprobs: list[list[tuple[int, float]]] = field(default_factory=list)


@dataclass(frozen=True)
class PromptsRead:
    """The model has read all prompts; from here on it writes."""


@dataclass(frozen=True)
class Emitted:
    """A token that is settled: whatever happens later, text `index` of this prompt goes on with it."""

    prompt_index: int
    index: int
    token: int
    logprob: float


@dataclass(frozen=True)
class Finished:
    """All texts of one prompt, best first."""

    prompt_index: int
    completions: list[Completion]


class Branch(NamedTuple):
    """One beam as a step left it: the beam that it grew out of, and one token more."""

    parent: int  # its place among the beams that went on from the step before; at first the prompt alone, 0
    token: int
    score: float  # of the text so far: what it would have, or has, as a finished one
    finish_reason: str  # "" while it goes on


@dataclass(frozen=True)
class Grown:
    """The beams of one prompt have grown by a token; those that go on are numbered in their order here."""

    prompt_index: int
    beams: list[Branch]


Event = PromptsRead | Emitted | Grown | Finished


class Loaded(Protocol):
    """What an option may ask for when its text alone does not say it."""

    @property
    def tokenizer(self) -> Any: ...
    def other_model(self, name_or_dir: str) -> LanguageModel:
        """A second model, which must share the first one's vocabulary."""


REQUIRED = MISSING  # the default of an option without which its strategy makes no sense


def option(
    default: Any,
    help: str,
    *,
    group: str,
    flag: str | None = None,
    parse: Callable[[str], Any] | None = None,
    collect: Callable[[list[Any], Loaded], Any] | None = None,
    resolve: Callable[[Any, Loaded], Any] | None = None,
    needs: str | None = None,
    metavar: str | None = None,
) -> Any:
    """A strategy's option, in Python a field and on the command line a flag.

    Args:
        default: as of a dataclass field; a dict or list is copied for each strategy; REQUIRED for none.
        help: one line for `--help`.
        group: the heading under which `--help` shows it.
        flag: its name on the command line, if not the field's.
        parse: one value from its text; float unless given. bool makes a flag without a value.
        collect: (values, what is loaded) -> the field's value, for a flag that may be repeated.
        resolve: (value, what is loaded) -> the field's value, for one that needs the tokenizer or a model.
        needs: another option, without which this one means nothing.
        metavar: what `--help` calls the value.
    """
    metadata = {
        "help": help,
        "group": group,
        "flag": flag,
        "parse": parse or float,
        "collect": collect,
        "resolve": resolve,
        "needs": needs,
        "metavar": metavar,
    }
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), hash=False, metadata=metadata)
    return field(default=default, metadata=metadata)


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

        chain(self, prompt_length=0, end_tokens=frozenset([0]))  # each processor checks its own range

    @abstractmethod
    def decode(self, model: LanguageModel, requests: Sequence[Request]) -> Iterator[Event]:
        """Yields tokens as soon as they are settled, and each prompt's texts when they are finished."""

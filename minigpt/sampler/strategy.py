"""What every decoding strategy is given, what it gives back, and the options that all of them share.

No torch here: the command line reads every strategy's options to answer `--help` at once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    Processor = Callable[[Tensor, Tensor], Tensor]  # (logits (B, V), tokens (B, S)) -> logits (B, V)
    # (text so far, name of the step, logits before it (V,), after it (V,)): told, and cannot change anything
    Watch = Callable[[tuple[int, ...], str, Tensor, Tensor], None]

OVERFLOWS = ("error", "truncate", "stop")


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


Event = PromptsRead | Emitted | Finished


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
        metavar: what `--help` calls the value.
    """
    metadata = {
        "help": help,
        "group": group,
        "flag": flag,
        "parse": parse or float,
        "collect": collect,
        "resolve": resolve,
        "metavar": metavar,
    }
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), hash=False, metadata=metadata)
    return field(default=default, metadata=metadata)


def _bias(text: str) -> tuple[int, float]:
    token, _, bias = text.partition("=")
    return int(token), float(bias)


def _spellings(words: list[str], loaded: Loaded) -> tuple[tuple[int, ...], ...]:
    # GPT-2 writes a word with its space before it, except where a text or a line begins.
    spelled = (_spelling(start + word, loaded.tokenizer) for word in words for start in ("", " "))
    return tuple(tokens for tokens in spelled if tokens)


def _spelling(text: str, tokenizer: Any) -> tuple[int, ...]:
    try:
        return tuple(tokenizer.encode(text))
    except ValueError:  # what the vocabulary cannot spell is never written
        return ()


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
    no_repeat_ngram_size: int = option(
        0, "no run of N tokens occurs twice (3 is usual); 0 is off", group="control", parse=int, metavar="N"
    )
    bad_words: Sequence[Sequence[int]] = option(
        (), "never write this; repeatable", group="control", parse=str, collect=_spellings, metavar="TEXT"
    )
    logit_bias: Mapping[int, float] = option(
        {}, "add BIAS to the logit of token ID; repeatable", group="control",
        parse=_bias, collect=lambda pairs, _: dict(pairs), metavar="ID=BIAS",
    )  # fmt: skip
    min_new_tokens: int = option(
        0, "no end token before N new tokens", group="length", parse=int, metavar="N"
    )
    processors: tuple[Processor, ...] = ()  # your own, between the penalties and the temperature
    watch: Watch | None = None  # told what each step on the logits did, at every token

    def __post_init__(self) -> None:
        from minigpt.sampler.processors import chain  # only here, for torch is slow to import

        chain(self, prompt_length=0, end_tokens=frozenset([0]))  # each processor checks its own range

    @abstractmethod
    def decode(self, model: LanguageModel, requests: Sequence[Request]) -> Iterator[Event]:
        """Yields tokens as soon as they are settled, and each prompt's texts when they are finished."""

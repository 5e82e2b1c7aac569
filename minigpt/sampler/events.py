"""What a strategy may ask of a model, what it is asked for, and what it reports while it decodes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any, NamedTuple, Protocol

from minigpt.errors import InvalidRequest
from minigpt.json_files import counted
from minigpt.lazy import Tensor, torch
from minigpt.sampler.token_trace import TokenTrace

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
    def hidden_states(self, tokens: Tensor, cache: Any) -> Tensor: ...
    def lens_states(self, tokens: Tensor, cache: Any) -> Tensor: ...
    def unembed(self, x: Tensor) -> Tensor: ...
    def new_cache(self, n_max: int, rows: int = 1, pad: Tensor | None = None) -> Cache: ...


class PromptTooLong(InvalidRequest):
    """Prompt and new tokens do not fit the model's context length."""


def misfit(prompt: str, length: int, n_new: int, window: int, model: str = "the model") -> str:
    """Why a prompt, or a prompt and its new tokens, do not fit a context, as messages begin.

    Args:
        prompt: what the prompt is called.
        length: its tokens.
        n_new: how many new ones are asked for; the last of them is never read.
        window: the context length.
        model: what the model is called whose context it is.

    >>> misfit("the prompt", 3002, 1, 1024)
    "the prompt has 3,002 tokens, the model's context length is 1,024"
    >>> misfit("prompt 2", 1022, 5, 1024)
    "prompt 2 has 1,022 tokens and needs 1,026 positions with 5 new ones (the last is not read), the model's context length is 1,024"
    """
    more = f" and needs {length + n_new - 1:,} positions with {counted(n_new, 'new ones')} (the last is not read)"
    return (
        f"{prompt} has {counted(length, 'tokens')}{'' if length > window else more}, {model}'s context length is"
        f" {window:,}"
    )


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
    id: str | None = None  # a name that takes the prompt's place in the seed
    seed: int | None = None  # takes the place of the strategy's
    trace: bool = False  # whether each token brings along how it came to be chosen
    taken_back: tuple[int, ...] = ()  # the prompt's last tokens, which the new ones must spell first
    # Which ids may follow these new tokens, bool (V,); None is any.
    may_follow: Callable[[Sequence[int]], Tensor | None] | None = None

    @property
    def random_name(self) -> str | tuple[int, ...]:
        """What the seed is mixed with: prompts that share it have the same random numbers."""
        return (*self.prompt, *self.taken_back) if self.id is None else self.id

    def finish_reason(self, new_tokens: Sequence[int]) -> str | None:
        """Why a text with these new tokens is done, or None."""
        if new_tokens[-1] in self.end_tokens:
            return "eos"
        if self.stop is not None and self.stop(new_tokens):
            return "stop"
        return self.limit_reason if len(new_tokens) >= self.max_new_tokens else None


@dataclass(frozen=True, repr=False)
class Completion:
    """One finished completion: `print` shows its text.

    `tokens` are the new ids only, an end token included. `logprobs` are the log-probabilities under the
    unprocessed model, in nats; `score` is their sum; for beam search with two beams or more it is
    the processed sum, after the length penalty. `finish_reason` is "eos", "stop", "length" or "overflow".

    `text` ends before a stop string and leaves out the end token; it is None where only ids were asked for
    (`minigpt.sampler.generate`). Where the end of the prompt was taken back (token healing), `taken_back` has its
    tokens: `tokens` spell it first, and `text` begins behind it. `alternatives` are the prompt's other completions, best first.
    """

    tokens: list[int]
    logprobs: list[float]
    score: float
    finish_reason: str
    top_logprobs: list[list[tuple[int, float]]] = field(default_factory=list)
    text: str | None = None
    alternatives: list[Completion] = field(default_factory=list)
    traces: list[TokenTrace] = field(default_factory=list)  # of each token, if asked for
    taken_back: tuple[int, ...] = ()

    def __str__(self) -> str:
        return repr(self) if self.text is None else self.text

    def __repr__(self) -> str:
        shown = f"tokens={_shortened(self.tokens)}" if self.text is None else f"text={_excerpt(self.text)!r}"
        more = f", alternatives={len(self.alternatives)}" if self.alternatives else ""
        return f"Completion({shown}, score={self.score:.4g}, finish_reason={self.finish_reason!r}{more})"

    def _repr_html_(self) -> str:
        """For notebooks: the texts, and below each why it ended and how likely it is."""
        return "".join(
            f'<pre style="white-space: pre-wrap">{escape(_shortened(one.tokens) if one.text is None else one.text)}</pre>'
            f"<p>{counted(len(one.tokens), 'tokens')}, score {one.score:.4g}, ended by {escape(one.finish_reason)}</p>"
            for one in (self, *self.alternatives)
        )


def _excerpt(text: str) -> str:
    """The beginning of a text; three dots stand for the rest."""
    return text if len(text) <= 60 else f"{text[:57]}..."


def _shortened(tokens: Sequence[int]) -> str:
    """The first ids, and how many there are if they are more than a few."""
    if len(tokens) <= 8:
        return str(list(tokens))
    return f"[{', '.join(map(str, tokens[:6]))}, ... {len(tokens)} in all]"


@dataclass(frozen=True)
class PrefillDone:
    """The model has read all prompts; from here on it writes."""


@dataclass(frozen=True)
class TokenGenerated:
    """A token that is final: whatever happens later, text `index` of this prompt goes on with it."""

    prompt_index: int
    index: int
    token: int
    logprob: float
    trace: TokenTrace | None = None  # if asked for


@dataclass(frozen=True)
class Finished:
    """All texts of one prompt, best first."""

    prompt_index: int
    completions: list[Completion]


@dataclass(frozen=True)
class Failed:
    """One prompt of many cannot be continued, whatever becomes of the others."""

    prompt_index: int
    error: InvalidRequest


class BeamExtension(NamedTuple):
    """One beam as a step left it: the beam that it grew out of, and one token more."""

    parent: int  # its place among the beams that went on from the step before; at first the prompt alone, 0
    token: int
    score: float  # of the text so far: what it would have, or has, as a finished one
    finish_reason: str  # "" while it goes on
    group: int = 0  # of diverse beam search
    trace: TokenTrace | None = None  # if asked for


@dataclass(frozen=True)
class BeamsExtended:
    """The beams of one prompt have grown by a token; those that go on are numbered in their order here."""

    prompt_index: int
    beams: list[BeamExtension]


Event = PrefillDone | TokenGenerated | BeamsExtended | Finished

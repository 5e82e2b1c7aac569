"""Output that matches a regular expression."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from minigpt.lazy import Tensor, torch
from minigpt.options import Kind, option
from minigpt.sampler.option_values import Loaded, pattern
from minigpt.sampler.processors.processor import RULED_OUT, Processor, TextContext
from minigpt.sampler.regex.mask import Regex


def _compiled(text: str, loaded: Loaded) -> Regex:
    return Regex(text, loaded.tokenizer.token_bytes())


def _knows_what_may_follow(value: Any) -> bool:
    return all(hasattr(value, method) for method in ("mask", "matches", "complete"))


REGEX = Kind("a Regex (as Regex(pattern, tokenizer.token_bytes()))", _knows_what_may_follow, pattern, "RE")


@dataclass(frozen=True, kw_only=True)
class RegexOptions:
    """A regular expression that the new text matches, for every strategy."""

    regex: Regex | None = option(
        None, 'the output must fully match this regular expression, unless it is cut off by its length; note the'
        ' leading space in " ?(yes|no)"',
        group="control", kind=REGEX, resolve=_compiled,
    )  # fmt: skip


@dataclass(frozen=True)
class RegexMask:
    """Rules out the tokens after which the text could not match a regular expression any more.

    What must match is what follows the prompt. An end token may be written exactly where the text matches.
    Where it matches and nothing can follow, only `stop=regex.complete` ends it without an end token. A text
    for which max_new_tokens comes first is cut off: it is the beginning of a match.
    """

    regex: Regex
    prompt_length: int
    end_tokens: frozenset[int]

    options: ClassVar[type] = RegexOptions

    @classmethod
    def for_text(cls, options: RegexOptions, text: TextContext) -> Iterator[Processor]:
        if options.regex:
            yield cls(options.regex, text.prompt_length, text.end_tokens)

    def __call__(self, logits: Tensor, tokens: Tensor) -> Tensor:
        texts = tokens[:, self.prompt_length :].tolist()
        allowed = torch.stack([self.regex.mask(text) for text in texts])  # (B, ids that spell something)
        # A model may have more rows than its tokenizer has tokens.
        allowed = torch.nn.functional.pad(allowed, (0, logits.size(-1) - allowed.size(-1)))
        ends = [token for token in self.end_tokens if token < logits.size(-1)]
        allowed[:, ends] = torch.tensor([[self.regex.matches(text)] for text in texts])
        return logits.masked_fill(~allowed.to(logits.device), RULED_OUT)

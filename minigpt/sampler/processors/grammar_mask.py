"""Output that a grammar allows: a regular expression, a JSON schema or a Lark grammar."""

from __future__ import annotations

from argparse import ArgumentTypeError
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from minigpt.errors import InvalidRequest
from minigpt.lazy import Tensor, torch
from minigpt.options import Kind, option
from minigpt.sampler import grammar
from minigpt.sampler.grammar import Grammar
from minigpt.sampler.option_values import Loaded
from minigpt.sampler.processors.processor import RULED_OUT, Processor, TextContext


def _knows_what_may_follow(value: Any) -> bool:
    return all(hasattr(value, method) for method in ("mask", "matches", "complete"))


def _checked(kind: grammar.Kind, source: str) -> str:
    """A grammar's source, refused before a model is loaded if it is not well-formed."""
    try:
        grammar.check(kind, source)
    except InvalidRequest as error:
        raise ArgumentTypeError(error) from error
    return source


def _from_file(kind: grammar.Kind, content: str) -> Callable[[str], str]:
    def read(name: str) -> str:
        try:
            return _checked(kind, Path(name).expanduser().read_text(encoding="utf-8-sig"))
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ArgumentTypeError(
                f"it takes a file: put the {content} into one ({name!r:.60}: {reason})"
            ) from error

    return read


def _compiled(kind: grammar.Kind) -> Callable[[str, Loaded], Grammar]:
    return lambda source, loaded: Grammar(kind, source, loaded.tokenizer.token_bytes())


def _kind(kind: grammar.Kind, parse: Callable[[str], str], metavar: str) -> Kind:
    wanted = f'a Grammar (as Grammar("{kind}", source, tokenizer.token_bytes()))'
    return Kind(wanted, _knows_what_may_follow, parse, metavar)


@dataclass(frozen=True, kw_only=True)
class GrammarOptions:
    """A grammar that the new text matches, for every strategy; one at most."""

    regex: Grammar | None = option(
        None, 'the output must fully match this regular expression, unless it is cut off by its length; note the'
        ' leading space in " ?(yes|no)"',
        in_python="the output must fully match this, unless it is cut off by its length:"
        ' Grammar("regex", pattern, tokenizer.token_bytes())',
        group="control", kind=_kind("regex", lambda text: _checked("regex", text), "RE"), resolve=_compiled("regex"),
    )  # fmt: skip
    json_schema: Grammar | None = option(
        None, "the output must be JSON that is valid for the JSON schema in this file",
        in_python='the output must be JSON that is valid for this: Grammar("json_schema", json.dumps(schema), '
        "tokenizer.token_bytes())",
        group="control", kind=_kind("json_schema", _from_file("json_schema", "schema"), "FILE"), resolve=_compiled("json_schema"),
    )  # fmt: skip
    grammar: Grammar | None = option(
        None, "the output must match the Lark grammar in this file",
        in_python='the output must match this: Grammar("lark", source, tokenizer.token_bytes())',
        group="control", kind=_kind("lark", _from_file("lark", "grammar"), "FILE"), resolve=_compiled("lark"),
    )  # fmt: skip


def grammar_of(options: GrammarOptions) -> Grammar | None:
    """The grammar that is asked for, if any.

    Raises:
        InvalidRequest: several are.
    """
    given = {name: value for name in ("regex", "json_schema", "grammar") if (value := getattr(options, name))}
    if len(given) > 1:
        raise InvalidRequest(f"{' and '.join(given)} cannot be combined: the output follows one grammar")
    return next(iter(given.values()), None)


@dataclass(frozen=True)
class GrammarMask:
    """Rules out the tokens after which the text could not match a grammar any more.

    What must match is what follows the prompt. An end token may be written exactly where the text matches.
    Where it matches and nothing can follow, only `stop=grammar.complete` ends it without an end token. A text
    for which max_new_tokens comes first is cut off: it is the beginning of a match.
    """

    grammar: Grammar
    prompt_length: int
    end_tokens: frozenset[int]

    options: ClassVar[type] = GrammarOptions

    @classmethod
    def for_text(cls, options: GrammarOptions, context: TextContext) -> Iterator[Processor]:
        if allowed := grammar_of(options):
            yield cls(allowed, context.prompt_length, context.end_tokens)

    def __call__(self, logits: Tensor, tokens: Tensor) -> Tensor:
        new_tokens = tokens[:, self.prompt_length :].tolist()
        allowed = torch.stack([self.grammar.mask(row) for row in new_tokens])  # (B, ids that spell something)
        # A model may have more rows than its tokenizer has tokens.
        allowed = torch.nn.functional.pad(allowed, (0, logits.size(-1) - allowed.size(-1)))
        ends = [token for token in self.end_tokens if token < logits.size(-1)]
        allowed[:, ends] = torch.tensor([[self.grammar.matches(row)] for row in new_tokens])
        return logits.masked_fill(~allowed.to(logits.device), RULED_OUT)

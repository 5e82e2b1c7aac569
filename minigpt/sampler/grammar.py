"""Text that a grammar allows: a regular expression, a JSON schema or a Lark grammar, as masks over tokens.

The grammars are compiled by llguidance (the extra `grammar`); this file puts its parser behind three methods
that ask about a whole text, so that batches, beams and drafts may fork and go back as they like.

Source: Willard and Louf 2023 (Efficient guided generation for large language models), section 3.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from threading import Lock
from typing import Any, Literal, get_args

from minigpt.errors import InvalidRequest
from minigpt.json_files import shown
from minigpt.lazy import torch

# Shapes below:  V ids that the tokenizer knows

Kind = Literal["regex", "json_schema", "lark"]
REMEMBERED = 500  # texts whose parsers are kept
END = b"\xff<end>"  # an end token of the parser's own, behind the vocabulary; no text contains its first byte
NO_MATCH = ("Parser Error", "NoExtension")  # how llguidance's errors begin where a text does not match
# What a parser may use before it gives up, in llguidance's units; these take about 0.2 seconds and 100 MB.
LIMITS: dict[str, Any] = {
    "initial_lexer_fuel": 200_000,
    "step_lexer_fuel": 100_000,
    "max_lexer_states": 50_000,
}

# White space in JSON as Python's json.dumps writes it: where any may stand, a small model writes line ends for ever.
JSON_SPACES = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class Grammar:
    """The texts that a grammar allows, in terms of a vocabulary's tokens.

    Args:
        kind: "regex", "json_schema" or "lark".
        source: the pattern, the schema as JSON, or the grammar.
        token_bytes: what each id of the vocabulary spells, which may be a part of a character; None for one
            that spells nothing: special tokens, and ids without a token. See `Tokenizer.token_bytes`.

    Raises:
        InvalidRequest: llguidance is not installed; the grammar is not well-formed, unsupported or too
            large; or no tokens spell a text that it allows.

    >>> grammar = Grammar("regex", "ab*", [*(bytes([byte]) for byte in range(256)), b"abb", None])
    >>> grammar.mask([]).nonzero()[:, 0].tolist(), grammar.mask([97]).nonzero()[:, 0].tolist()
    ([97, 256], [98])
    >>> grammar.matches([97, 98]), grammar.complete([97, 98])  # it matches, but may go on
    (True, False)
    """

    def __init__(self, kind: Kind, source: str, token_bytes: Sequence[bytes | None]) -> None:
        _check_arguments(kind, source, token_bytes)
        self.kind, self.source, self._token_bytes = kind, source, tuple(token_bytes)
        self._name = _name_of(kind, source)
        usable = self._token_bytes
        if not _has_all_bytes(usable):
            characters = _characters(usable)
            if kind != "regex":
                raise InvalidRequest(
                    f"{self._name} needs a vocabulary with all 256 bytes; this one has {len(characters)} characters:"
                    " use a byte-level tokenizer"
                )
            usable = _only_whole(usable, characters)
        self._new_parser = _compiled(kind, source, usable, self._name)
        self._parsers: dict[tuple[int, ...], Any] = {}
        self._in_turn = Lock()  # a parser that two threads use at once raises an error
        self._start = self._new_parser()
        if not self.mask([]).any():
            empty = " but the empty one" if self.matches([]) else ""
            raise InvalidRequest(
                f"{self._name}: the tokens of this vocabulary spell no text that matches it{empty}"
            )

    def mask(self, new_tokens: Sequence[int]) -> torch.Tensor:
        """Which tokens may follow a text: bool, (V,). None may follow one that cannot match any more."""
        n = len(self._token_bytes)
        with self._in_turn:
            parser = self._parser(tuple(new_tokens))
            if parser is None or parser.is_stopped():
                return torch.zeros(n, dtype=torch.bool)
            bias = parser.compute_logit_bias()
            self._check(parser)
        return torch.frombuffer(bytearray(bias), dtype=torch.uint8)[:n] > 0

    def matches(self, new_tokens: Sequence[int]) -> bool:
        """Whether a text matches as it is."""
        with self._in_turn:
            parser = self._parser(tuple(new_tokens))
            return parser is not None and bool(parser.is_accepting())

    def complete(self, new_tokens: Sequence[int]) -> bool:
        """Whether a text matches and nothing can follow, so that it ends there."""
        return self.matches(new_tokens) and not self.mask(new_tokens).any()

    def __repr__(self) -> str:
        return f"Grammar({self.kind!r}, {self.source!r:.60})"

    def __reduce__(self) -> tuple[type[Grammar], tuple[Kind, str, tuple[bytes | None, ...]]]:
        return Grammar, (self.kind, self.source, self._token_bytes)  # parsers cannot be pickled or copied

    def _parser(self, tokens: tuple[int, ...]) -> Any:
        """The parser after a text, from that of the text without its last token if it is known; None: no match."""
        if not tokens:
            return self._start
        if tokens not in self._parsers:
            before = self._parsers.get(tokens[:-1], self._start if len(tokens) == 1 else None)
            parser, unread = (
                (before.deep_copy(), tokens[-1:]) if before else (self._start.deep_copy(), tokens)
            )
            if len(self._parsers) >= REMEMBERED:  # rare, and quickly made again
                self._parsers.clear()
            self._parsers[tokens] = parser if self._reads(parser, unread) else None
        return self._parsers[tokens]

    def _reads(self, parser: Any, tokens: Sequence[int]) -> bool:
        """Whether the parser can go on with these tokens."""
        if any(not 0 <= token < len(self._token_bytes) for token in tokens) or parser.is_stopped():
            return False
        if parser.consume_tokens(list(tokens)):
            return True
        self._check(parser)
        return False

    def _check(self, parser: Any) -> None:
        """Raises InvalidRequest where the parser gave up; that a text does not match is no reason to."""
        error = parser.get_error()
        if error and not error.startswith(NO_MATCH):
            raise InvalidRequest(f"{self._name} is too large: {_first_line(error)}; simplify it")


def _check_arguments(kind: object, source: object, token_bytes: object) -> None:
    """Refuses arguments of the wrong type, and a kind that there is not."""
    if kind not in get_args(Kind):
        raise InvalidRequest(f'kind must be "regex", "json_schema" or "lark", got {shown(kind)}')
    if not isinstance(source, str):
        example = "write json.dumps(schema)" if kind == "json_schema" else "it is the text of the grammar"
        raise InvalidRequest(f"source must be a string, got {shown(source)}: {example}")
    if isinstance(token_bytes, str | bytes) or not isinstance(token_bytes, Iterable):
        raise InvalidRequest(f"token_bytes: write tokenizer.token_bytes(), got {shown(token_bytes)}")


def check(kind: Kind, source: str) -> None:
    """Refuses a grammar that is not well-formed or not supported, without a vocabulary.

    Raises:
        InvalidRequest: it is, or llguidance is not installed; the message says what is wrong.
    """
    name = _name_of(kind, source)
    matcher = _library(name).LLMatcher
    if error := matcher.validate_grammar(_to_llguidance(kind, source, name)):
        raise InvalidRequest(f"{name} is not supported: {_first_line(error)}")


def _library(name: str) -> Any:
    try:
        import llguidance  # an optional package
    except ImportError:
        raise InvalidRequest(f"{name} needs llguidance: pip install 'minigpt[grammar]'") from None
    return llguidance


def _compiled(kind: Kind, source: str, token_bytes: Sequence[bytes | None], name: str) -> Callable[[], Any]:
    """Makes parsers of a grammar."""
    library = _library(name)
    text = _to_llguidance(kind, source, name)
    if not _has_all_bytes(token_bytes):
        text = _within(text, _characters(token_bytes))
    tokenizer = library.LLTokenizer(library.TokenizerWrapper(_Vocabulary(token_bytes)))
    limits = library.LLParserLimits(**LIMITS)

    def new_parser() -> Any:
        parser = library.LLMatcher(tokenizer, text, log_level=0, limits=limits)
        if parser.is_error():
            raise InvalidRequest(f"{name} is not supported: {_first_line(parser.get_error())}")
        return parser

    return new_parser


def _to_llguidance(kind: Kind, source: str, name: str) -> str:
    """The grammar as llguidance writes it."""
    matcher = _library(name).LLMatcher
    text: str
    if kind == "json_schema":
        try:
            text = matcher.grammar_from_json_schema(json.loads(source), defaults=JSON_SPACES)
        except (ValueError, RecursionError) as error:
            raise InvalidRequest(f"{name} is not a JSON object: {error}") from None
    elif kind == "lark":
        text = matcher.grammar_from_lark(source)
    else:
        text = matcher.grammar_from_regex(source)
    return text


def _within(text: str, characters: set[str]) -> str:
    """A regular expression's grammar, narrowed to texts of these characters, so that none is a dead end."""
    pattern = json.loads(text)["grammars"][0]["lark_grammar"].removeprefix("start: ")
    listed = "".join(f"\\u{{{ord(character):x}}}" for character in sorted(characters))
    return f"start: R\nR: {pattern} & /[{listed}]*/"


def _name_of(kind: Kind, source: str) -> str:
    """What messages call a grammar."""
    return {"regex": f"regex {source!r:.60}", "json_schema": "JSON schema", "lark": "grammar"}[kind]


class _Vocabulary:
    """A vocabulary as llguidance asks for it, with an end token of its own behind the last id."""

    bos_token_id = None

    def __init__(self, token_bytes: Sequence[bytes | None]) -> None:
        self.tokens = [*(spelled or b"" for spelled in token_bytes), END]
        self.eos_token_id = len(token_bytes)
        self.special_token_ids = [i for i, spelled in enumerate(token_bytes) if not spelled] + [
            self.eos_token_id
        ]
        self._ids = {spelled: i for i, spelled in enumerate(token_bytes) if spelled}
        self._longest = max(map(len, self._ids), default=0)

    def __call__(self, text: bytes | str) -> list[int]:
        """Some tokens that spell a text: always the longest that fits."""
        data = text if isinstance(text, bytes) else text.encode()
        ids, start = [], 0
        while start < len(data):
            ends = range(min(len(data), start + self._longest), start, -1)
            end = next((end for end in ends if data[start:end] in self._ids), None)
            if end is None:
                break
            ids.append(self._ids[data[start:end]])
            start = end
        return ids


def _has_all_bytes(token_bytes: Iterable[bytes | None]) -> bool:
    return {bytes([byte]) for byte in range(256)} <= set(token_bytes)


def _characters(token_bytes: Iterable[bytes | None]) -> set[str]:
    """The characters that are a token by themselves."""
    texts = (spelled.decode(errors="replace") for spelled in token_bytes if spelled)
    return {text for text in texts if len(text) == 1 and text != "\ufffd"}


def _only_whole(token_bytes: Sequence[bytes | None], characters: set[str]) -> tuple[bytes | None, ...]:
    """The tokens that consist of such characters; the others, parts of characters, spell nothing."""
    return tuple(
        spelled if spelled and set(spelled.decode(errors="replace")) <= characters else None
        for spelled in token_bytes
    )


def _first_line(message: str) -> str:
    r"""The error of llguidance without the pictures of the place that go with it.

    >>> _first_line("at 1(8): invalid regex: regex parse error:\n    (\n    ^\nerror: unclosed group\n   1 | start: /(/")
    'unclosed group'
    """
    of_regex = re.search(r"^error: (.*)$", message, re.MULTILINE)
    what = of_regex[1] if of_regex else re.split(r"<state>|\n *\d+ \| ", message)[0]
    return " ".join(what.split())[:200]

"""GPT-2's tokenizer files: reading every form of them that is met, and writing those that all tools read."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minigpt.json_files import expect, field, read_object, shown

END_OF_TEXT = "<|endoftext|>"

# What tokenizer.json says around its tokens if it is GPT-2's.
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
RECIPE: dict[str, Any] = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [],
    "normalizer": None,
    "pre_tokenizer": BYTE_LEVEL,
    "post_processor": BYTE_LEVEL,
    "decoder": BYTE_LEVEL,
    "model": {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": "",
        "end_of_word_suffix": "",
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
    },
}
# Flags of added tokens that would take in or look at the text around them.
NEIGHBOUR_FLAGS = ("single_word", "lstrip", "rstrip")
ENTRY: dict[str, type] = {"content": str, "id": int}  # what an added token of tokenizer.json must have


@dataclass(frozen=True)
class Found:
    """What a directory's tokenizer files say."""

    source: Path  # the file that holds the vocabulary
    vocab: dict[str, int]
    merges: list[tuple[str, str]]
    special_tokens: dict[str, int]
    words: dict[str, int]
    settings: dict[str, Any]


def read(directory: Path) -> Found:
    """Reads vocab.json and merges.txt, or tokenizer.json where those are absent, and what is beside them.

    Raises:
        FileNotFoundError: neither is there.
        ValueError: a file cannot be read, or describes something else than GPT-2's byte-level BPE.
    """
    settings = _read_settings(directory / "tokenizer_config.json")
    whole = _read_whole(directory / "tokenizer.json")
    source = directory / "vocab.json"
    if source.is_file() and (directory / "merges.txt").is_file():
        vocab, merges = read_object(source), _read_merges(directory / "merges.txt")
    elif whole:
        source = directory / "tokenizer.json"
        vocab, merges = whole["model"]["vocab"], _pairs(whole["model"]["merges"], source)
    else:
        raise FileNotFoundError(f"{directory} has neither vocab.json and merges.txt nor tokenizer.json")
    special, words = _added_tokens(directory, settings, whole)
    return Found(source, vocab, merges, special, words, settings)


def write(
    directory: Path,
    vocab: Mapping[str, int],
    merges: Sequence[tuple[str, str]],
    special_tokens: Mapping[str, int],
    words: Mapping[str, int],
    settings: Mapping[str, Any],
) -> None:
    """Writes both forms, vocab.json + merges.txt and tokenizer.json, and tokenizer_config.json."""
    whole = whole_tokenizer(vocab, merges, special_tokens, words)
    added = whole["added_tokens"]
    _write_text(directory / "vocab.json", as_json(vocab))
    _write_text(directory / "merges.txt", "\n".join(["#version: 0.2", *whole["model"]["merges"], ""]))
    _write_text(directory / "tokenizer.json", as_json(whole))

    # Said even if there is none: transformers would make up an <|endoftext|> of its own.
    end = END_OF_TEXT if any(token["content"] == END_OF_TEXT for token in added) else None
    own = {"tokenizer_class": "GPT2Tokenizer", **dict.fromkeys(["bos_token", "eos_token", "unk_token"], end)}
    decoder = {token["id"]: {name: token[name] for name in token if name != "id"} for token in added}
    config = {**own, **settings, "added_tokens_decoder": decoder}
    _write_text(directory / "tokenizer_config.json", as_json(config, indent=2))


def whole_tokenizer(
    vocab: Mapping[str, int],
    merges: Sequence[tuple[str, str]],
    special_tokens: Mapping[str, int],
    words: Mapping[str, int],
) -> dict[str, Any]:
    """The contents of tokenizer.json, which holds all that decides which ids a text becomes."""
    plain = dict.fromkeys([*NEIGHBOUR_FLAGS, "normalized"], False)
    added = [
        {"id": token, "content": text, "special": text in special_tokens, **plain}
        for text, token in sorted({**words, **special_tokens}.items(), key=lambda item: item[1])
    ]
    model = {**RECIPE["model"], "vocab": vocab, "merges": [f"{left} {right}" for left, right in merges]}
    return {**RECIPE, "added_tokens": added, "model": model}


def as_json(values: Mapping[str, Any], indent: int | None = None) -> str:
    r"""JSON as these files have it: every character as itself, but halves of a surrogate pair, which UTF-8 has not.

    >>> as_json({"é": "\ud800"})
    '{"é": "\\ud800"}'
    """
    text = json.dumps(values, ensure_ascii=False, indent=indent)
    return text.encode("utf-8", "backslashreplace").decode()


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")


def _read_whole(path: Path) -> dict[str, Any]:
    """A tokenizer.json, if there is one, provided that it describes GPT-2's way to tokenize."""
    if not path.is_file():
        return {}
    whole = read_object(path)
    parts = ("normalizer", "pre_tokenizer", "post_processor", "model")
    normalizer, splitter, processor, model = (
        expect(dict, whole.get(part) or {}, path, part) for part in parts
    )
    _refuse_others(path, "normalizer.type", normalizer.get("type"), None)
    _refuse_others(path, "pre_tokenizer.type", splitter.get("type"), "ByteLevel")
    _refuse_others(path, "pre_tokenizer.add_prefix_space", splitter.get("add_prefix_space"), False)
    _refuse_others(path, "pre_tokenizer.use_regex", splitter.get("use_regex", True), True)
    _refuse_others(
        path, "post_processor.type", processor.get("type"), "ByteLevel", "TemplateProcessing", None
    )
    _refuse_others(path, "post_processor.special_tokens", processor.get("special_tokens", {}), {})
    _refuse_others(path, "model.type", model.get("type", "BPE"), "BPE")  # files of 2020 do not say it
    for option in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges"):
        _refuse_others(path, f"model.{option}", model.get(option), None, "", False)
    expect(dict, model.get("vocab"), path, "model.vocab")
    expect(list, model.get("merges"), path, "model.merges")
    return whole


def _read_settings(path: Path) -> dict[str, Any]:
    """A tokenizer_config.json, if there is one."""
    settings = read_object(path) if path.is_file() else {}
    for option in ("add_prefix_space", "add_bos_token", "add_eos_token"):
        _refuse_others(path, option, settings.get(option, False), False, None)
    return settings


def end_token_text(settings: Mapping[str, Any]) -> str:
    """The token that ends a text, as tokenizer_config.json says; <|endoftext|> if it does not.

    >>> end_token_text({"eos_token": {"content": "</s>"}}), end_token_text({"eos_token": None})
    ('</s>', '<|endoftext|>')
    """
    token = _content(settings.get("eos_token"))
    return token if isinstance(token, str) else END_OF_TEXT


def _content(token: Any) -> Any:
    """The text of a token that settings name; transformers has written both forms."""
    return token.get("content") if isinstance(token, dict) else token


def _named(settings: Mapping[str, Any]) -> list[Any]:
    """The tokens that settings give a purpose: what makes a token of added_tokens.json a special one.

    >>> _named({"pad_token": "<pad>", "additional_special_tokens": ["<a>"]})
    ['<|endoftext|>', '<pad>', '<a>']
    """
    single = [value for name, value in settings.items() if name.endswith("_token")]
    lists = (settings.get("additional_special_tokens"), settings.get("extra_special_tokens"))
    several = [token for tokens in lists if isinstance(tokens, list) for token in tokens]
    return [END_OF_TEXT, *map(_content, [*single, *several])]


def _refuse_others(path: Path, name: str, found: Any, *supported: Any) -> None:
    if found not in supported:
        raise ValueError(
            f"{path}: {name} is {shown(found)}; minigpt reads GPT-2's byte-level BPE only, where it is {supported[0]!r}"
        )


def _read_merges(path: Path) -> list[tuple[str, str]]:
    lines = _read_text(path).removesuffix("\n").split("\n")
    return _pairs([line for line in lines if not line.startswith("#version")], path)


def _pairs(merges: Iterable[Any], path: Path) -> list[tuple[str, str]]:
    """Merges written as "a b", the older form, or as ["a", "b"]."""
    pairs = []
    for number, merge in enumerate(merges, start=1):
        match merge.split(" ") if isinstance(merge, str) else merge:
            case [str(left), str(right)] if left and right:
                pairs.append((left, right))
            case _:
                raise ValueError(
                    f"{path}: merge {number} is {shown(merge)}, not two tokens with a space between them"
                )
    return pairs


def _added_tokens(
    directory: Path, settings: Mapping[str, Any], whole: Mapping[str, Any]
) -> tuple[dict[str, int], dict[str, int]]:
    """Ids of the special tokens and of the words that were added; of two sources, the later knows better."""
    special: dict[str, int] = {}
    words: dict[str, int] = {}
    for text, (entry, source) in {
        entry["content"]: (entry, source) for entry, source in _entries(directory, settings, whole)
    }.items():
        for flag in NEIGHBOUR_FLAGS:
            if entry.get(flag):
                raise ValueError(f"{source}: added token {text!r} has {flag}=True; only False is supported")
        (special if entry.get("special", True) else words)[text] = entry["id"]
    return special, words


def _entries(
    directory: Path, settings: Mapping[str, Any], whole: Mapping[str, Any]
) -> Iterator[tuple[dict[str, Any], str]]:
    """Every added token that a file describes, with its content and id, and where that stands."""
    old, purposes = directory / "added_tokens.json", directory / "special_tokens_map.json"
    named = [*_named(settings), *_named(read_object(purposes) if purposes.is_file() else {})]
    for text, number in read_object(old).items() if old.is_file() else ():
        entry = {"content": text, "id": expect(int, number, old, repr(text)), "special": text in named}
        yield entry, str(old)
    where = f"{directory / 'tokenizer_config.json'}: added_tokens_decoder"
    for number, entry in expect(dict, settings.get("added_tokens_decoder") or {}, where).items():
        if not number.isdecimal():
            raise ValueError(f"{where} has tokens by their ids, got {number!r}")
        entry = expect(dict, entry, where, number)
        yield (
            {**entry, "content": field(str, entry, "content", f"{where}.{number}"), "id": int(number)},
            where,
        )
    where = f"{directory / 'tokenizer.json'}: added_tokens"
    for i, entry in enumerate(expect(list, whole.get("added_tokens") or [], where)):
        entry = expect(dict, entry, where, f"entry {i}")
        yield (
            {
                **entry,
                **{name: field(kind, entry, name, f"{where}, entry {i}") for name, kind in ENTRY.items()},
            },
            where,
        )


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}") from None

"""Whether the tokenizer loses nothing, and gives the ids that other implementations give."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigpt.verify.quietly import quietly
from minigpt.verify.report import Check, failed, first_difference, not_checked, passed

if TYPE_CHECKING:
    from minigpt.tokenizer import Tokenizer

FIXED = (
    "Once upon a time there was a king who didn't know that he had 12,345 daughters; the eldest said: "
    "“Father, I'll go!” And so, at last, she went out into the dark wood and was never seen again."
)
# What tokenizers stumble over: contractions, runs of spaces, line ends, digits, scripts, emoji in several parts,
# combining marks, control characters, and the end token as plain text.
STRESS = (
    " I'd've said: 'tis we'LL  do\n\n\tit\r\n   3.14159 ½ x²\u00a0\u3000naïve e\u0301cole Zürich "
    "東京の犬 नमस्ते مرحبا שלום 한국어 👍🏽 👩\u200d🚀 🇫🇷 \x00\x07\x85 ſ … <|endoftext|> <|endof text|>"
    f"{' ' * 40}end\n{'ab' * 60}   "
)


def check_tokenizer(tokenizer: Tokenizer, directory: Path) -> Iterator[Check]:
    """The stress text there and back, and its ids against `tokenizers` and transformers where installed."""
    name = "tokenizer: a text with every kind of character, there and back"
    try:
        text = STRESS
        ids = tokenizer.encode(text)
    except ValueError:  # a vocabulary without all bytes
        text = "".join(c for c in STRESS if _known(tokenizer, c))
        ids = tokenizer.encode(text)
    back = tokenizer.decode(ids)
    place = first_difference(text, back)
    if place is None:
        yield passed(name)
    else:
        here = slice(place, place + 12)
        yield failed(name, f"at character {place}: {text[here]!r} became {back[here]!r}")
    for library, load in {"tokenizers": _tokenizers, "transformers": _transformers}.items():
        yield _against(library, load, tokenizer, directory, text)


def _known(tokenizer: Tokenizer, character: str) -> bool:
    try:
        return bool(tokenizer.encode(character))
    except ValueError:
        return False


def _against(
    library: str,
    load: Callable[[Path], Callable[[str], list[int]]],
    ours: Tokenizer,
    directory: Path,
    text: str,
) -> Check:
    name = f"tokenizer: ids, with those of {library}"
    try:
        encode = load(directory)
    except ImportError:
        return not_checked(name, f"{library} is not installed")
    except FileNotFoundError as error:
        return not_checked(name, str(error))
    for sample in (FIXED, text):
        mine, theirs = ours.encode(sample), encode(sample)
        place = first_difference(mine, theirs)
        if place is not None:
            before, here = ours.decode(mine[:place])[-20:], slice(place, place + 4)
            return failed(name, f"token {place}, after {before!r}: {mine[here]}, theirs {theirs[here]}")
    return passed(name)


def _tokenizers(directory: Path) -> Callable[[str], list[int]]:
    tokenizers: Any = importlib.import_module("tokenizers")
    if (directory / "vocab.json").is_file() and (directory / "merges.txt").is_file():
        model = tokenizers.models.BPE.from_file(str(directory / "vocab.json"), str(directory / "merges.txt"))
        plain = tokenizers.Tokenizer(model)
        plain.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        plain = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
        plain.encode_special_tokens = True
    return lambda text: list(plain.encode(text, add_special_tokens=False).ids)


def _transformers(directory: Path) -> Callable[[str], list[int]]:
    transformers: Any = importlib.import_module("transformers")
    with quietly(transformers):
        theirs = transformers.AutoTokenizer.from_pretrained(directory)
    return lambda text: list(theirs(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])

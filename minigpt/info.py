"""Shows what a model is, without loading its weights: `minigpt info gpt2`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open

from minigpt import cli
from minigpt.cli import BAD_FLAGS, DONE, FAILED, INTERRUPTED, NO_MODEL, Failure
from minigpt.cli.model_flags import add_source_flags, named_model
from minigpt.cli.parser import Parser
from minigpt.cli.progress import late_bar
from minigpt.cli.table import left_table
from minigpt.cli.terminal import write_out
from minigpt.config import GPT2Config, stored_quantization
from minigpt.hub import BUNDLED, model_files, sha256, tokenizer_files
from minigpt.json_files import counted

EXITS = (DONE, FAILED, BAD_FLAGS, NO_MODEL, INTERRUPTED)
ABOUT = """Show what a model is: parameters, context length, vocabulary, memory by dtype, and the hashes of its files.

The weights are not loaded.
"""
EPILOG = """examples:
  minigpt info                        the bundled model
  minigpt info gpt2                   GPT-2 from the Hugging Face hub
  minigpt info my-model/ --json       a directory; one JSON object
"""
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}  # of a number
SMALL = {"int8": 1, "float16": 2}  # of a number of quantized weights
NOT_LEARNED = (".attn.bias", ".attn.masked_bias")  # masks, which old checkpoints hold as tensors
PATTERNS = ("*.json", "*.txt", "*.safetensors")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; the exit code."""
    return cli.run("info", parser, info, argv)


def info(args: argparse.Namespace) -> int:
    """The whole command: find the files, read their headers, show the facts."""
    name = named_model(args)
    facts = {"model": name or BUNDLED, **facts_of(*find(name, args))}
    write_out(json.dumps(facts, ensure_ascii=False) + "\n" if args.json else left_table(rows(facts)))
    return DONE


def parser() -> Parser:
    """The parser of the command's flags."""
    parser = Parser("info", EXITS, EPILOG, usage="minigpt info [MODEL] [options]", description=ABOUT)
    parser.add_argument("name", nargs="?", metavar="MODEL", help="the same as --model")
    add_source_flags(parser.add_argument_group("model"))
    group = parser.add_argument_group("output")
    group.add_argument("--json", action="store_true", help="one JSON object")
    group.add_argument("--quiet", action="store_true", help="errors only on stderr")
    return parser


def find(name: str | None, args: argparse.Namespace) -> tuple[Path, GPT2Config, dict[str, str]]:
    """The directory of a model, its config, and the sha256 of each of its files.

    Raises:
        Failure: there is no such model, or its config is none of a GPT-2.
    """
    try:
        folder = model_files(name, revision=args.revision, offline=args.offline)
        config = GPT2Config.load(folder)
        if name is not None:  # a directory without a tokenizer is a model, too
            _fetch_tokenizer(name, args)
    except (OSError, ValueError) as error:
        raise Failure(NO_MODEL, error) from error
    files = sorted({file for pattern in PATTERNS for file in folder.glob(pattern)})
    with late_bar(total=len(files), unit="file") as bar:
        hashes = {}
        for file in files:
            hashes[file.name] = sha256(file)
            bar.update()
    return folder, config, hashes


def _fetch_tokenizer(name: str, args: argparse.Namespace) -> None:
    try:
        tokenizer_files(name, revision=args.revision, offline=args.offline)
    except FileNotFoundError:
        return


def facts_of(folder: Path, config: GPT2Config, hashes: dict[str, str]) -> dict[str, Any]:
    """What is known of a model, as the JSON has it; sizes in bytes.

    `kv_cache_bytes` is the size of the keys and values of one text that fills the context.
    """
    n_cached = 2 * config.n_layer * config.n_embd * config.n_positions  # keys and values
    weights_bytes = {dtype: size * config.n_parameters for dtype, size in BYTES.items()}
    kv_cache_bytes = {dtype: size * n_cached for dtype, size in BYTES.items()}
    if kind := stored_quantization(folder):  # which other dtypes cannot be made of, with float32 around it
        stored = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        packed = SMALL[kind] * config.vocab_size * config.n_embd  # embeddings: to look up, and for the head
        weights_bytes, kv_cache_bytes = {kind: stored + packed}, {"float32": kv_cache_bytes["float32"]}
    return {
        "directory": str(folder),
        "parameters": config.n_parameters,
        "context_length": config.n_positions,
        "vocabulary": config.vocab_size,
        "layers": config.n_layer,
        "heads": config.n_head,
        "hidden_size": config.n_embd,
        "tied_embeddings": config.tie_word_embeddings,
        "stored_dtypes": stored_dtypes(folder),
        "weights_bytes": weights_bytes,
        "kv_cache_bytes": kv_cache_bytes,
        "files": {
            file: {"bytes": (folder / file).stat().st_size, "sha256": digest}
            for file, digest in hashes.items()
        },
    }


def stored_dtypes(folder: Path) -> list[str]:
    """The dtypes of the weights in the files, by the names that safetensors has for them.

    Raises:
        Failure: a file is damaged.
    """
    dtypes = set()
    for file in folder.glob("*.safetensors"):
        try:
            with safe_open(file, framework="numpy") as tensors:  # reads the header alone
                names = [name for name in tensors.keys() if not name.endswith(NOT_LEARNED)]  # noqa: SIM118
                dtypes |= {tensors.get_slice(name).get_dtype() for name in names}
        except Exception as error:  # safetensors has an error of its own, which is no OSError
            raise Failure(NO_MODEL, f"{file} is damaged or incomplete: {error}") from error
    return sorted(dtypes)


def rows(facts: dict[str, Any]) -> Iterator[list[str]]:
    """The table: what is known of the model, then a line for each file."""
    yield ["model", facts["model"]]
    yield ["directory", facts["directory"]]
    yield ["parameters", f"{facts['parameters']:,}"]
    yield ["context length", f"{facts['context_length']:,} tokens"]
    yield ["vocabulary", f"{facts['vocabulary']:,} tokens"]
    heads = counted(facts["heads"], "heads")
    yield ["layers", f"{facts['layers']}, {heads}, hidden size {facts['hidden_size']}"]
    yield ["embeddings", "tied" if facts["tied_embeddings"] else "untied"]
    yield ["stored as", ", ".join(facts["stored_dtypes"]) or "no weights"]
    yield ["weights in memory", _sizes(facts["weights_bytes"])]
    yield ["KV cache of a full context", _sizes(facts["kv_cache_bytes"])]
    for name, file in facts["files"].items():
        yield [name, f"sha256 {file['sha256']}  {_megabytes(file['bytes'])}"]


def _sizes(by_dtype: dict[str, int]) -> str:
    return ", ".join(f"{_megabytes(size)} {dtype}" for dtype, size in by_dtype.items())


def _megabytes(size: int) -> str:
    """A size to be read.

    >>> _megabytes(497_759_232), _megabytes(712)
    ('497.8 MB', '712 bytes')
    """
    return f"{size / 1e6:,.1f} MB" if size >= 50_000 else counted(size, "bytes")


if __name__ == "__main__":
    sys.exit(main())

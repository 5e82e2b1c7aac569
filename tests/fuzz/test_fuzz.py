"""Inputs that nobody thought of: whatever a command is given, it keeps the table of exit codes and says one line.

A few of each kind are tried with every `make test`; `make fuzz` tries thousands. What they are follows from a seed
(FUZZ_SEED), and hypothesis finds the smallest input that fails.
"""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
from command import save, tiny
from fork_server import ForkServer, Outcome
from hypothesis import HealthCheck, Phase, event, given, seed, settings
from hypothesis import strategies as st
from hypothesis.strategies import DataObject

from minigpt.interp.page import load
from minigpt.interp.page.document import BEGIN, END

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "12"))  # of each kind
SEED = int(os.environ.get("FUZZ_SEED", "0"))
CODES = {0, 2, 3, 4, 5}
# What a terminal would obey: all control characters but line ends and tabs, C1 and the bidirectional overrides.
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")

fuzz = settings(
    max_examples=EXAMPLES,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate, Phase.shrink],
)


class Place:
    """A folder with a tiny model, a run and texts, copied anew for every input."""

    def __init__(self, root: Path, server: ForkServer) -> None:
        self.root, self.server = root, server
        self.original, self.folder = root / "original", root / "work"
        self.pipe = root / "pipe"  # outside, for a command may put a file in its place
        os.mkfifo(self.pipe)
        save(self.original / "model", tiny(initializer_range=0.5))
        (self.original / "a.txt").write_text(
            "Once there was a cat.\n<|endoftext|>\nIt saw a mouse, and ran.\n" * 9
        )
        (self.original / "a.jsonl").write_text('{"text": "Once there was a cat."}\n{"text": "It ran."}\n')
        (self.original / "prompts.jsonl").write_text(
            '{"prompt": "Once", "id": "a"}\n{"prompt": "The king"}\n'
        )
        self.fresh()
        shown = self.run("explore", "Once", "-o", "page.html", "--model", "model", "--max-new-tokens", "2")
        assert shown.code == 0, shown.err.decode()
        shutil.copy(self.folder / "page.html", self.original)
        trained = self.run(*TRAIN, "--out", "run", "--steps", "2")
        assert trained.code == 0, trained.err.decode()
        shutil.copytree(self.folder / "run", self.original / "run")

    def fresh(self) -> Path:
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(self.original, self.folder, symlinks=True)
        return self.folder

    def run(self, *argv: str, stdin: bytes = b"") -> Outcome:
        return self.server.run(argv, self.folder, stdin)


TRAIN = (
    "train", "--data", "a.txt", "--token-cache", "tokens", "--tokenizer", "bytes", "--n-layer", "1", "--n-head", "1",
    "--n-embd", "8", "--context", "8", "--batch-size", "2", "--checkpoint-every", "1", "--eval-every", "2",
    "--dtype", "float32", "--eval-tokens", "20", "--threads", "1",
)  # fmt: skip
MANY = (
    "generate",
    "--prompts",
    "prompts.jsonl",
    "--max-new-tokens",
    "2",
    "--model",
    "model",
    "--threads",
    "1",
)
WRITE = ("generate", "Once", "--model", "model", "--max-new-tokens", "3", "--threads", "1")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with ForkServer() as server:
        yield Place(tmp_path_factory.mktemp("fuzz"), server)


def keeps_the_promise(place: Place, outcome: Outcome, codes: set[int] = CODES) -> None:
    """The exit code is one of the table's; a mistake is one line, no traceback; nothing is half written."""
    err = outcome.err.decode(errors="replace")
    event(f"exit code {outcome.code}")  # what --hypothesis-show-statistics counts
    assert not outcome.timed_out, f"took too long: {err}"
    assert "Traceback" not in err, err[-1500:]
    assert outcome.code in codes, (outcome.code, err)
    assert not CONTROL.search(err), repr(err)
    if outcome.code:
        *_, last = err.splitlines() or [""]
        assert last.startswith("minigpt."), err
        assert sum(not line.startswith("minigpt.") for line in err.splitlines()) == 0, err
    left = [path for path in place.folder.rglob(".unfinished-*")]
    assert not left, left


# ------------------------------------------------------------------------------ what goes wrong with JSON

numbers = st.one_of(
    st.integers(-3, 300),
    st.sampled_from(
        [10**12, 10**18, 10**30, -(10**30), 2**31, 2**63, 10**400, 1e39, 1e-45, 5e-324, 0.5, -0.0]
    ),
    st.sampled_from([float("nan"), float("inf"), float("-inf")]),
)
words = st.sampled_from(
    ["", "x", "gpt2", "true", "\x1b]0;title\x07", "\ud800", "é\u202e", "../../etc/passwd", "a" * 300]
)
values = st.recursive(
    st.none() | st.booleans() | numbers | words | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)
RAW = {
    "nothing": b"", "utf-16": b"\xff\xfe", "nested lists": b"[" * 100_000, "nested objects": b'{"a":' * 100_000,
    "null": b"null", "a bracket": b"{", "a byte-order mark": b"\xef\xbb\xbf{}", "digits": b"0" * 5000,
    "null characters": b"\x00" * 64,
}  # fmt: skip


def dump(value: Any) -> bytes:
    return json.dumps(value).encode(errors="surrogatepass")


def mutate_json(data: DataObject, value: Any) -> Any:
    """The value with one to three of its parts replaced, removed or added."""
    value = copy.deepcopy(value)
    for _ in range(data.draw(st.integers(1, 3))):
        value = _mutated(data, value, 3)
    return value


def _mutated(data: DataObject, value: Any, depth: int) -> Any:
    if not isinstance(value, dict | list) or not value or not depth or data.draw(st.integers(0, 4)) == 0:
        return data.draw(values)
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = data.draw(st.sampled_from(keys[:200]))
    match data.draw(st.sampled_from(["change", "change", "remove", "add"])):
        case "change":
            value[key] = _mutated(data, value[key], depth - 1)
        case "remove":
            del value[key]
        case "add" if isinstance(value, dict):
            value[data.draw(words | st.text(max_size=5))] = data.draw(values)
        case _:
            value.append(data.draw(values))
    return value


def mutate_bytes(data: DataObject, content: bytes) -> bytes:
    """The bytes cut off, with some changed, some inserted, or others altogether."""
    match data.draw(st.sampled_from(["cut", "change", "insert", "raw"])):
        case "cut":
            return content[: data.draw(st.integers(0, len(content)))]
        case "raw":
            return RAW[data.draw(st.sampled_from(sorted(RAW)))]
        case how:
            at = data.draw(st.integers(0, len(content)))
            new = data.draw(st.binary(min_size=1, max_size=8))
            return content[:at] + new + content[at + (len(new) if how == "change" else 0) :]


def spoil(data: DataObject, file: Path) -> None:
    """Writes something else into a file: other JSON where it is JSON, or other bytes."""
    if file.suffix == ".json" and data.draw(st.integers(0, 3)):
        file.write_bytes(dump(mutate_json(data, json.loads(file.read_bytes()))))
    else:
        file.write_bytes(mutate_bytes(data, file.read_bytes()))


# ------------------------------------------------------------------------------ the kinds of input


@seed(SEED)
@fuzz
@given(data=st.data())
def test_config_json(place: Place, data: DataObject) -> None:
    spoil(
        data, place.fresh() / "model" / data.draw(st.sampled_from(["config.json", "generation_config.json"]))
    )
    keeps_the_promise(place, place.run(*WRITE))


@seed(SEED)
@fuzz
@given(data=st.data())
def test_tokenizer_files(place: Place, data: DataObject) -> None:
    model = place.fresh() / "model"
    if data.draw(st.booleans()):
        for file in ("vocab.json", "merges.txt"):
            (model / file).unlink()
        name = data.draw(st.sampled_from(["tokenizer.json", "tokenizer_config.json"]))
    else:
        (model / "added_tokens.json").write_text('{"<pad>": 258}')
        name = data.draw(
            st.sampled_from(["vocab.json", "merges.txt", "tokenizer_config.json", "added_tokens.json"])
        )
    spoil(data, model / name)
    keeps_the_promise(place, place.run(*WRITE))


@seed(SEED)
@fuzz
@given(data=st.data())
def test_safetensors(place: Place, data: DataObject) -> None:
    file = place.fresh() / "model" / "model.safetensors"
    content = file.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    if data.draw(st.booleans()):
        header = dump(mutate_json(data, header))
        size = data.draw(st.just(len(header)) | st.integers(0, 2**64 - 1))
        content = size.to_bytes(8, "little") + header + content[end:]
    else:
        content = mutate_bytes(data, content)
    file.write_bytes(content)
    keeps_the_promise(place, place.run(*WRITE))


@seed(SEED)
@fuzz
@given(data=st.data())
def test_an_index_of_shards(place: Place, data: DataObject) -> None:
    model = place.fresh() / "model"
    (model / "model.safetensors").rename(model / "one.safetensors")
    index = {"metadata": {"total_size": 1}, "weight_map": {"wte.weight": "one.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    spoil(data, model / "model.safetensors.index.json")
    keeps_the_promise(place, place.run(*WRITE))


@seed(SEED)
@fuzz
@given(data=st.data())
def test_the_folder_of_a_run(place: Place, data: DataObject) -> None:
    run = place.fresh() / "run"
    files = sorted(path for path in run.rglob("*") if path.is_file() and path.suffix != ".png")
    spoil(data, data.draw(st.sampled_from(files)))
    outcome = place.run("train", "--resume", "--out", "run", "--steps", "3", "--threads", "1")
    keeps_the_promise(place, outcome)


@seed(SEED)
@fuzz
@given(data=st.data())
def test_texts(place: Place, data: DataObject) -> None:
    """Text and .jsonl files, to `score` and to `train` on."""
    name = data.draw(st.sampled_from(["a.txt", "a.jsonl"]))
    file = place.fresh() / name
    if name == "a.jsonl" and data.draw(st.booleans()):
        lines = [dump(data.draw(values | st.fixed_dictionaries({"text": values}))) for _ in range(3)]
        file.write_bytes(b"\n".join(lines))
    else:
        file.write_bytes(mutate_bytes(data, file.read_bytes()))
    flags = data.draw(
        st.sampled_from([["score", name], ["score", "--last-word", name], ["score", name, "--json"]])
    )
    keeps_the_promise(place, place.run(*flags, "--model", "model", "--threads", "1"))


@seed(SEED)
@fuzz
@given(data=st.data())
def test_prompts(place: Place, data: DataObject) -> None:
    name = data.draw(st.sampled_from(["prompts.jsonl", "a.txt"]))
    file = place.fresh() / name
    if data.draw(st.booleans()):
        entry = st.fixed_dictionaries(
            {"prompt": values | st.text()},
            optional=dict.fromkeys(("id", "text", "max_new_tokens", "seed"), values),
        )
        file.write_bytes(b"\n".join(dump(data.draw(values | entry)) for _ in range(3)))
    else:
        file.write_bytes(mutate_bytes(data, file.read_bytes()))
    generate = ["generate", "--prompts", name, *MANY[3:]]
    job = [
        "--out",
        "shards",
        "--shard-rows",
        "2",
        "--format",
        data.draw(st.sampled_from(["jsonl", "parquet"])),
    ]
    argv = data.draw(
        st.sampled_from(
            [["compare", *generate[1:], "--method", "greedy"], [*generate, "--json"], [*generate, *job],
             ["score", name, "--text-field", "prompt", "--model", "model", "--threads", "1", *job]]
        )
    )  # fmt: skip
    keeps_the_promise(place, place.run(*argv), CODES | {1})


@seed(SEED)
@fuzz
@given(data=st.data())
def test_the_folder_of_a_job(place: Place, data: DataObject) -> None:
    """Its manifest, the records of its blocks and its shards, when the same command is given again."""
    place.fresh()
    argv = [
        *MANY,
        "--out",
        "shards",
        "--shard-rows",
        "1",
        "--format",
        data.draw(st.sampled_from(["jsonl", "parquet"])),
    ]
    assert place.run(*argv).code == 0
    spoil(
        data,
        data.draw(st.sampled_from(sorted(p for p in (place.folder / "shards").rglob("*") if p.is_file()))),
    )
    keeps_the_promise(place, place.run(*argv), CODES | {1})


@seed(SEED)
@fuzz
@given(data=st.data())
def test_pages(place: Place, data: DataObject) -> None:
    """A page that is spoiled reads as another page, or not at all: `load` says which file, and why."""
    file = place.fresh() / "page.html"
    page = (place.root / "original" / "page.html").read_text()
    before, begin, rest = page.partition(BEGIN)
    content, end, after = rest.partition(END)
    if data.draw(st.booleans()):
        changed = mutate_json(data, json.loads(content))
        file.write_bytes(f"{before}{begin}".encode() + dump(changed) + f"{end}{after}".encode())
    else:
        file.write_bytes(mutate_bytes(data, page.encode()))
    try:
        said = load(file)["format"]
    except ValueError as error:
        event("refused")
        said = str(error)
    assert said.startswith(("minigpt-page-1", f"{file} is no page of minigpt explore: "))


@seed(SEED)
@fuzz
@given(data=st.data())
def test_prompts_of_a_page(place: Place, data: DataObject) -> None:
    """Any text as a prompt: what comes out is a whole page that holds it, and no markup of it."""
    texts = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=12)
    nasty = st.sampled_from(
        ["</script>", "<!--", "__proto__", "\u2028", "\u202e", "e\u0301\u0301", "]]>", "\x1b[2J", "\udcff"]
    )
    prompt = "".join(data.draw(st.lists(texts | nasty, max_size=3)))
    folder = place.fresh()
    argv = [
        "explore",
        "-o",
        "new.html",
        "--model",
        "model",
        "--max-new-tokens",
        "2",
        "--threads",
        "1",
        f"--compare={prompt}",
    ]
    outcome = place.run(*argv, "--", prompt)
    keeps_the_promise(place, outcome)
    assert (folder / "new.html").exists() == (outcome.code == 0)
    if outcome.code == 0:
        page = (folder / "new.html").read_text()
        assert page.count("</script") == 2
        assert page.count("<!--") == 0
        assert [run["prompt"] for run in load(folder / "new.html")["runs"]] == [prompt] * 2


# ------------------------------------------------------------------------------ command lines

# Flags that ask for much work, which they get: it is not the harness's to wait for it.
LONG = {
    "--steps",
    "--n-prompts",
    "--offline",
    "--compile",
    "--help",
    "--threads",
    "--interactive",
    "--revision",
    "--open",
    "--ray",
}


@contextmanager
def written_to(pipe: Path, text: str) -> Iterator[None]:
    """Whoever opens a named pipe can read this from it; without a writer, readers wait for one as long as it takes."""
    over = Event()

    def write() -> None:
        while not over.is_set():
            with suppress(OSError), pipe.open("w") as opened:  # waits for a reader, who may not want it all
                opened.write(text)

    writer = Thread(target=write)
    writer.start()
    try:
        yield
    finally:
        over.set()
        reader = os.open(pipe, os.O_RDWR)
        writer.join()
        os.close(reader)


def parser_of(command: str) -> ArgumentParser:
    """A command's parser, wherever in its package it stands."""
    name = "minigpt." + command.replace("-", "_")
    for module in (f"{name}.flags", f"{name}.__main__", name):
        with suppress(ImportError):
            if hasattr(found := import_module(module), "parser"):
                return found.parser()
    raise LookupError(f"{command} has no parser")


def flags_of(command: str) -> list[tuple[str, bool]]:
    """A command's flags, and whether each stands alone."""
    actions = parser_of(command)._actions
    flags = [(option, action.nargs == 0) for action in actions for option in action.option_strings]
    return [flag for flag in flags if flag[0] not in LONG and flag[0].startswith("--")]


arguments = st.one_of(
    st.sampled_from(["1", "2", "3", "0.5", "1.5"]),  # twice, so that some command lines are right
    st.sampled_from(["1", "2", "0.9", "x.json", "a.txt", "cat"]),
    numbers.map(str),
    st.sampled_from(
        ["model", "a.txt", "a.jsonl", "prompts.jsonl", "run", "missing", "~nosuchuser/x", "loop", "pipe", "/dev/full",
         "/dev/null", "/dev/zero", ".", "", "-", "--", ":", "a: --top-k 1", "x\x00y".replace("\x00", "\x1b"), "0=inf",
         "1=2", "[a-", "(a|b)*c", "a{99999}", "\udcff", "é", "<|endoftext|>", "greedy", "beam", "sample", "true"]
    ),
    st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=5),
)  # fmt: skip
BASE = {
    "generate": ["--max-new-tokens", "3"],
    "train": [*TRAIN[1:], "--out", "new", "--steps", "1"],
    "score": ["a.txt"],
    "compare": ["--prompts", "prompts.jsonl", "--max-new-tokens", "2", "--method", "greedy"],
    "detect-watermark": ["a.txt"],
    "train-tokenizer": ["a.txt", "--vocab-size", "260", "--out", "tok"],
    "verify": [],
    "explore": ["Once", "-o", "page.html", "--max-new-tokens", "2"],
}
FLAGS = {command: flags_of(command) for command in BASE}


@seed(SEED)
@fuzz
@given(data=st.data())
def test_command_lines(place: Place, data: DataObject) -> None:
    folder = place.fresh()
    (folder / "loop").symlink_to("loop")
    os.link(place.pipe, folder / "pipe")
    command = data.draw(st.sampled_from(sorted(BASE)))
    argv = [command, *BASE[command]]
    if command not in ("train", "train-tokenizer", "verify"):
        argv += ["--model", "model", "--threads", "1"]
    for _ in range(data.draw(st.integers(1, 3))):
        flag, alone = data.draw(st.sampled_from(FLAGS[command]))
        argv += [flag] if alone else [flag, data.draw(arguments)]
    if data.draw(st.integers(0, 3)) == 0:
        argv.insert(1, data.draw(arguments))
    stdin = data.draw(st.sampled_from([b"", b"text\n", b"\xff"]))
    with written_to(place.pipe, "Once there was a cat.\n"):
        outcome = place.run(*argv, stdin=stdin)
    keeps_the_promise(place, outcome, CODES | {1})

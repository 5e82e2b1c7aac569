"""`minigpt explore` as a user meets it: one whole file or none, one line for a mistake."""

from __future__ import annotations

import os
import shlex
import webbrowser
from pathlib import Path

import pytest
from command import Result, call, run, save, tiny

from minigpt.explore import __main__ as explore
from minigpt.explore.settings import command_line
from minigpt.interp.page import load


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(
        tmp_path_factory.mktemp("model"), tiny(n_layer=2, n_head=2, initializer_range=0.5, eos_token_id=None)
    )


@pytest.fixture
def page(tmp_path: Path) -> Path:
    return tmp_path / "page.html"


def made(*flags: object, stdin: bytes = b"") -> Result:
    return call(*flags, stdin=stdin, main=explore.main)


# ------------------------------------------------------------------------------ the file


def test_a_page_of_its_own_process(model: Path, page: Path) -> None:
    result = run(
        "a cat", "-o", page, "--model", model, "--max-new-tokens", 4, python=("-m", "minigpt.explore")
    )
    assert (result.code, result.out) == (0, "")
    assert result.err == f"minigpt.explore: {page}: 9 tokens, {page.stat().st_size / 1e6:.1f} MB\n"
    data = load(page)
    assert data["runs"][0]["prompt"] == "a cat"
    assert data["provenance"]["model"] == str(model)
    assert sorted(file.name for file in page.parent.iterdir()) == ["page.html"]


def test_the_same_flags_give_the_same_bytes_wherever_they_are_written(model: Path, tmp_path: Path) -> None:
    files = [tmp_path / "one.html", tmp_path / "two.html"]
    for file, more in zip(files, ([], ["--quiet", "--top_k=50"]), strict=True):
        flags = ("a cat", "--model", model, "--seed", 3, "-o", file, *(more or ["--top-k=50"]))
        assert made(*flags).code == 0
    assert files[0].read_bytes() == files[1].read_bytes()


def test_every_flag_of_a_strategy_is_there(model: Path, page: Path) -> None:
    flags = ("--num-beams", 3, "--length-penalty", 0.5, "--repetition-penalty", 1.2, "--max-new-tokens", 3)
    assert made("a", "-o", page, "--model", model, *flags).code == 0
    (beams,) = load(page)["runs"]
    assert beams["beams"]["steps"]
    flags = ("--temperature", 0.7, "--top-p", 0.9, "--max-new-tokens", 3)
    result = made("a", "-o", page, "--model", model, *flags)
    data = load(page)
    assert data["runs"][0]["sampling"]["temperature"] == 0.7
    assert f", seed {data['provenance']['seed']}\n" in result.err
    assert data["provenance"]["command"].endswith(
        f"--top-p 0.9 --max-new-tokens 3 --seed {data['provenance']['seed']}"
    )


def test_the_command_on_the_page_makes_it_again(model: Path, tmp_path: Path) -> None:
    first, again = tmp_path / "first.html", tmp_path / "again.html"
    made("a 'cat'", "-o", first, "--model", model, "--top-p", 0.9)
    command = load(first)["provenance"]["command"]
    assert made(*shlex.split(command)[2:], "-o", again).code == 0
    texts = [load(file)["runs"][0]["tokens"] for file in (first, again)]
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    ("argv", "kept"),
    [
        (["a", "-o", "x.html", "--open", "--quiet"], "a"),
        (["--output=x.html", "a", "--open"], "a"),
        (["-ox.html", "a"], "a"),
        (["a b", "--compare=-o", "-o", "x.html"], "'a b' --compare=-o"),
        (["--top_k", "2", "-o", "x.html", "--", "-o"], "--top-k 2 -- -o"),
    ],
)
def test_what_changes_no_page_is_left_out_of_its_command(argv: list[str], kept: str) -> None:
    assert command_line(argv, None) == f"minigpt explore {kept}"


def test_two_prompts(model: Path, page: Path) -> None:
    assert made("a cat", "-o", page, "--model", model, "--compare", "a dog", "--max-new-tokens", 0).code == 0
    assert [run["text"] for run in load(page)["runs"]] == ["a cat", "a dog"]


def test_prompts_from_a_file_and_from_stdin(model: Path, page: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("né\r\n".encode())
    flags = ("-o", page, "--model", model, "--max-new-tokens", 0)
    for asked, stdin in (
        (["-f", tmp_path / "a.txt"], b""),
        (["-f", "-"], "né\n".encode()),
        (["-"], "né".encode()),
    ):
        assert made(*asked, *flags, stdin=stdin).code == 0
        assert load(page)["runs"][0]["text"] == "né"
    piped = run(*flags, stdin="né".encode(), python=("-m", "minigpt.explore"))
    assert piped.code == 0
    assert load(page)["runs"][0]["text"] == "né"


def test_an_empty_prompt_is_the_end_token(model: Path, page: Path) -> None:
    assert made("", "-o", page, "--model", model, "--max-new-tokens", 1).code == 0
    assert load(page)["runs"][0]["pieces"][0] == "<|endoftext|>"


def test_dropped_tokens_are_said(model: Path, page: Path) -> None:
    result = made("x" * 40, "-o", page, "--model", model, "--overflow", "truncate", "--max-new-tokens", 3)
    assert result.err.startswith("minigpt.explore: left out the 10 oldest of 40 prompt tokens\n")
    assert made("x", "-o", page, "--model", model, "--quiet").err == ""


def test_a_newline_in_plain_quotes_is_remarked_on(model: Path, page: Path) -> None:
    flags = ("x", "-o", page, "--model", model, "--max-new-tokens", 1, "--stop", r"\n")
    assert "--stop '\\\\n' has a backslash and a letter in it" in made(*flags).err
    assert made(*flags, "--quiet").err == ""


def test_markup_in_a_prompt_stays_text(model: Path, page: Path) -> None:
    nasty = "</script><!--"
    assert (
        made(nasty, "-o", page, "--model", model, "--max-new-tokens", 0, "--compare", "\u2028__proto__").code
        == 0
    )
    assert page.read_text(encoding="utf-8").count("</script>") == 2
    assert [run["prompt"] for run in load(page)["runs"]] == [nasty, "\u2028__proto__"]


def test_an_argument_that_is_not_utf_8(model: Path, page: Path) -> None:
    flags = (b"\xff\xfe", "-o", str(page), "--model", str(model), "--max-new-tokens", "0")
    result = run(*map(os.fsdecode, flags), python=("-m", "minigpt.explore"))  # type: ignore[arg-type]
    assert result.code == 0, result.err
    assert load(page)["runs"][0]["text"] == "\ufffd\ufffd"


# ------------------------------------------------------------------------------ the browser


@pytest.mark.parametrize("opens", [True, False])
def test_the_browser_is_opened_if_asked(
    model: Path, page: Path, monkeypatch: pytest.MonkeyPatch, opens: bool
) -> None:
    shown: list[str] = []

    def open_(address: str) -> bool:
        assert page.exists()
        shown.append(address)
        return opens

    monkeypatch.setattr(webbrowser, "open", open_)
    flags = ("a", "-o", page, "--model", model, "--max-new-tokens", 0)
    assert made(*flags).code == 0
    assert not shown
    result = made(*flags, "--open")
    assert (result.code, shown) == (0, [page.as_uri()])
    assert (f"there is no browser to open: open {page} yourself" in result.err) is not opens


# ------------------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["x" * 33], 4, "the prompt has 33 tokens"),
        (["x" * 33, "--max-new-tokens", 0], 4, "the prompt has 33 tokens"),
        (["a", "--max-new-tokens", 33], 4, "the prompt has 1 token and needs 33 positions with 33 new ones"),
        (["a", "--max-new-tokens", -1], 2, "--max-new-tokens must be at least 0, got -1"),
        (["a", "--num-return-sequences", 2], 2, "--num-return-sequences must be 1, got 2"),
        (["a", "--compile"], 2, "--compile hides what the layers compute inside"),
        (["a", "--overflow", "slide"], 2, "invalid choice: 'slide'"),
        (["a", "--stop", ""], 2, "--stop needs at least one character, got ''"),
        (["-f", "b.txt", "-o", "b.txt"], 2, "--output b.txt is the file of --file: name another file"),
        (["a", "-f", "b.txt"], 2, "the prompt is given twice, as PROMPT and with --file"),
        (["-", "-f", "-"], 2, "the prompt is given twice"),
        (["a", "--top-p", 2], 2, "--top-p"),
        (["a", "--top-k", 2, "--num-beams", 2, "--strategy", "greedy"], 2, "is not supported by greedy"),
        (["a", "--max-tokens", 2], 2, "use --max-new-tokens"),
        (["a", "--dpi", 2], 2, "unrecognized arguments: --dpi"),
        (["-f", "missing.txt"], 2, "--file missing.txt cannot be read"),
        (["a", "--model", "nowhere/"], 3, "nowhere"),
    ],
)
def test_mistakes_are_one_line_and_leave_no_file(
    model: Path, page: Path, flags: list[object], code: int, message: str
) -> None:
    result = made("-o", page, "--model", model, *flags)
    assert result.code == code, result.err
    assert message in result.mistake
    assert not list(page.parent.iterdir())


def test_the_file_is_required(model: Path) -> None:
    result = made("a", "--model", model)
    assert result.code == 2
    assert "the following arguments are required: -o/--output" in result.mistake


@pytest.mark.parametrize("name", ["no/page.html", ".", "/dev/null"])
def test_files_that_cannot_be_written_are_refused_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = made("a", "-o", name, "--model", "there is no such model")  # which would be code 3
    assert result.code == 2
    assert f"--output {name}" in result.mistake.replace("'", "")


def test_an_older_page_stands_where_writing_fails(
    model: Path, page: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page.write_text("old")

    def fail(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("minigpt.interp.page.page.replace_text", fail)
    result = made("a", "-o", page, "--model", model)
    assert (result.code, result.mistake) == (1, f"--output {page}: No space left on device")
    assert page.read_text() == "old"


def test_ctrl_c_leaves_no_file(model: Path, page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: object, **more: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("minigpt.interp.page.data.observe", interrupt)
    assert made("a", "-o", page, "--model", model) == (130, "", "")
    assert not list(page.parent.iterdir())

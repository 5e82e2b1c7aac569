"""What README.md shows, runs."""

import io
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import minigpt
from minigpt.generate import __main__ as generate

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
COMMANDS = re.findall(r"^(?:\.venv/bin/)?python -m minigpt\.generate (.*)$", README, re.MULTILINE)
PACKAGE = Path(minigpt.__file__).parent


def test_there_are_examples_to_run():
    assert len(PYTHON) >= 3
    assert len(COMMANDS) >= 3


def test_the_python_runs_in_order(capsys):
    names = {}
    for block in PYTHON:
        if "class Contrarian" not in block:
            exec(compile(block, "README.md", "exec"), names)
    assert capsys.readouterr().out
    pattern = names["seen"][0]
    assert pattern.sum(-1).allclose(pattern.new_ones(()))


@pytest.mark.parametrize("command", [c for c in COMMANDS if "--model" not in c and "contrarian" not in c])
def test_the_commands_write_text(command, capfdbinary, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"Once upon a time\n")))
    assert generate.main(shlex.split(command)) == 0
    assert capfdbinary.readouterr().out.strip()


def test_the_strategy_that_it_teaches_works_by_adding_its_file(tmp_path):
    (source,) = [block for block in PYTHON if "class Contrarian" in block]
    shutil.copytree(PACKAGE, tmp_path / "minigpt")
    shutil.copytree(PACKAGE.parent / "weights", tmp_path / "weights")
    (tmp_path / "minigpt/sampler/strategies/contrarian.py").write_text(source)
    (command,) = [c for c in COMMANDS if "contrarian" in c]

    def run(*flags):
        command = [sys.executable, "-m", "minigpt.generate", *flags]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout

    batch = run(*shlex.split(command), "-p", "The king", "--json")
    assert batch.count('"strategy": "contrarian"') == 2
    assert run(*shlex.split(command), "--stream") == run(*shlex.split(command))
    assert run("Once upon a time") == run("Once upon a time", "--strategy", "contrarian", "--rank", "1")
    assert "--rank N" in run("--help")

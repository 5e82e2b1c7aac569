"""Adding a strategy touches one file: those of docs/new-strategy.md, put into a copy of the package, work at once."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command import ROOT, reciter, save

import minigpt

PAGE = (ROOT / "docs" / "new-strategy.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"```python\n# minigpt/sampler/strategies/(\w+)\.py\n(.*?)```", PAGE, re.DOTALL))
COMMANDS = re.findall(r'^minigpt generate "Once upon a time" (.*)$', PAGE, re.MULTILINE)
NAMES = {"contrarian": "Contrarian", "annealed-typical": "AnnealedTypical", "lookahead": "Lookahead"}
STEPS = {"contrarian": "", "annealed-typical": "annealing, typical", "lookahead": "lookahead -"}
EACH = pytest.mark.parametrize("name", NAMES)
SUITE = ROOT / "tests" / "unit" / "sampler" / "test_every_strategy.py"
ASK = """
import sys
from minigpt.sampler.registry import find, name_of
for name in sys.argv[1:]:
    strategy = find(name)
    print(strategy.__name__, name_of(strategy))
assert "torch" not in sys.modules, "the command line asks for names before it needs torch"
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package and the page's files, and a model that knows "one two three." by heart."""
    folder = tmp_path_factory.mktemp("copy")
    package = Path(minigpt.__file__).parent
    shutil.copytree(package, folder / "minigpt", ignore=shutil.ignore_patterns("__pycache__", "_bundled"))
    for name, code in FILES.items():
        (folder / "minigpt" / "sampler" / "strategies" / f"{name}.py").write_text(code, encoding="utf-8")
    save(folder / "model", reciter("one two three."))
    return folder


def python(copy: Path, *command: str) -> tuple[str, str]:
    environment = os.environ | {"PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command], cwd=copy, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, done.stderr


def generate(copy: Path, *flags: str) -> tuple[str, str]:
    return python(copy, "-m", "minigpt.generate", "--model", "model", "--max-new-tokens", "5", *flags)


def test_the_page_has_three_files() -> None:
    assert set(FILES) == {name.replace("-", "_") for name in NAMES}
    assert len(COMMANDS) == 3


def test_a_new_file_is_a_new_strategy(copy: Path) -> None:
    out, _ = python(copy, "-c", ASK, *NAMES)
    assert out.splitlines() == [f"{kind} {name}" for name, kind in NAMES.items()]


def test_they_pass_what_every_strategy_must(copy: Path) -> None:
    rules = len(re.findall(r"^@EVERY$", SUITE.read_text(encoding="utf-8"), re.MULTILINE))
    chosen = " or ".join(NAMES)
    out, _ = python(copy, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", chosen, str(SUITE))
    assert f"{3 * rules} passed" in out
    assert rules > 10


@EACH
def test_the_command_line_knows_it_and_explains_its_steps(copy: Path, name: str) -> None:
    flags = ["--strategy", name, "--json", "--explain", "-p", "one ", "-p", "one two "]
    out, _ = generate(copy, *flags)
    records = [json.loads(line) for line in out.splitlines()]
    assert {record["strategy"] for record in records} == {name}
    for record in records:
        stages = [[stage["stage"] for stage in told["stages"]] for told in record["explanation"]]
        assert stages == len(record["tokens"]) * [
            {"contrarian": [], "annealed-typical": ["Annealing", "Typical"], "lookahead": ["lookahead"]}[name]
        ]
    _, table = generate(copy, "--strategy", name, "--explain", "one ")
    assert STEPS[name] in table


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_of_the_page_run(copy: Path, command: str) -> None:
    out, _ = generate(copy, *command.split(), "--prompt", "one ")
    assert out


def test_greedy_by_pairs_recites_too(copy: Path) -> None:
    """Where one text is known by heart, the first rank, pairs and the likeliest token agree."""
    for flags in (["--strategy", "lookahead"], ["--strategy", "contrarian", "--rank", "1"]):
        assert generate(copy, "one ", "--stream", *flags)[0] == "two t\n"
    assert "--annealing-steps N" in generate(copy, "--help")[0]

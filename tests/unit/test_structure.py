"""Who may import whom: the seams of the package are its files."""

import ast
import sys
from pathlib import Path

import pytest

import minigpt

PACKAGE = Path(minigpt.__file__).parent
COMMANDS = {
    "generate", "merge_lora", "score", "train", "train_tokenizer", "options", "cli", "figures",
    "detect_watermark", "compare",
}  # fmt: skip
PARTS_OF_COMMANDS = {"comparison", "console"}  # folders
MAY_IMPORT = {
    "config": set(),
    "files": set(),
    "vocabulary": set(),
    "merges": set(),
    "tokenizer": {"files", "merges", "vocabulary", "hub"},  # hub inside `from_pretrained` alone
    "alphabets": {"merges", "tokenizer", "vocabulary"},
    "hub": set(),
    "linear": set(),
    "cache": {"config"},
    "attention": {"cache", "config", "linear"},
    "weights": {"config"},
    "model": {"attention", "cache", "config", "files", "hub", "linear", "weights"},
    "pretrained": {"hub", "model", "tokenizer"},
    "scoring": {"cache"},
    "last_word": {"scoring"},
    "progress": set(),
    "plot": {"files"},
    "lattice": {"files", "sampler"},
    "explain": {"sampler"},
}
FILES = sorted(PACKAGE.rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Our own modules that a file imports at run time, by the first part of their name."""
    found = set()
    for node in ast.walk(_without_type_checking(ast.parse(path.read_text()))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("minigpt"):
            part = node.module.split(".")[1:2]
            found |= set(part) if part else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("minigpt.")}
    return found


def _without_type_checking(tree: ast.Module) -> ast.Module:
    tree.body = [
        n for n in tree.body if not (isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test))
    ]
    return tree


@pytest.mark.parametrize("module", MAY_IMPORT)
def test_a_module_imports_only_what_the_design_allows(module):
    assert imported(PACKAGE / f"{module}.py") <= MAY_IMPORT[module]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_module_has_its_rule(path):
    assert path.parent != PACKAGE or path.stem in {*MAY_IMPORT, *COMMANDS, "__init__"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_imports_a_command(path):
    if path.stem not in COMMANDS and path.parent.name not in PARTS_OF_COMMANDS:
        assert not imported(path) & COMMANDS


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_training_and_commands_know_of_training(path):
    if path.stem not in COMMANDS and path.parent.name != "training":
        assert "training" not in imported(path)


@pytest.mark.parametrize("path", sorted((PACKAGE / "sampler").rglob("*.py")), ids=lambda path: path.stem)
def test_the_sampler_sees_no_model_but_through_its_protocol(path):
    assert imported(path) <= {"sampler"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_module_is_named_after_one_of_the_standard_library(path):
    assert path.stem == "__init__" or path.stem not in sys.stdlib_module_names


def test_public_names_are_there_and_no_others_are_promised():
    assert {name for name in minigpt.__all__ if getattr(minigpt, name)} == set(minigpt.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'gpt3'"):
        _ = minigpt.gpt3

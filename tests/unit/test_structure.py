"""Who may import whom: the seams of the package are its files and folders."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

import minigpt

PACKAGE = Path(minigpt.__file__).parent
MODEL = {"config", "cache", "attention", "kernels", "linear", "model", "quantization", "weights"}
COMMANDS = {
    "compare", "detect_watermark", "explore", "generate", "info", "merge_lora", "quantize", "score", "train",
    "train_tokenizer", "verify",
}  # fmt: skip
MAY_IMPORT = {
    "config": {"json_files"},
    "json_files": set(),
    "lazy": set(),
    "errors": set(),
    "options": {"errors"},
    "atomic": set(),
    "hub": {"json_files", "lazy"},
    "kernels": set(),
    "linear": {"kernels"},
    "cache": {"config"},
    "attention": {"cache", "config", "linear"},
    "quantization": {"linear", "quantization"},
    "weights": {"config", "json_files", "kernels"},
    "model": {
        "attention",
        "atomic",
        "cache",
        "config",
        "hub",
        "kernels",
        "linear",
        "quantization",
        "weights",
    },
    "pretrained": {"hub", "model", "tokenizer"},
    "tokenizer": {"atomic", "hub", "json_files", "tokenizer"},
    "data": {"atomic", "cli", "data", "json_files", "tokenizer"},
    "sampler": {"atomic", "errors", "json_files", "lazy", "options", "sampler"},
    "evaluation": {"cache", "evaluation", "lazy", "options", "sampler"},
    "interp": {"atomic", "attention", "cache", "cli", "config", "interp", "linear", "model", "tokenizer"},
}
FILES = sorted(PACKAGE.rglob("*.py"))


def place(path: Path) -> str:
    """The module or folder at the package's top that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Our own modules and folders at the package's top that a file imports at run time."""
    names = set()
    for node in ast.walk(_without_type_checking(ast.parse(path.read_text(encoding="utf-8")))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("minigpt"):
            part = node.module.split(".")[1:2]
            names |= set(part) if part else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("minigpt.")}
    return names


def _without_type_checking(tree: ast.Module) -> ast.Module:
    tree.body = [
        n for n in tree.body if not (isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test))
    ]
    return tree


def each(paths: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", paths, ids=lambda path: str(path.relative_to(PACKAGE)))


@each([path for path in FILES if place(path) in MAY_IMPORT])
def test_a_module_imports_only_what_the_design_allows(path: Path) -> None:
    assert imported(path) <= MAY_IMPORT[place(path)]


@each([path for path in FILES if place(path) not in COMMANDS | {"__main__"}])
def test_nothing_imports_a_command(path: Path) -> None:
    assert not imported(path) & COMMANDS


@each([path for path in FILES if place(path) in MODEL])
def test_the_model_knows_nothing_above_it(path: Path) -> None:
    assert not imported(path) & {"sampler", "interp", "training", "data", "evaluation", "cli"}


@each(FILES)
def test_no_module_is_named_after_one_of_the_standard_library(path: Path) -> None:
    assert path.stem in ("__init__", "__main__") or path.stem not in sys.stdlib_module_names


def test_at_most_twenty_modules_stand_at_the_top() -> None:
    modules = [path for path in PACKAGE.glob("*.py") if not path.stem.startswith("__")]
    assert len(modules) <= 20


def test_public_names_are_there_and_no_others_are_promised() -> None:
    assert {name for name in minigpt.__all__ if getattr(minigpt, name)} == set(minigpt.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'gpt3'"):
        _ = minigpt.gpt3  # type: ignore[attr-defined]

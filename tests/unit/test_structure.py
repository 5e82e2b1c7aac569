"""Who may import whom: the seams of the package are its files and folders."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

import minigpt
from minigpt.legacy.moved_modules import MOVED

PACKAGE = Path(minigpt.__file__).parent
MODEL = {
    "attention", "cache", "config", "inference", "kernels", "linear", "model", "quantization", "weights",
}  # fmt: skip
COMMANDS = {
    "compare", "detect_watermark", "explore", "generate", "info", "merge_lora", "quantize", "score", "train",
    "train_tokenizer", "verify",
}  # fmt: skip
MAY_IMPORT = {
    "config": {"json_files"},
    "json_files": set(),
    "lazy": set(),
    "legacy": {"legacy"},
    "errors": set(),
    "options": {"errors", "json_files"},
    "right_names": {"errors"},
    "atomic": {"errors"},
    "hub": {"errors", "json_files", "lazy"},
    "kernels": {"atomic", "kernels"},
    "linear": {"kernels"},
    "cache": {"config", "json_files", "kernels"},
    "attention": {"cache", "config", "linear"},
    "inference": {"attention", "cache", "inference", "kernels", "linear", "quantization"},
    "quantization": {"errors", "inference", "kernels", "linear", "quantization"},
    "weights": {"config", "json_files", "kernels"},
    "model": {
        "attention",
        "atomic",
        "cache",
        "config",
        "errors",
        "hub",
        "inference",
        "json_files",
        "kernels",
        "linear",
        "quantization",
        "weights",
    },
    "pretrained": {"cli", "config", "errors", "hub", "json_files", "model", "right_names", "tokenizer"},
    "tokenizer": {"atomic", "hub", "json_files", "tokenizer"},
    "data": {"atomic", "cli", "data", "json_files", "tokenizer"},
    "sampler": {"atomic", "errors", "json_files", "lazy", "options", "right_names", "sampler"},
    "jobs": {"atomic", "cli", "data", "errors", "hub", "jobs", "json_files", "lazy", "options", "tokenizer"},
    "evaluation": {"cache", "evaluation", "json_files", "lazy", "options", "sampler"},
    "interp": {
        "atomic",
        "attention",
        "cache",
        "cli",
        "config",
        "errors",
        "interp",
        "json_files",
        "linear",
        "model",
        "right_names",
        "sampler",
        "tokenizer",
    },
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


# Imports inside functions, by file, each with its reason. Optional packages are imported where they are used.
OPTIONAL = {
    "llguidance",
    "matplotlib",
    "mauve",
    "readline",
    "tensorboard",
    "tokenizers",
    "torch.utils.tensorboard",
}
LOCAL_IMPORTS = {
    "compare/report.py": "compare.plot imports matplotlib, an optional package",
    "explore/__main__.py": "the page imports torch, and --help need not wait for it",
    "inference/graphed_step.py": "inference.fused_step imports triton, which torch brings only where there may be a GPU",
    "tokenizer/__init__.py": "hub imports the hub's client, which a tokenizer at hand does not need",
    "training/report.py": "training.loss_curve imports matplotlib, an optional package",
    "verify/__main__.py": "all checks import torch, and --help need not wait for it",
}


@each([path for path in FILES if str(path.relative_to(PACKAGE)) not in LOCAL_IMPORTS])
def test_imports_stand_at_the_top(path: Path) -> None:
    functions = [
        node for node in ast.walk(_parsed(path)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    local = {name for function in functions for name in _modules(function)}
    assert local <= OPTIONAL


def _parsed(path: Path) -> ast.Module:
    return _without_type_checking(ast.parse(path.read_text(encoding="utf-8")))


def _modules(tree: ast.AST) -> set[str]:
    """All that is imported anywhere below, by its full name: `from a.b import c` is a.b and a.b.c."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {
                node.module,
                *(f"{node.module}.{alias.name}" for alias in node.names if node.module.startswith("minigpt")),
            }
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


def _name(path: Path) -> str:
    parts = ("minigpt", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _ancestors(module: str) -> set[str]:
    """The packages that are imported before a module: those it lies in."""
    parts = module.split(".")
    return {".".join(parts[:n]) for n in range(1, len(parts))}


def test_no_module_imports_itself_by_a_detour() -> None:
    """While they are imported; what functions import, or types alone need, makes no cycle."""
    modules = {_name(path): path for path in FILES}
    imports: dict[str, set[str]] = {}
    for name, path in modules.items():
        tree = _parsed(path)
        tree.body = [node for node in tree.body if not isinstance(node, ast.FunctionDef | ast.ClassDef)]
        direct = _modules(tree) & modules.keys()
        packages = {package for module in direct for package in _ancestors(module)}
        imports[name] = (direct | packages) - {name} - _ancestors(name)
    done: set[str] = set()
    while ready := {name for name, needed in imports.items() if name not in done and needed <= done}:
        done |= ready
    cyclic = {name: sorted(needed - done) for name, needed in imports.items() if name not in done}
    assert not cyclic


def test_at_most_twenty_modules_stand_at_the_top() -> None:
    modules = [path for path in PACKAGE.glob("*.py") if not path.stem.startswith("__")]
    assert len(modules) <= 20


def test_public_names_are_there_and_no_others_are_promised() -> None:
    assert {name for name in minigpt.__all__ if getattr(minigpt, name)} == set(minigpt.__all__)
    with pytest.raises(AttributeError, match=r"has no attribute 'gpt3'$"):
        _ = minigpt.gpt3  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match=r"has no attribute 'Sample': it is minigpt\.sampler\.Sample$"):
        _ = minigpt.Sample  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("package", "name", "place"),
    [("minigpt", "Sample", "minigpt.sampler.Sample"), ("minigpt", "complete_many", "minigpt.sampler.complete_many"),
     ("minigpt.sampler", "PromptRow", "minigpt.PromptRow"), ("minigpt.training", "load", "minigpt.load")],
)  # fmt: skip
def test_a_name_imported_from_another_package_is_answered_with_where_it_is(
    package: str, name: str, place: str
) -> None:
    with pytest.raises(ImportError, match=f"^cannot import name '{name}' from '{package}': it is {place}$"):
        exec(f"from {package} import {name}")


def test_a_name_that_is_nowhere_is_answered_as_python_does() -> None:
    with pytest.raises(ImportError, match=r"^cannot import name 'gpt3' from 'minigpt' \("):
        exec("from minigpt import gpt3")


FRESH = """
import minigpt, sys
assert "minigpt.sampler" not in sys.modules and "torch" not in sys.modules
print(minigpt.sampler.Sample.__name__, minigpt.training.train.__name__, minigpt.interp.record.__name__)
from minigpt.sampler import Grammar, complete
assert complete is minigpt.complete
from minigpt import explore, generate, quantize, train
for command in (explore, generate, quantize, train):
    try:
        command(data="tale.txt")
    except TypeError as error:
        print(error)
"""


def test_packages_are_attributes_and_commands_that_are_called_name_the_function() -> None:
    done = subprocess.run([sys.executable, "-c", FRESH], capture_output=True, text=True, check=True)
    names, *answers = done.stdout.splitlines()
    assert names == "Sample train record"
    assert [answer.partition(" is the command; in Python: ")[0] for answer in answers] == [
        "minigpt.explore", "minigpt.generate", "minigpt.quantize", "minigpt.train",
    ]  # fmt: skip
    assert answers[-1].endswith("in Python: from minigpt.training import train")


@pytest.mark.parametrize("module", MOVED)
def test_a_module_of_version_0_1_is_answered_with_where_it_is_now(module: str) -> None:
    there = [f"minigpt.{place}" for place in MOVED[module].split(" and minigpt.")]
    assert all(find_spec(place) for place in there)
    with pytest.raises(
        ModuleNotFoundError, match=f"^minigpt.{module} has moved: it is {' and '.join(there)}$"
    ):
        import_module(f"minigpt.{module}")

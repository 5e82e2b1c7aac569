"""`minigpt COMMAND ...`: the table of commands."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module

from minigpt import __version__
from minigpt.cli import BAD_FLAGS, DONE, INTERRUPTED
from minigpt.cli.terminal import write_err, write_out

COMMANDS = {
    "generate": "generate text with GPT-2",
    "train": "train or fine-tune a model",
    "score": "loss, perplexity and bits per byte of texts; LAMBADA accuracy",
    "compare": "run decoding strategies side by side, and measure them",
    "explore": "make a page that shows attention, layers, sampling and beams of a text",
    "info": "parameters, context length, vocabulary, memory and file hashes of a model",
    "verify": "check that a loaded model computes what its files say",
    "train-tokenizer": "train a GPT-2-style tokenizer",
    "quantize": "save a model with 8-bit or 16-bit weights",
    "merge-lora": "merge a LoRA adapter into its base model",
    "detect-watermark": "detect the watermark of generated text",
}
# What commands are called elsewhere.
MEANT = {
    **dict.fromkeys(("sample", "complete"), "generate"),
    **dict.fromkeys(("chat", "repl", "interactive"), "generate -i"),
    **dict.fromkeys(("finetune", "fine-tune"), "train"),
    **dict.fromkeys(("eval", "evaluate", "perplexity"), "score"),
}
PACKAGES = {"generate", "compare", "explore", "score", "verify"}  # commands of several files


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command that the first argument names; the exit code."""
    command, *rest = [*(sys.argv[1:] if argv is None else argv)] or ["--help"]
    if command in ("--help", "-h", "help") and rest:
        command, rest = rest[0], ["--help"]
    if command in ("--help", "-h", "help"):
        write_out(usage())
        return DONE
    if command == "--version":
        write_out(f"minigpt {__version__}\n")
        return DONE
    name = command.replace("_", "-")
    if name not in COMMANDS:
        write_err(
            f"minigpt: there is no command {command!r}{_advice(name, command)}; commands: {', '.join(COMMANDS)}\n"
        )
        return BAD_FLAGS
    path = "minigpt." + name.replace("-", "_") + (".__main__" if name in PACKAGES else "")
    try:
        module = import_module(path)
    except KeyboardInterrupt:  # from here on, the command itself takes care of it
        return INTERRUPTED
    code: int = module.main(rest)
    return code


def _advice(name: str, command: str) -> str:
    """What was probably meant: something of a similar name, or, as in version 0.1, a text or flags of `generate`."""
    if name in MEANT:
        return f" (use minigpt {MEANT[name]})"
    if near := get_close_matches(name, COMMANDS, n=1, cutoff=0.75):
        return f" (did you mean minigpt {near[0]}?)"
    if near := get_close_matches(f"--{name.lstrip('-')}", ["--help", "--version"], n=1, cutoff=0.75):
        return f" (did you mean minigpt {near[0]}?)"
    text = f"{command} ..." if command.startswith("-") else f'"{command}"'
    return f" (a text is continued by: minigpt generate {text})"


def usage() -> str:
    """What `minigpt --help` prints."""
    rows = "".join(f"  {name:17} {text}\n" for name, text in COMMANDS.items())
    return (
        f"usage: minigpt COMMAND ...\n\nGPT-2 from scratch in PyTorch (version {__version__})\n\ncommands:\n{rows}"
        "\nminigpt COMMAND --help explains a command; python -m minigpt.COMMAND works as well."
        '\nA first text: minigpt generate "Once upon a time" --top-p 0.9 --temperature 0.8\n'
    )


if __name__ == "__main__":
    sys.exit(main())

"""Writing a text together with the model, line by line: `python -m minigpt.generate -i`."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigpt.cli import BAD_FLAGS, DONE, Failure
from minigpt.cli import fields as options
from minigpt.cli.model_flags import ModelFlags
from minigpt.cli.outputs import write_file
from minigpt.cli.terminal import write_err, write_out
from minigpt.generate import settings as flags
from minigpt.generate.session import begin
from minigpt.sampler.registry import name_of
from minigpt.sampler.strategy import Strategy

if TYPE_CHECKING:
    from minigpt.model import GPT2
    from minigpt.tokenizer import Tokenizer

HELP = """Type, and the model goes on from there. What you type is added to the text exactly as it is: begin with
a space for a new word. An empty line lets the model go on, a \\ at a line's end adds a line break and
another line, !! at its beginning stands for !. Ctrl-C stops the text and keeps what was written.

  !set                    show all settings
  !set top_p 0.9          change one, by the name of its flag; several values for one that may be repeated
  !set top_p              back to its default
  !retry                  drop the last continuation and write another
  !back                   take back what you last typed, and what followed
  !show                   the text so far
  !save FILE              write it to a file; with what was typed and the settings if FILE ends in .json
  !save --replace FILE    ... over an older one
  !help                   this
  !quit                   or Ctrl-D: leave
"""
NOT_HERE = {
    "help", "model", "revision", "offline", "device", "dtype", "compile", "threads", "prompt", "file",
    "interactive", "json", "lattice", "logprobs", "output", "replay", "show_beams", "stream",
}  # fmt: skip


@dataclass(frozen=True)
class Turn:
    """What was typed, and what the model wrote after it."""

    typed: str
    written: str


class Repl:
    """A text that grows by turns, and the settings under which it does."""

    def __init__(
        self, args: argparse.Namespace, model: GPT2, tokenizer: Tokenizer, strategy: Strategy
    ) -> None:
        self.args, self.model, self.tokenizer, self.strategy = args, model, tokenizer, strategy
        self.turns: list[Turn] = []
        self._parser = flags.parser()
        self._commands: dict[str, Callable[[list[str]], object]] = {
            "set": self._set, "retry": self._retry, "back": self._back, "show": self._show,
            "save": self._save, "help": lambda words: write_err(HELP),
        }  # fmt: skip

    @property
    def text(self) -> str:
        return _joined(self.turns)

    def run(self, text: str) -> int:
        """Goes on from `text`, if there is some, then with every line that is typed; the exit code."""
        with suppress(ImportError):  # which lets `input` edit lines and remember them
            import readline  # noqa: F401
        if isinstance(sys.stdin, TextIOWrapper):
            sys.stdin.reconfigure(encoding="utf-8", errors="replace")
        if not self.args.quiet:
            _say("type, and the text goes on; !help tells more, Ctrl-D ends")
        line: str | None = text or None
        while True:
            try:
                if line is None:
                    line = _read()
                if line is None or line.strip() == "!quit":
                    return DONE
                self._obey(line)
            except KeyboardInterrupt:
                _say("\nCtrl-D or !quit ends")
            except Failure as failure:
                _say(failure)
            line = None

    def _obey(self, line: str) -> None:
        if not line.startswith("!") or line.startswith("!!"):
            self._go_on(self.turns, line.replace("!!", "!", 1) if line.startswith("!!") else line)
            return
        name, *words = _words(line[1:])
        if name not in self._commands:
            raise Failure(
                BAD_FLAGS, f"there is no !{name}: !help lists what there is, !! begins a text with !"
            )
        self._commands[name](words)

    def _go_on(self, turns: list[Turn], typed: str) -> None:
        """Lets the model continue these turns and what was typed, and makes it the text."""
        session = begin(self.args, self.model, self.tokenizer, self._anew(), [_joined(turns) + typed])
        session.decode()
        made = [completion for *_, completion in session.completions()]
        self.turns = [*turns, Turn(typed, "".join(map(session.text_of, made)))]
        session.show()
        reasons = {completion.finish_reason for completion in made}
        if "eos" in reasons:
            _say("the model ends its text here; it goes on if you do")
        if "overflow" in reasons:
            window = self.model.config.n_positions
            _say(
                f"the model's context length of {window} tokens is full: !set overflow slide goes on, !back makes room"
            )

    def _anew(self) -> Strategy:
        """The strategy, with a seed of its own for each turn unless one was set."""
        renewed: dict[str, Any] = {"seed": None} if self._draws else {}
        return replace(self.strategy, **renewed)

    @property
    def _draws(self) -> bool:
        """Whether the next text is left to chance."""
        return self.args.seed is None and getattr(self.strategy, "seed", None) is not None

    def _last(self) -> Turn:
        if not self.turns:
            raise Failure(BAD_FLAGS, "there is no text yet: type some")
        return self.turns[-1]

    # ------------------------------------------------------------------------------ commands

    def _retry(self, words: list[str]) -> None:
        last = self._last()
        if not self._draws:
            _say(
                "nothing is left to chance, so this will be the same text; !set temperature 1 or !set seed changes that"
            )
        self._go_on(self.turns[:-1], last.typed)

    def _back(self, words: list[str]) -> None:
        self._last()
        self.turns = self.turns[:-1]
        _say(f"back at ...{self.text[-60:]}" if self.turns else "back at the beginning")

    def _show(self, words: list[str]) -> None:
        write_out(self.text + "\n")

    def _save(self, words: list[str]) -> None:
        *replacing, file = words or [""]
        path = Path(file)
        if not file or replacing not in ([], ["--replace"]):
            raise Failure(BAD_FLAGS, "!save takes the name of one file: !save FILE, or !save --replace FILE")
        if not path.parent.is_dir():
            raise Failure(BAD_FLAGS, f"!save {file}: there is no such folder to write into")
        if path.exists() and not (replacing and path.is_file()):
            raise Failure(
                BAD_FLAGS, f"!save {file}: it is there already; take another name, or !save --replace"
            )
        try:
            write_file(file, self._as_json() if path.suffix == ".json" else self.text + "\n")
        except OSError as error:
            raise Failure(BAD_FLAGS, f"!save {file}: {error.strerror or error}") from error
        _say(f"saved {len(self.text)} characters to {file}")

    def _as_json(self) -> str:
        session = {
            "model": self.args.model or "bundled",
            "text": self.text,
            "turns": [asdict(turn) for turn in self.turns],
            "strategy": name_of(type(self.strategy)),
            "settings": {name: value for name, value in self._settings().items() if value is not None},
        }
        return json.dumps(session, ensure_ascii=False, indent=2) + "\n"

    def _set(self, words: list[str]) -> None:
        if not words:
            self._list_settings()
            return
        name, *values = words
        flag = f"--{name.lstrip('-').replace('_', '-')}"
        action = self._parser._option_string_actions.get(flag)
        if action is None:
            raise Failure(BAD_FLAGS, f"there is no {flag}; !set lists what there is")
        if action.dest in NOT_HERE:
            raise Failure(BAD_FLAGS, f"{flag} cannot be set here: leave, and start again with it")
        value = self._parsed(flag, action, values)
        args = argparse.Namespace(**{**vars(self.args), action.dest: value})
        kind = flags.check(args)
        self.strategy = options.build_strategy(
            kind, args, options.Loaded(ModelFlags.of(args), self.tokenizer)
        )
        self.args = args
        told = "not set" if _absent(value) else value
        _say(f"{flag[2:]}: {told}; strategy: {name_of(kind)}")

    def _parsed(self, flag: str, action: argparse.Action, values: list[str]) -> Any:
        """What the command line makes of a flag with these values; its default without any."""
        if len(values) > 1 and not _repeatable(action):
            raise Failure(BAD_FLAGS, f"{flag} takes one value, got {len(values)}")
        if action.nargs != 0:
            given = [f"{flag}={value}" for value in values]
        elif values in ([], ["off"], ["on"]):
            given = [flag] if values == ["on"] else []
        else:
            raise Failure(BAD_FLAGS, f"{flag} is on or off, got {values[0]!r}")
        return getattr(self._parser.parse(given), action.dest)

    def _settings(self) -> dict[str, Any]:
        """Every setting by its flag's name; None where there is none."""
        settings = {
            flag[2:]: getattr(self.args, action.dest)
            for flag, action in self._parser._option_string_actions.items()
            if flag.startswith("--") and action.dest not in NOT_HERE
        }
        return {name: None if _absent(value) else value for name, value in settings.items()}

    def _list_settings(self) -> None:
        settings = self._settings()
        settings["strategy"] = name_of(type(self.strategy))
        width = max(map(len, settings))
        for name, value in settings.items():
            if value is not None:
                _say(f"{name:{width}}  {value}")
        _say(f"not set: {', '.join(name for name, value in settings.items() if value is None)}")


def _absent(value: Any) -> bool:
    return value is None or value is False or value == []


def _repeatable(action: argparse.Action) -> bool:
    return type(action).__name__ == "_AppendAction"


def _joined(turns: list[Turn]) -> str:
    return "".join(turn.typed + turn.written for turn in turns)


def _words(line: str) -> list[str]:
    try:
        return shlex.split(line) or [""]
    except ValueError as error:
        raise Failure(BAD_FLAGS, f"!{line}: {str(error).lower()}") from error


def _read() -> str | None:
    """What is typed up to a line that does not end in a backslash; None where the input ends."""
    typed = _read_line("> ")
    while typed is not None and typed.endswith("\\"):
        typed = typed[:-1] + "\n" + (_read_line(". ") or "")
    return typed


def _read_line(mark: str) -> str | None:
    if sys.stdin.isatty() and sys.stdout.isatty():  # where `input` knows how to edit a line
        with suppress(EOFError):
            return input(mark)
        _say("")
        return None
    write_err(mark)
    line = sys.stdin.readline()
    return line.removesuffix("\n") if line else None


def _say(message: object) -> None:
    write_err(f"{message}\n")

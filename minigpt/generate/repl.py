"""Interactive mode: a person and the model write a text in turns, with `minigpt generate -i`."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigpt.cli import BAD_FLAGS, Failure
from minigpt.cli.outputs import reason, write_file
from minigpt.cli.terminal import write_err, write_out
from minigpt.errors import InvalidRequest
from minigpt.generate.hints import TRAILING_SPACE, ends_in_space
from minigpt.generate.repl_flags import ReplFlags
from minigpt.generate.repl_input import joined, prepare_stdin, read
from minigpt.generate.settings import GenerateSettings
from minigpt.generate.writing import write_texts
from minigpt.json_files import counted
from minigpt.sampler.next_tokens import top
from minigpt.sampler.registry import name_of
from minigpt.sampler.running import with_sliding_window
from minigpt.sampler.strategy import Strategy
from minigpt.tokenizer import Tokenizer

if TYPE_CHECKING:
    from minigpt.model import GPT2

HELP = """Type text, and the model continues it. A line that begins with a word is joined to the text by a space; begin
it with \\ to continue the last word instead. An empty line lets the model go on. A \\ at the end of a line adds a
newline and another line; pasted lines stay together. !! at the beginning of a line stands for !. Ctrl-C stops
the model and keeps what it wrote.

  !set                    show all settings
  !set top_p 0.9          change one, by the name of its flag; several values for a repeatable one
  !set top_p              back to its default
  !retry                  drop the last continuation and generate another
  !undo                   remove what you last typed, and what followed (also: !back)
  !next [N]               the N most likely next tokens (10 by default)
  !show                   the text so far
  !save FILE              write it to a file; with the turns and settings if FILE ends in .json
  !save --replace FILE    ... over an existing one
  !help                   this
  !quit                   or Ctrl-D: leave
"""
N_NEXT = 10
# A line of one of these words alone is meant for the program, not for the text.
PLAIN_WORDS = {"help": "!help", "?": "!help", "quit": "!quit", "exit": "!quit", "undo": "!undo"}


@dataclass(frozen=True)
class Turn:
    """What was typed, as it continues the text, and what the model wrote after it."""

    typed: str
    written: str


class Repl:
    """A text that grows in turns, and the settings under which it does."""

    def __init__(
        self,
        args: argparse.Namespace,
        settings: GenerateSettings,
        model: GPT2,
        tokenizer: Tokenizer,
        strategy: Strategy,
    ) -> None:
        self.args, self.settings, self.strategy = args, settings, strategy
        self.model, self.tokenizer = model, tokenizer
        self.turns: list[Turn] = []
        self._flags = ReplFlags()
        self._commands: dict[str, Callable[[list[str]], object]] = {
            "set": self._set, "retry": self._retry, "undo": self._undo, "back": self._undo, "next": self._next,
            "show": self._show, "save": self._save, "help": lambda words: write_err(HELP),
        }  # fmt: skip

    @property
    def text(self) -> str:
        """The text so far."""
        return _text(self.turns)

    def run(self, text: str) -> None:
        """Continues `text`, if there is some, then every line that is typed, until the input ends."""
        prepare_stdin()
        if not self.settings.quiet:
            say("type text to continue it; !help lists commands, Ctrl-D ends")
        line: str | None = text or None
        while True:
            try:
                if line is None:
                    line = read()
                if line is None or line.strip() == "!quit":
                    return
                self._execute(line)
            except KeyboardInterrupt:
                say("\nCtrl-D or !quit ends")
            except (Failure, InvalidRequest) as error:
                say(error)
            line = None

    def _execute(self, line: str) -> None:
        if line.lower() in PLAIN_WORDS:
            command = PLAIN_WORDS[line.lower()]
            say(
                f"not added to the text: commands begin with !, as in {command}; for the word itself begin with a space"
            )
        elif not line.startswith("!"):
            self._continue(self.turns, joined(self.text, line))
        elif line.startswith("!!"):
            self._continue(self.turns, line[1:])
        else:
            name, *words = _words(line[1:])
            if name not in self._commands:
                hint = self._meant(name)
                raise Failure(
                    BAD_FLAGS, f"there is no !{name}{hint}: !help lists commands, !! begins a text with !"
                )
            self._commands[name](words)

    def _meant(self, name: str) -> str:
        """What was probably meant by a command that there is not, in parentheses; nothing where that is open."""
        if name.replace("_", "-") in self._flags.names:
            return f" (a setting is changed by !set {name} VALUE)"
        near = get_close_matches(name, [*self._commands, "quit"], n=1, cutoff=0.7)
        return f" (did you mean !{near[0]}?)" if near else ""

    def _continue(self, turns: list[Turn], typed: str) -> None:
        """Lets the model continue these turns and what was typed, and makes it the text."""
        if ends_in_space(typed) and not (self.settings.quiet or self.settings.heal):
            say(f"{TRAILING_SPACE}: leave it out for better text, or !set heal on")
        session = write_texts(
            self.settings, self.model, self.tokenizer, self._renewed(), [_text(turns) + typed]
        )
        results = session.results()
        self.turns = [*turns, Turn(typed, "".join(result.text for result in results))]
        reasons = {result.completion.finish_reason for result in results}
        if "eos" in reasons:
            say("end of text reached; press Enter to continue")
        if "overflow" in reasons:
            size = self.model.config.n_positions
            say(
                f"the context length of {size} tokens is reached: !set overflow slide continues, !undo makes room"
            )

    def _renewed(self) -> Strategy:
        """The strategy, with a seed of its own for each turn unless one was set."""
        fresh: dict[str, Any] = {"seed": None} if self._is_random else {}
        return replace(self.strategy, **fresh)

    @property
    def _is_random(self) -> bool:
        """Whether the next text differs from turn to turn."""
        return self.args.seed is None and self.strategy.seed_in_use is not None

    def _last(self) -> Turn:
        if not self.turns:
            raise Failure(BAD_FLAGS, "there is no text yet: type some")
        return self.turns[-1]

    # ------------------------------------------------------------------------------ commands

    def _retry(self, words: list[str]) -> None:
        last = self._last()
        if not self._is_random:
            say(f"the same text again: {self._why_deterministic()}")
        self._continue(self.turns[:-1], last.typed)

    def _why_deterministic(self) -> str:
        if self.strategy.seed_in_use is not None:
            return f"the seed is fixed at {self.args.seed}; `!set seed` removes it"
        return f"{name_of(type(self.strategy))} decoding is deterministic; `!set temperature 1` samples"

    def _undo(self, words: list[str]) -> None:
        self._last()
        self.turns = self.turns[:-1]
        say(f"back at ...{self.text[-60:]}" if self.turns else "back at the beginning")

    def _next(self, words: list[str]) -> None:
        n = words[0] if words else str(N_NEXT)
        if len(words) > 1 or not n.isdecimal() or n == "0":
            raise Failure(BAD_FLAGS, f"!next takes a number of tokens of at least 1, got {' '.join(words)!r}")
        model = with_sliding_window(self.model, self.settings.overflow, self.settings.stride)
        say(top(model, self.tokenizer, self.text, min(int(n), model.config.vocab_size)))

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
                BAD_FLAGS, f"!save {file}: it exists already; take another name, or !save --replace"
            )
        try:
            write_file(file, self._as_json() if path.suffix == ".json" else self.text + "\n")
        except OSError as error:
            raise Failure(BAD_FLAGS, f"!save {file}: {reason(error)}") from error
        say(f"saved {counted(len(self.text), 'characters')} to {file}")

    def _as_json(self) -> str:
        session = {
            "model": self.settings.model.name,
            "text": self.text,
            "turns": [asdict(turn) for turn in self.turns],
            "strategy": name_of(type(self.strategy)),
            "settings": {name: value for name, value in self._listed().items() if value is not None},
        }
        return json.dumps(session, ensure_ascii=False, indent=2) + "\n"

    def _set(self, words: list[str]) -> None:
        if not words:
            self._list_settings()
            return
        args = self._flags.changed(self.args, words[0], words[1:])
        settings = GenerateSettings.of(args)
        self.strategy = settings.strategy.build(settings.model, self.tokenizer)
        self.args, self.settings = args, settings
        name = words[0].lstrip("-").replace("_", "-")
        say(f"{name}: {self._flags.value(args, name)}; strategy: {settings.strategy.name}")

    def _listed(self) -> dict[str, Any]:
        """Every setting by its flag's name; None where it is not set."""
        return self._flags.listed(self.args) | {"overflow": self.settings.overflow}

    def _list_settings(self) -> None:
        listed = self._listed() | {"strategy": name_of(type(self.strategy))}
        width = max(map(len, listed))
        for name, value in listed.items():
            if value is not None:
                say(f"{name:{width}}  {value}")
        say(f"not set: {', '.join(name for name, value in listed.items() if value is None)}")


def _text(turns: list[Turn]) -> str:
    return "".join(turn.typed + turn.written for turn in turns)


def _words(line: str) -> list[str]:
    try:
        return shlex.split(line) or [""]
    except ValueError as error:
        raise Failure(BAD_FLAGS, f"!{line}: {str(error).lower()}") from error


def say(message: object) -> None:
    """A line on stderr."""
    write_err(f"{message}\n")

"""Everything that a beam search looked at, kept to be saved and to be watched again."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile, zip_longest
from pathlib import Path
from typing import Any

from minigpt.atomic import replace_text
from minigpt.json_files import expect, parse, read_whole
from minigpt.sampler.events import BeamExtension, BeamsExtended, Event

FORMAT = "minigpt-lattice-1"


@dataclass(frozen=True)
class BeamText:
    """A text in progress or finished: its new tokens, its score, and why it ended ("" while it goes on)."""

    tokens: tuple[int, ...] = ()
    score: float = 0.0
    finish_reason: str = ""


@dataclass(frozen=True)
class BeamStep:
    """The beams of one prompt after a step: those that go on, and all that are finished, best first.

    >>> start = BeamStep()
    >>> step = start.grown([BeamExtension(0, 7, -0.5, ""), BeamExtension(0, 9, -1.5, "eos")])
    >>> [beam.tokens for beam in step.grown([BeamExtension(0, 8, -0.7, "")]).live]
    [(7, 8)]
    """

    live: tuple[BeamText, ...] = (BeamText(),)
    finished: tuple[BeamText, ...] = ()

    def grown(self, branches: Sequence[BeamExtension]) -> BeamStep:
        """The beams after one more step."""
        beams = [BeamText((*self.live[b.parent].tokens, b.token), b.score, b.finish_reason) for b in branches]
        finished = [*self.finished, *(beam for beam in beams if beam.finish_reason)]
        return BeamStep(
            live=tuple(beam for beam in beams if not beam.finish_reason),
            finished=tuple(sorted(finished, key=lambda beam: -beam.score)),
        )

    def settled(self) -> tuple[int, ...]:
        """The tokens on which all that go on, and the best that is finished, agree."""
        texts = [beam.tokens for beam in (*self.live, *self.finished[:1])]
        return tuple(at[0] for at in takewhile(lambda at: len(set(at)) == 1, zip(*texts, strict=False)))


@dataclass
class Lattice:
    """The beams of a run, step by step, one lattice for each prompt.

    >>> lattice = Lattice([[5]])
    >>> lattice.take(BeamsExtended(0, [BeamExtension(0, 7, -0.5, ""), BeamExtension(0, 9, -1.5, "eos")]))
    >>> [[beam.tokens for beam in step.live] for step in lattice.replay()]
    [[(7,)]]
    """

    prompts: Sequence[Sequence[int]]
    steps: list[list[list[BeamExtension]]] = field(default_factory=list)  # of each prompt, in order
    token_strings: dict[int, str] = field(default_factory=dict)  # when it was saved with a tokenizer

    def __post_init__(self) -> None:
        self.prompts = [list(prompt) for prompt in self.prompts]
        self.steps = self.steps or [[] for _ in self.prompts]

    def take(self, event: Event) -> None:
        """Remembers what happened, if beams have grown."""
        if isinstance(event, BeamsExtended):
            self.steps[event.prompt_index].append(event.beams)

    def events(self) -> Iterator[BeamsExtended]:
        """What was taken, in the order in which it happened."""
        for step in zip_longest(*self.steps):
            yield from (BeamsExtended(i, beams) for i, beams in enumerate(step) if beams is not None)

    def replay(self, prompt_index: int = 0) -> Iterator[BeamStep]:
        """The beams of one prompt after each step."""
        beams = BeamStep()
        for step in self.steps[prompt_index]:
            beams = beams.grown(step)
            yield beams

    def best(self, prompt_index: int = 0) -> BeamText | None:
        """The best finished text, if there is one."""
        *_, last = BeamStep(), *self.replay(prompt_index)
        return next(iter(last.finished), None)

    def text(self, tokens: Sequence[int]) -> str:
        """The text of some tokens, by the strings that were saved; U+FFFD for a token without one."""
        return "".join(self.token_strings.get(token, "\ufffd") for token in tokens)

    def saved(self, prompt_index: int = 0) -> dict[str, Any]:
        """The beams of one prompt as JSON has them; see `save`."""
        steps = [[_saved(beam) for beam in step] for step in self.steps[prompt_index]]
        return {"prompt": self.prompts[prompt_index], "steps": steps}

    def save(self, path: str | os.PathLike[str], token_string: Callable[[int], str] | None = None) -> None:
        """Writes a JSON file atomically.

        Each step is a list of beams, each beam [parent, token, score, finish_reason], in groups but the first
        [parent, token, score, finish_reason, group]; `parent` counts those beams of the step before whose
        finish_reason is "".

        Args:
            path: where to.
            token_string: `Tokenizer.token_string`, to keep what each token stands for.
        """
        strings = self.token_strings
        if token_string:
            used = {token for prompt in self.prompts for token in prompt}
            used |= {branch.token for steps in self.steps for step in steps for branch in step}
            strings = {token: token_string(token) for token in sorted(used)}
        lattices = [self.saved(i) for i in range(len(self.prompts))]
        content = {"format": FORMAT, "lattices": lattices, "token_strings": strings}
        replace_text(Path(path).resolve(), json.dumps(content, ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Lattice:
        """Reads what `save` has written.

        Raises:
            OSError: the file cannot be read.
            ValueError: it is no such file, or a beam refers to a parent that does not exist; the message names the file.
        """
        try:
            content = expect(dict, parse(read_whole(Path(path)), "the file"), "the file")
            if content.get("format") != FORMAT:
                raise ValueError(f'it does not say "format": "{FORMAT}"')
            lattices = _list(content.get("lattices"), "lattices")
            return cls(
                prompts=[_tokens(_field(lattice, "prompt"), "prompt") for lattice in lattices],
                steps=[_steps(_field(lattice, "steps"), f"prompt {i}") for i, lattice in enumerate(lattices)],
                token_strings=_strings(content.get("token_strings")),
            )
        except ValueError as error:
            raise ValueError(f"{path} is no lattice of beams: {error}") from None


def _saved(beam: BeamExtension) -> list[int | float | str]:
    return [beam.parent, beam.token, beam.score, beam.finish_reason, *([beam.group] if beam.group else [])]


def _field(value: Any, name: str) -> Any:
    if not isinstance(value, dict) or name not in value:
        raise ValueError(f"a lattice has no {name}")
    return value[name]


def _list(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{name} is no list, but {value!r:.40}")
    return value


def _tokens(value: Any, name: str) -> list[int]:
    if wrong := [token for token in _list(value, name) if not _count(token)]:
        raise ValueError(f"{name} holds {wrong[0]!r:.40}, which is no token id")
    return list(value)


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _steps(value: Any, where: str) -> list[list[BeamExtension]]:
    steps, parents = [], 1  # the prompt alone
    for number, step in enumerate(_list(value, "steps"), start=1):
        branches = [_branch(beam, parents, f"{where}, step {number}") for beam in _list(step, "a step")]
        steps.append(branches)
        parents = sum(not branch.finish_reason for branch in branches)
    return steps


def _branch(value: Any, parents: int, where: str) -> BeamExtension:
    match value:
        case [parent, token, int() | float() as score, str(reason), *group] if (
            all(map(_count, [parent, token, *group])) and len(group) < 2
        ):
            if parent >= parents:
                raise ValueError(f"{where}: beam {value} has a parent beyond the {parents} that went on")
            return BeamExtension(parent, token, float(score), reason, *group)
    raise ValueError(f"{where}: a beam is [parent, token, score, finish_reason], not {value!r:.60}")


def _strings(value: Any) -> dict[int, str]:
    if not isinstance(value, dict) or not all(
        token.isdecimal() and isinstance(string, str) for token, string in value.items()
    ):
        raise ValueError("token_strings are not strings by token id")
    return {int(token): string for token, string in value.items()}

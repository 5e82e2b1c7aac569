"""The beams of a search, recorded, saved, replayed and drawn."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import struct
import termios
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeModel, Text, scrambled, tiny_gpt2

from minigpt.cli.one_line import fitting_end, visible, width
from minigpt.generate.beam_screen import BeamScreen, frame
from minigpt.sampler import Beam, BeamSample, Completion, Strategy
from minigpt.sampler.api import run
from minigpt.sampler.events import BeamExtension, BeamsExtended, Event, Finished
from minigpt.sampler.lattice import BeamStep, BeamText, Lattice
from minigpt.sampler.requests import prepare
from minigpt.sampler.strategies.constrained import Constrained
from minigpt.sampler.strategies.diverse_beam import DiverseBeam

PROMPTS = [(1, 2, 3), (4,), (5, 6, 0, 7)]
FAMILY: list[Strategy] = [
    Beam(num_beams=1, length_penalty=0.5),
    Beam(num_beams=3),
    Beam(num_beams=4, length_penalty=-1.0, early_stopping=True, no_repeat_ngram_size=2),
    Beam(num_beams=3, length_penalty=2.0, early_stopping="never", repetition_penalty=1.4),
    BeamSample(num_beams=1, seed=2),
    BeamSample(num_beams=3, seed=2),
    DiverseBeam(num_beams=4, num_beam_groups=2),
    DiverseBeam(num_beams=3, num_beam_groups=3, diversity_penalty=2.0),
    Constrained(num_beams=4, must_include=[[3], [5, 6]]),
]
EACH = pytest.mark.parametrize("strategy", FAMILY, ids=range(len(FAMILY)))
MODELS = [FakeModel(scrambled(9), end_tokens=[2, 8]), tiny_gpt2(eos_token_id=[13, 17])]


def recorded(model: Any, strategy: Strategy, n: int = 8) -> tuple[Lattice, list[Event]]:
    lattice, events = Lattice(PROMPTS), []
    for event in run(model, prepare(model, PROMPTS, max_new_tokens=n), strategy):
        lattice.take(event)
        events.append(event)
    return lattice, events


def completions(events: list[Event]) -> dict[int, list[Completion]]:
    return {event.prompt_index: event.completions for event in events if isinstance(event, Finished)}


@EACH
@pytest.mark.parametrize("model", MODELS, ids=["table", "gpt2"])
def test_the_best_path_is_the_text_returned(model: Any, strategy: Strategy) -> None:
    lattice, events = recorded(model, strategy)
    for i, (best, *_) in completions(events).items():
        assert lattice.best(i) == BeamText(tuple(best.tokens), best.score, best.finish_reason)


@EACH
def test_the_beams_that_go_on_are_those_that_the_model_reads_next(strategy: Strategy) -> None:
    read: dict[int, set[Text]] = {}
    rule = scrambled(9)

    def scores(text: Text) -> list[float]:
        read.setdefault(len(text), set()).add(text)
        return rule(text)

    model = FakeModel(scores, end_tokens=[2, 8])
    read.clear()
    lattice = Lattice([(1, 2)])
    for event in run(model, prepare(model, [(1, 2)], max_new_tokens=7), strategy):
        lattice.take(event)
    for length, step in enumerate(lattice.replay(), start=3):
        assert {(1, 2, *beam.tokens) for beam in step.live} == read.get(length, set())
    assert max(read) == length - 1  # after the last step nothing is read


@EACH
def test_a_saved_lattice_is_the_same_when_it_is_loaded(strategy: Strategy, tmp_path: Path) -> None:
    lattice, events = recorded(MODELS[1], strategy)
    lattice.save(tmp_path / "beams.json")
    loaded = Lattice.load(tmp_path / "beams.json")
    assert loaded == lattice
    assert loaded.prompts == [list(prompt) for prompt in PROMPTS]
    assert list(loaded.events()) == [event for event in events if isinstance(event, BeamsExtended)]
    assert [list(loaded.replay(i)) for i in range(3)] == [list(lattice.replay(i)) for i in range(3)]
    assert os.listdir(tmp_path) == ["beams.json"]


def test_a_run_that_was_cut_short_is_saved_as_far_as_it_came(tmp_path: Path) -> None:
    lattice = Lattice(PROMPTS)
    events = run(MODELS[0], prepare(MODELS[0], PROMPTS, max_new_tokens=8), Beam(num_beams=3))
    for _ in range(3):
        lattice.take(next(events))
    lattice.save(tmp_path / "beams.json")
    loaded = Lattice.load(tmp_path / "beams.json")
    assert [len(steps) for steps in loaded.steps] == [1, 1, 0]
    assert loaded.best(2) is None


def test_what_tokens_stand_for_is_saved_too(tmp_path: Path) -> None:
    lattice = Lattice([[65]])
    lattice.take(BeamsExtended(0, [BeamExtension(0, 66, -0.5, ""), BeamExtension(0, 233, -1.5, "eos")]))
    lattice.save(tmp_path / "beams.json", token_string=chr)
    written = json.loads((tmp_path / "beams.json").read_text(encoding="utf-8"))
    assert written == {
        "format": "minigpt-lattice-1",
        "lattices": [{"prompt": [65], "steps": [[[0, 66, -0.5, ""], [0, 233, -1.5, "eos"]]]}],
        "token_strings": {"65": "A", "66": "B", "233": "é"},
    }
    loaded = Lattice.load(tmp_path / "beams.json")
    assert loaded.text([66, 233, 7]) == "Bé\ufffd"
    loaded.save(tmp_path / "again.json")
    assert Lattice.load(tmp_path / "again.json") == loaded


GOOD = {"format": "minigpt-lattice-1", "lattices": [], "token_strings": {}}


def with_steps(*steps: Any) -> dict[str, Any]:
    return {**GOOD, "lattices": [{"prompt": [1], "steps": list(steps)}]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "Expecting value"),
        ("[]", r"the file must hold an object, got \[\]"),
        ({**GOOD, "format": "minigpt-lattice-9"}, 'does not say "format": "minigpt-lattice-1"'),
        ({**GOOD, "lattices": 3}, "lattices is no list, but 3"),
        ({**GOOD, "lattices": [{"prompt": [1]}]}, "a lattice has no steps"),
        ({**GOOD, "lattices": [[]]}, "a lattice has no prompt"),
        ({**GOOD, "lattices": [{"prompt": [1, "a"], "steps": []}]}, "prompt holds 'a', which is no token id"),
        ({**GOOD, "token_strings": {"a": "b"}}, "token_strings are not strings by token id"),
        ({**GOOD, "token_strings": {"1": 2}}, "token_strings are not strings by token id"),
        (with_steps(4), "a step is no list, but 4"),
        (
            with_steps([[0, 1, -0.5]]),
            r"prompt 0, step 1: a beam is \[parent, token, score, finish_reason\], not",
        ),
        (with_steps([[0, -1, -0.5, ""]]), "step 1: a beam is"),
        (with_steps([[0, 1, "x", ""]]), "step 1: a beam is"),
        (with_steps([[1, 1, -0.5, ""]]), "step 1: beam .* has a parent beyond the 1 that went on"),
        (with_steps([[0, 1, -0.5, "eos"]], [[0, 1, -1, ""]]), "step 2: .* beyond the 0 that went on"),
    ],
)
def test_a_file_that_is_no_lattice_is_refused(content: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "beams.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ValueError, match=rf"beams\.json is no lattice of beams: .*{message}") as error:
        Lattice.load(path)
    assert "\n" not in str(error.value)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "beams.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"beams\.json is no lattice of beams: .*not UTF-8"):
        Lattice.load(tmp_path / "beams.json")


# Drawing


def letters(tokens: Any) -> str:
    return "".join(map(chr, tokens))


def beam(text: str, score: float = -1.0, reason: str = "") -> BeamText:
    return BeamText(tuple(map(ord, text)), score, reason)


def test_a_frame_shows_scores_ends_of_texts_and_what_is_settled() -> None:
    beams = BeamStep(
        live=(beam("once upon a time", -0.25), beam("once upon a hill", -12.5)),
        finished=(beam("once more", -0.75, "eos"), beam("never shown", -3), beam("nor this", -4)),
    )
    assert frame(beams, letters, 25, dim=lambda text: f"<{text}>") == [
        "  -0.250  <…ce >upon a time",
        " -12.500  <…ce >upon a hill",
        "  -0.750  [eos] <once >more",
        "  -3.000  <never> shown",
    ]


def test_a_text_whose_character_is_half_settled_is_shown_whole() -> None:
    beams = BeamStep(live=(BeamText((65, 195, 169)), BeamText((65, 195, 168))))
    lines = frame(
        beams, lambda tokens: bytes(tokens).decode(errors="replace"), 40, dim=lambda text: f"<{text}>"
    )
    assert lines == ["   0.000  <A>é", "   0.000  <A>è"]


@pytest.mark.parametrize("columns", range(-1, 40))
def test_no_line_is_wider_than_the_terminal(columns: int) -> None:
    texts = [
        "plain words in a row",
        "山田太郎と申します。",
        "e\u0301e\u0301e\u0301e\u0301" * 5,
        "a\n\n\tb\x1b[2J\u202ec\r\n",
        "",
    ]
    beams = BeamStep(
        live=tuple(beam("so " + text, -1234.5) for text in texts),
        finished=tuple(beam(text, reason="length") for text in texts),
    )
    lines = frame(beams, letters, columns, dim=str)
    assert len(lines) == 10
    for line in lines:
        assert width(line) <= max(0, columns)
        assert line.isprintable()


def test_as_much_is_shown_as_fits() -> None:
    assert fitting_end("山田太郎", 8) == "山田太郎"
    assert fitting_end("山田太郎", 7) == "…田太郎"
    assert fitting_end("ae\u0301o\u0308", 2) == "…o\u0308"
    assert fitting_end("ae\u0301", 1) == "…"
    assert fitting_end("", 0) == ""


def test_nothing_in_a_text_moves_the_cursor() -> None:
    assert visible("a\r\nb\nc\rd\te\x00\x1b[A\x7f\u2028\u200bf") == "a⏎b⏎c·d e··[A···f"


def test_at_the_end_nothing_is_dimmed() -> None:
    beams = BeamStep(live=(), finished=(beam("abc", reason="eos"),))
    assert frame(beams, letters, 40) == ["  -1.000  [eos] abc"]


STEPS = [
    BeamsExtended(0, [BeamExtension(0, 65, -0.5, ""), BeamExtension(0, 66, -1.5, "")]),
    BeamsExtended(0, [BeamExtension(1, 67, -0.25, ""), BeamExtension(0, 68, -0.75, "eos")]),
]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def displayed(written: str) -> list[str]:
    """What a terminal shows after that was written to it: it knows no more codes than those used."""
    lines, row = [""], 0
    for part in written.replace("\x1b[2m", "").replace("\x1b[22m", "").replace("\n", "\n\x1b").split("\x1b"):
        if part == "[J":
            del lines[row + 1 :]
            lines[row] = ""
        elif part.endswith("F") and part[1:-1].isdigit():
            row -= int(part[1:-1])
            assert row >= 0
        else:
            if part.startswith("[2K"):
                part, lines[row] = part[3:], ""
            lines[row] += part.rstrip("\n")
            if part.endswith("\n"):
                row += 1
                lines += [""] * (row == len(lines))
    return [line for line in lines if line]


def test_on_a_terminal_it_is_redrawn_in_place() -> None:
    out = Terminal()
    screen = BeamScreen(out, letters)
    screen.take(STEPS[0])
    assert displayed(out.getvalue()) == ["  -0.500  A", "  -1.500  B"]
    screen.take(STEPS[1])
    screen.take(BeamsExtended(0, [BeamExtension(0, 69, -0.3, "")]))
    screen.take(BeamsExtended(0, [BeamExtension(0, 70, -0.4, "stop")]))
    assert displayed(out.getvalue()) == ["  -0.400  [stop] BCEF", "  -0.750  [eos] AD"]
    screen.close()
    assert displayed(out.getvalue()) == ["  -0.400  [stop] BCEF", "  -0.750  [eos] AD"]


def test_it_never_draws_more_lines_than_there_are() -> None:
    out = Terminal()
    screen = BeamScreen(out, letters)
    for _ in range(2):
        screen.take(BeamsExtended(0, [BeamExtension(0, 65 + i, -i, "") for i in range(26)]))
    assert len(displayed(out.getvalue())) == 23


def test_elsewhere_the_last_beams_are_written_at_the_end() -> None:
    out = io.StringIO()
    screen = BeamScreen(out, letters)
    for step in STEPS:
        screen.take(step)
    assert out.getvalue() == ""
    screen.close()
    assert out.getvalue() == "  -0.250  BC\n  -0.750  [eos] AD\n"


def test_several_prompts_are_told_apart() -> None:
    out = io.StringIO()
    screen = BeamScreen(out, letters)
    screen.take(BeamsExtended(1, [BeamExtension(0, 66, -0.5, "")]))
    screen.take(BeamsExtended(0, [BeamExtension(0, 65, -0.5, "")]))
    screen.close()
    assert out.getvalue() == "prompt 0:\n  -0.500  A\nprompt 1:\n  -0.500  B\n"


def test_a_replay_draws_what_was_drawn_live(tmp_path: Path) -> None:
    strategy = DiverseBeam(num_beams=4, num_beam_groups=2)
    lattice, events = recorded(MODELS[1], strategy)
    live, again = Terminal(), Terminal()
    screen = BeamScreen(live, letters)
    for event in events:
        screen.take(event)
    lattice.save(tmp_path / "beams.json", token_string=chr)
    loaded = Lattice.load(tmp_path / "beams.json")
    screen = BeamScreen(again, loaded.text)
    for event in loaded.events():
        screen.take(event)
    assert again.getvalue() == live.getvalue()


def test_a_real_terminal_says_how_wide_it_is() -> None:
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 10, 20, 0, 0))
    with os.fdopen(follower, "w", encoding="utf-8") as out:
        BeamScreen(out, lambda tokens: "abcdefghijklmnop").take(STEPS[0])
        shown = os.read(leader, 4096).decode()
    os.close(leader)
    assert [line.split()[-1] for line in displayed(shown.replace("\r", ""))] == ["…ijklmnop", "…ijklmnop"]

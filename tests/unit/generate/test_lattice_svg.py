"""A beam search as a picture."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from minigpt.generate.lattice_svg import draw, svg
from minigpt.sampler.events import BeamExtension
from minigpt.sampler.lattice import Lattice

SVG = "{http://www.w3.org/2000/svg}"
# "a" continues with "b" and "c"; "c" with "d", which ends, and "b" is dropped; "e" ends later and is worse.
STEPS = [
    [BeamExtension(0, ord("b"), -1.0, ""), BeamExtension(0, ord("c"), -1.5, "")],
    [BeamExtension(1, ord("d"), -0.5, "eos"), BeamExtension(1, ord("e"), -2.0, "")],
    [BeamExtension(0, ord("f"), -3.0, "length")],
]


def texts(picture: str, kind: str) -> list[str]:
    """The labels with a class, or with none, in the order in which they are drawn."""
    root = ElementTree.fromstring(picture)
    return [
        "".join(t.itertext()).split("score")[-1]
        for t in root.iter(f"{SVG}text")
        if t.get("class", "") == kind
    ]


def test_every_token_is_a_label_and_a_line_to_the_one_before_it() -> None:
    picture = svg(Lattice([[ord("a")]], [STEPS]), chr)
    root = ElementTree.fromstring(picture)
    assert len(list(root.iter(f"{SVG}text"))) == 6
    assert len(list(root.iter(f"{SVG}path"))) == 5


def test_the_path_of_the_best_text_stands_out() -> None:
    best = texts(svg(Lattice([[ord("a")]], [STEPS]), chr), "best")
    assert [label[-len(text) :] for label, text in zip(best, ("a", "c", "d [eos]"), strict=True)] == [
        "a",
        "c",
        "d [eos]",
    ]


def test_without_a_finished_text_the_first_beam_stands_out() -> None:
    best = texts(svg(Lattice([[ord("a")]], [STEPS[:1]]), chr), "best")
    assert [label[-1] for label in best] == ["a", "b"]


def test_prompts_stand_one_below_the_other_and_need_no_steps() -> None:
    picture = svg(Lattice([[ord("a")], [ord("x")]], [STEPS, []]), chr)
    places = [float(text.get("y", "")) for text in ElementTree.fromstring(picture).iter(f"{SVG}text")]
    assert max(places) > 3 * 26


def test_what_a_token_spells_is_data(tmp_path: Path) -> None:
    hostile = {ord("b"): "<script>&\x1b[2J\x00\n", ord("c"): "\ud800 \ufffe"}
    draw(Lattice([[ord("a")]], [STEPS]), tmp_path / "x.svg", lambda token: hostile.get(token, chr(token)))
    picture = (tmp_path / "x.svg").read_text(encoding="utf-8")
    assert "<script>" not in picture
    assert not set(picture) & set("\x1b\x00")
    ElementTree.fromstring(picture)

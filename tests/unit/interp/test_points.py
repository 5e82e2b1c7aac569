"""The table of points is the one that the page shows, and every name in it can be recorded."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakes import tiny_gpt2

from minigpt import GPT2Config
from minigpt.interp import record_text
from minigpt.interp.points import POINTS, all_points, expand, layer_of, point_of, table

PAGE = Path(__file__).parents[3] / "docs" / "interpretability.md"


def test_the_page_shows_the_table() -> None:
    between = PAGE.read_text("utf-8").partition("<!-- points -->\n")[2].partition("<!-- /points -->")[0]
    assert between == table(), "run scripts/bench_interp.py --update docs/interpretability.md"


def test_shapes_are_those_of_the_table() -> None:
    model = tiny_gpt2()
    seen = record_text(model, [[1, 2, 3, 4, 5]] * 3)
    size = {"B": 3, "H": 2, "T": 5, "S": 5, "K": 8, "D": 16, "M": 64, "V": 23}
    for name in seen:
        letters = point_of(name).shape.strip("()").split(", ")
        assert seen[name].shape == tuple(size[letter] for letter in letters), name


def test_names_come_in_the_order_of_a_pass() -> None:
    names = all_points(GPT2Config(n_layer=2))
    assert len(names) == 3 + 2 * (len(POINTS) - 3)
    assert names[0] == "embed"
    assert names[-2:] == ["final_norm", "logits"]
    assert names.index("blocks.0.resid_post") + 1 == names.index("blocks.1.resid_pre")


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["*"], ["embed", "final_norm", "logits"]),
        (["blocks.1.attn.*"], [f"blocks.1.attn.{part}" for part in ("q", "k", "v", "pattern", "z", "out")]),
        (["blocks.*.resid_p*"], [f"blocks.{i}.resid_{part}" for i in (0, 1) for part in ("pre", "post")]),
        (["logits", "embed", "logits"], ["embed", "logits"]),
    ],
)
def test_stars_stand_for_parts(patterns: list[str], expected: list[str]) -> None:
    assert expand(GPT2Config(n_layer=2), patterns) == expected


def test_layers_are_read_from_names() -> None:
    assert [layer_of(name) for name in ("embed", "blocks.0.attn.q", "blocks.11.mlp.out")] == [None, 0, 11]

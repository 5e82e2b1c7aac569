"""The table of points is the one that the page shows, and every name in it can be recorded."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from fakes import tiny_gpt2
from torch import Tensor, nn

from minigpt import GPT2Config
from minigpt.interp import record_text
from minigpt.interp.points import (
    COMPUTED,
    POINTS,
    all_points,
    expand,
    layer_of,
    meant_points,
    point_of,
    table,
)

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


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("blocks.0.hook_resid_pre", "blocks.0.resid_pre"),
        ("blocks.1.hook_mlp_out", "blocks.1.mlp.out"),
        ("blocks.1.attn.hook_pattern", "blocks.1.attn.pattern"),
        ("hook_z", "blocks.*.attn.z"),
        ("ln_final.hook_normalized", "final_norm"),
        ("hidden_states[1]", "blocks.1.resid_pre"),
        ("transformer.h.1.mlp.act", "blocks.1.mlp.post"),
        ("h.0.attn.c_attn", "blocks.0.attn.q or blocks.0.attn.k or blocks.0.attn.v"),
    ],
)
def test_names_of_other_libraries_are_answered_with_ours(theirs: str, ours: str) -> None:
    with pytest.raises(KeyError, match=re.escape(f"{theirs!r}; here it is called {ours} (")):
        expand(GPT2Config(n_layer=2), [theirs])
    with pytest.raises(KeyError, match=re.escape(f"{theirs} was not recorded; here it is called {ours}")):
        record_text(tiny_gpt2(), [1, 2], "embed")[theirs]


def test_stars_stand_for_layers_in_names_of_other_libraries_too() -> None:
    with pytest.raises(KeyError, match=r"here it is called blocks\.\*\.resid_post \("):
        expand(GPT2Config(n_layer=2), ["blocks.*.hook_resid_post"])


def test_every_point_is_found_by_the_names_in_the_table() -> None:
    for point in POINTS:
        for name in (point.transformers, point.transformer_lens):
            for word in re.findall(r"\S*[.\[][^ ,]*", name.replace("L", "1")):
                assert point.name.removeprefix("blocks.") in meant_points(word, []) or point.name == "embed"


@pytest.mark.parametrize("layer", [-1, 2])
def test_layers_are_counted_from_0(layer: int) -> None:
    with pytest.raises(KeyError, match=f"no point matches 'blocks.{layer}.resid_post'; layers are 0 to 1"):
        expand(GPT2Config(n_layer=2), [f"blocks.{layer}.resid_post"])


@pytest.mark.parametrize("name", COMPUTED)
def test_what_is_no_point_can_be_computed_as_the_answer_says(name: str) -> None:
    """Each expression gives what makes the points that follow it."""
    model = tiny_gpt2()
    seen = record_text(model, [1, 2, 3])
    with pytest.raises(KeyError, match=f"it is no point here: compute {re.escape(COMPUTED[name])}"):
        seen[f"blocks.1.{name}"]
    code = re.split(" with", COMPUTED[name])[0]
    q, k, x = seen["blocks.1.attn.q"], seen["blocks.1.attn.k"], seen["blocks.1.resid_post"]
    names = {"model": model, "seen": seen, "L": 1, "n_head": 2, "q": q, "k": k, "x": x}
    got = eval(code.replace("blocks.L", "blocks.1"), names).detach()
    block, pre, mid = model.blocks[1], seen["blocks.1.resid_pre"], seen["blocks.1.resid_mid"]

    def normed(x: Tensor, norm: nn.LayerNorm) -> Tensor:
        return ((x - x.mean(-1, keepdim=True)) / got[..., None] * norm.weight + norm.bias).detach()

    made, point = {
        "attn.hook_attn_scores": lambda: (
            got.masked_fill(torch.ones(3, 3).triu(1).bool(), -torch.inf).softmax(-1), "blocks.1.attn.pattern",
        ),
        "attn.hook_result": lambda: (got.sum(1) + block.attn.out.bias.detach(), "blocks.1.attn.out"),
        "ln1.hook_normalized": lambda: (block.attn.qkv(got)[..., :16].unflatten(-1, (2, 8)).transpose(1, 2), "blocks.1.attn.q"),
        "ln2.hook_normalized": lambda: (block.mlp.up(got), "blocks.1.mlp.pre"),
        "ln1.hook_scale": lambda: (
            block.attn.qkv(normed(pre, block.attn_norm))[..., :16].unflatten(-1, (2, 8)).transpose(1, 2),
            "blocks.1.attn.q",
        ),
        "ln2.hook_scale": lambda: (block.mlp.up(normed(mid, block.mlp_norm)), "blocks.1.mlp.pre"),
        "ln_final.hook_scale": lambda: (normed(x, model.final_norm), "final_norm"),
        "hook_embed": lambda: (got + model.position_embedding.weight[:3], "embed"),
        "hook_pos_embed": lambda: (got + model.token_embedding(seen.tokens), "embed"),
    }[name]()  # fmt: skip
    torch.testing.assert_close(made.detach(), seen[point])


def test_layers_are_read_from_names() -> None:
    assert [layer_of(name) for name in ("embed", "blocks.0.attn.q", "blocks.11.mlp.out")] == [None, 0, 11]

"""What docs/interpretability.md says of results and of TransformerLens's words is so."""

from __future__ import annotations

import re
from contextlib import AbstractContextManager
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import minigpt
from minigpt import interp
from minigpt.interp import Recording, record_text

PAGE = (Path(__file__).parents[3] / "docs" / "interpretability.md").read_text("utf-8")
CODE = re.compile(r"`([^`]+)`")
MODEL, TOKENIZER = minigpt.load()
CLEAN, CORRUPT = TOKENIZER.encode("The king and the"), TOKENIZER.encode("The dog and the")
SEEN = record_text(MODEL, CLEAN)
METRIC = interp.logit_difference(300, 200)
RESULTS = {
    "LensReading": interp.logit_lens(MODEL, SEEN, top=3),
    "Attribution": interp.direct_attribution(MODEL, SEEN, 300),
    "TokenAttribution": interp.integrated_gradients(MODEL, CLEAN, 300, steps=2),
    "HeadStatistics": interp.head_statistics(SEEN),
    "Sweep": interp.ablate_heads(MODEL, CLEAN, METRIC),
    "Recording": SEEN,
}
SIZES = {"N": 9, "B": 1, "T": 4, "C": 67, "L": 8, "H": 5, "R": 8, "S": 5, "top": 3}


def documented() -> list[tuple[str, str, str]]:
    """Result, field and shape of the table, one by one."""
    table = PAGE.partition("<!-- results -->\n")[2].partition("<!-- /results -->")[0]
    rows, result = [], ""
    for line in table.splitlines()[2:]:
        first, names, shape, _ = (cell.strip() for cell in line.strip("|").split(" |"))
        result = first.strip("`") or result
        rows += [(result, name, shape) for name in CODE.findall(names)]
    return rows


@pytest.mark.parametrize(("result", "name", "shape"), documented())
def test_fields_have_the_shapes_of_the_table(result: str, name: str, shape: str) -> None:
    value = getattr(RESULTS[result], name)
    if isinstance(value, torch.Tensor):
        letters = re.findall(r"\w+", shape.partition("), ")[0])
        assert value.shape == tuple(SIZES[letter] for letter in letters)


def test_every_field_is_in_the_table() -> None:
    there = {(result, name) for result, name, _ in documented()}
    for result, value in RESULTS.items():
        if is_dataclass(value):
            assert {(result, field.name) for field in fields(value)} <= there
    assert set(RESULTS) == {result for result, _ in there}


def translations() -> list[str]:
    table = PAGE.partition("### From TransformerLens\n")[2].partition("\n## ")[0]
    cells = [line.split(" | ")[1] for line in table.splitlines() if line.startswith("| ")][1:]
    found = [code for cell in cells for code in CODE.findall(cell) if "(" in code or "[" in code]
    return [code for code in found if code != 'minigpt.load("gpt2")']  # which reads the hub


@pytest.mark.parametrize("code", translations())
def test_what_stands_for_a_word_of_transformer_lens_runs(code: str) -> None:
    names: dict[str, Any] = {
        **vars(interp), "minigpt": minigpt, "model": MODEL, "tokenizer": TOKENIZER, "tokens": CLEAN, "text": "The king",
        "seen": SEEN, "clean": CLEAN, "corrupt": CORRUPT, "metric": METRIC, "who": 300, "and_": 270,
        "vector": torch.ones(MODEL.config.n_embd), "function": torch.relu,
    }  # fmt: skip
    result = eval(code, names)
    if isinstance(result, AbstractContextManager):
        with result:
            record_text(MODEL, CLEAN, "logits")


def test_a_backward_pass_fills_the_gradients_of_parameters_and_autograd_grad_does_not() -> None:
    first, second = (record_text(MODEL, CLEAN, "embed", "logits", grad=True) for _ in range(2))
    (gradient,) = torch.autograd.grad(first["logits"][0, -1, 5], first["embed"])
    assert all(parameter.grad is None for parameter in MODEL.parameters())
    second["logits"][0, -1, 5].backward()
    torch.testing.assert_close(second["embed"].grad, gradient)
    assert MODEL.token_embedding.weight.grad is not None
    MODEL.zero_grad()
    assert all(parameter.grad is None for parameter in MODEL.parameters())


def test_a_row_shares_memory_with_its_recording() -> None:
    for seen in (record_text(MODEL, CLEAN), record_text(MODEL, [CLEAN, CLEAN[:2]])):
        row: Recording = seen.row(len(seen.tokens) - 1)
        row["embed"][0, 0, 0] = 7.0
        assert (seen["embed"] == 7.0).any()


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-4), (torch.bfloat16, 0.5)])
def test_an_edit_of_a_pattern_that_changes_nothing_computes_the_formula(
    dtype: torch.dtype, bound: float
) -> None:
    model, _ = minigpt.load(dtype=dtype)
    tokens = TOKENIZER.encode("Once upon a time there was a king who had three sons.")
    plain = record_text(model, tokens, "logits")["logits"]
    with interp.edit(model, "blocks.*.attn.pattern", torch.clone):
        edited = record_text(model, tokens, "logits")["logits"]
    moved = float((edited - plain).abs().max())
    assert 0 < moved < bound

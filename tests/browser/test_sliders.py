"""The sliders against Python: kept sets exactly, probabilities to 1e-6, both in float64."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from browsing import Open, Saved

import minigpt
from minigpt.interp.page import Page as Explored
from minigpt.interp.page import explore, load
from minigpt.interp.page.sliders import Sliders
from minigpt.sampler import Sample

if TYPE_CHECKING:
    from playwright.sync_api import Page

SETTINGS = list(itertools.product((0.1, 0.7, 1.0, 1.35, 2.0), (0, 1, 40), (0.0, 0.5, 0.92, 0.999, 1.0)))
SHOWN = """([logits, settings]) => {
  const now = distribution({ logits: { values: logits.map(x => x ?? -Infinity) } }, settings);
  const kept = [...now.p.keys()].filter((i) => now.p[i]);
  return [kept, kept.map((i) => now.p[i])];
}"""
OF_A_STEP = """([position, settings]) => {
  const now = distribution(runs[0].stepAt.get(position), settings);
  const kept = [...now.p.keys()].filter((i) => now.p[i]);
  return [kept.map(now.id), kept.map((i) => now.p[i]), now.beyond];
}"""


def named(temperature: float, top_k: int, top_p: float) -> dict[str, float]:
    return {"temperature": temperature, "topK": top_k, "topP": top_p}


def assert_same(ids: list[int], shown: list[float], expected: torch.Tensor) -> None:
    kept = expected.nonzero()[:, 0].tolist()
    assert sorted(ids) == kept
    assert torch.tensor(shown, dtype=torch.float64).numpy() == pytest.approx(expected[ids].numpy(), abs=1e-6)


def test_every_step_of_a_run(story: Path, explored: Explored, open_page: Open) -> None:
    page = open_page(story)
    run = load(story)["runs"][0]
    for step in run["steps"][::6]:
        logits = torch.as_tensor(step["logits"]).double()
        for settings in SETTINGS:
            ids, shown, beyond = page.evaluate(OF_A_STEP, [step["position"], named(*settings)])
            assert not beyond
            assert_same(ids, shown, Sliders(*settings)(logits))


def test_where_the_sliders_start_they_say_what_the_run_did(story: Path, open_page: Open) -> None:
    page = open_page(story)
    for step in load(story)["runs"][0]["steps"]:
        ids, shown, _ = page.evaluate(OF_A_STEP, [step["position"], named(0.8, 40, 0.92)])
        assert shown[ids.index(step["chosen"])] == pytest.approx(step["after"]["probability"], abs=1e-5)


@pytest.mark.parametrize(
    "logits",
    [
        [0.0, 0.0, 0.0, 0.0],  # ties at every edge
        [1.0, 3.0, 2.0, 2.0, 2.0, -1.0],
        [2.0, -math.inf, 2.0, -math.inf, 1.0],
        [5.0],
        [1e4, 0.0, -1e4],
        [math.log(0.5), math.log(0.25), math.log(0.25)],
    ],
)
def test_ties_and_ruled_out_tokens(story: Path, open_page: Open, logits: list[float]) -> None:
    page = open_page(story)
    for temperature, top_k, top_p in itertools.product(
        (0.5, 1.0, 2.0), (0, 1, 2, 3, 9), (0.0, 0.25, 0.5, 0.75, 1.0)
    ):
        settings = temperature, min(top_k, len(logits)), top_p
        given = [None if math.isinf(x) else x for x in logits]
        ids, shown = page.evaluate(SHOWN, [given, named(*settings)])
        assert_same(ids, shown, Sliders(*settings)(torch.tensor(logits, dtype=torch.float64)))


@pytest.fixture(scope="module")
def wide(saved: Saved, bundled: tuple[minigpt.GPT2, minigpt.Tokenizer]) -> tuple[Path, torch.Tensor]:
    """A page of a model with gpt2's vocabulary, which keeps the likeliest logits only; and all logits."""
    torch.manual_seed(0)
    model = minigpt.GPT2(
        minigpt.GPT2Config(n_layer=1, n_head=1, n_embd=16, n_positions=64, vocab_size=50257)
    ).eval()
    model.token_embedding.weight.data *= 60  # logits of a trained model's spread
    explored = explore(model, bundled[1], "Once", Sample(seed=1), max_new_tokens=50)
    file = saved("wide", explored)
    with torch.no_grad():
        return file, model(torch.tensor([load(file)["runs"][0]["tokens"]]))[0]


def test_the_likeliest_logits_and_the_mass_of_the_rest(
    wide: tuple[Path, torch.Tensor], open_page: Open
) -> None:
    file, logits = wide
    page = open_page(file, "view=choices")
    assert "256 likeliest of 50,257" in page.inner_text("#choice-note")
    left, inside = 0, 0
    for step in load(file)["runs"][0]["steps"][::12]:
        for settings in SETTINGS:
            expected = Sliders(*settings)(logits[step["position"] - 1].double())
            ids, shown, beyond = page.evaluate(OF_A_STEP, [step["position"], named(*settings)])
            left, inside = left + beyond, inside + (not beyond)
            if not beyond:
                assert_same(ids, shown, expected)
            else:
                assert int((expected > 0).sum()) > 256
    assert left
    assert inside


def test_the_page_says_where_the_nucleus_leaves_the_kept_tokens(
    wide: tuple[Path, torch.Tensor], open_page: Open
) -> None:
    page = open_page(wide[0], "view=choices&topK=40")
    assert "goes beyond them" not in page.inner_text("#choice-note")
    page.click("text=All off")
    assert "goes beyond them" in page.inner_text("#choice-note")


def _table(page: Page) -> list[Any]:
    return page.locator("#choice-table tbody tr").all_inner_texts()


def test_moving_a_slider_changes_what_is_listed(story: Path, open_page: Open) -> None:
    page = open_page(story, "view=choices&token=20")
    before = _table(page)
    page.focus("#slider-temperature")
    page.keyboard.press("ArrowRight")
    assert page.input_value('input[aria-label="Temperature as a number"]') == "0.85"
    assert _table(page) != before
    page.click("text=As in the run")
    assert _table(page) == before
    page.fill('input[aria-label="Top-k (0: off) as a number"]', "1")
    assert "1 token left, entropy 0.00 bits" in page.inner_text("#choice-sentence")
    assert "removed" in _table(page)[1]


def test_a_given_token_was_no_choice(story: Path, open_page: Open) -> None:
    page = open_page(story, "view=choices&token=5")
    assert "given in the prompt" in page.inner_text("#choice-sentence")
    assert not page.is_visible("#sliders")
    assert len(_table(page)) == 5

"""What a notebook shows of a result: HTML that says the same as the numbers, without scripts, whatever the text is."""

from __future__ import annotations

import re
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import pytest
import torch
from circuit import induction_circuit, repeated

import minigpt
from minigpt.interp import (
    direct_attribution,
    head_statistics,
    input_x_gradient,
    logit_difference,
    logit_lens,
    patch_heads,
    record_text,
)
from minigpt.sampler import Completion, Sample

MODEL, TEXT = induction_circuit(), repeated(period=9, copies=3)
SEEN = record_text(MODEL, TEXT)
ATTACK = '</pre><script>alert("x")</script><img src=x onerror=y>'


class Balanced(HTMLParser):
    """Every tag that is opened is closed, in order; collects the tags and the text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.text = ""
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        self.tags.add(tag)
        assert {name for name, _ in attrs} <= {"style"}

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def completion(text: str | None) -> Completion:
    return Completion([1, 2, 3], [-0.1, -0.2, -0.3], -0.6, "length", text=text)


SHOWN: dict[str, Callable[[], Any]] = {
    "completion": lambda: completion(ATTACK),
    "ids alone": lambda: completion(None),
    "model": lambda: MODEL,
    "recording": lambda: SEEN,
    "lens": lambda: logit_lens(MODEL, SEEN),
    "token attribution": lambda: input_x_gradient(MODEL, TEXT, 3),
    "attribution": lambda: direct_attribution(MODEL, SEEN, 3),
    "heads": lambda: head_statistics(SEEN),
    "sweep": lambda: patch_heads(
        MODEL, [*TEXT[:10], TEXT[3]], [*TEXT[:10], TEXT[5]], logit_difference(TEXT[4], TEXT[6])
    ),
}


@pytest.mark.parametrize("name", SHOWN)
def test_html_is_well_formed_and_has_no_script(name: str) -> None:
    page = Balanced(SHOWN[name]()._repr_html_())
    assert page.tags <= {"table", "caption", "tr", "th", "td", "pre", "p"}
    assert page.text


def test_a_completion_shows_its_text_and_its_alternatives_as_they_are() -> None:
    model, tokenizer = minigpt.load()
    best = minigpt.complete(
        model, tokenizer, "Once", Sample(num_return_sequences=2, seed=0), max_new_tokens=5
    )
    page = Balanced(best._repr_html_())
    assert best.text is not None
    assert best.text in page.text
    assert best.alternatives[0].text in page.text
    assert page.text.count("5 tokens, score") == 2
    assert ATTACK in Balanced(completion(ATTACK)._repr_html_()).text
    assert "[1, 2, 3]" in Balanced(completion(None)._repr_html_()).text


def test_an_empty_text_is_no_list_of_ids() -> None:
    assert "[1" not in completion("")._repr_html_()


def test_the_model_shows_each_weight_once_with_its_shape() -> None:
    html = MODEL._repr_html_()
    weights = [name for name, _ in MODEL.named_parameters() if not name.startswith("blocks.1.")]
    assert re.findall(r"<tr><td>(.*?)</td>", html) == [
        name.replace("blocks.0", "blocks.*") for name in weights
    ]
    assert "<td>blocks.*.attn.qkv.weight</td><td>64 × 192</td>" in html
    assert "2 layers × 2 heads" in html


def test_the_lens_shows_the_means_of_each_layer() -> None:
    reading = logit_lens(MODEL, SEEN)
    rows = re.findall(
        r"<tr><td>(.*?)</td><td>(.*?)</td><td>(.*?)</td><td>(.*?)</td></tr>", reading._repr_html_()
    )
    assert [row[0] for row in rows] == reading.points
    for i, (_, *numbers) in enumerate(rows):
        means = [x[i].float().mean() for x in (reading.entropy, reading.kl, reading.rank)]
        torch.testing.assert_close(
            torch.tensor([*map(float, numbers)]), torch.stack(means), atol=0.06, rtol=0
        )
    assert rows[-1][2] == "0.000"


def test_token_attribution_shows_the_largest_first() -> None:
    shares = input_x_gradient(MODEL, TEXT, 3)
    rows = re.findall(r"<tr><td>(\d+)</td><td>(\d+)</td><td>(.*?)</td></tr>", shares._repr_html_())
    assert len(rows) == 10
    values = [float(value) for _, _, value in rows]
    assert [abs(value) for value in values] == sorted((abs(value) for value in values), reverse=True)
    assert all(TEXT[int(position)] == int(token) for position, token, _ in rows)
    assert all(abs(float(shares.values[int(position)]) - float(value)) < 6e-4 for position, _, value in rows)

"""Pictures: readable at 8 and at 200 tokens, in ink that contrasts, whatever the tokens are."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module

import numpy as np
import pytest
import torch
from circuit import induction_circuit, repeated
from fakes import tiny_gpt2
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import minigpt
from minigpt.interp import (
    TokenAttribution,
    direct_attribution,
    head_statistics,
    input_x_gradient,
    logit_difference,
    logit_lens,
    patch_heads,
    plots,
    record_text,
    surprisal,
)
from minigpt.interp.canvas import DIVERGING, SEQUENTIAL, Picture, ink, printable
from minigpt.interp.labels import token_labels
from minigpt.tokenizer.byte_level import byte_tokenizer

MODEL, TEXT = induction_circuit(), repeated(period=9, copies=3)
SEEN = record_text(MODEL, TEXT)
SWEPT = (MODEL, [*TEXT[:10], TEXT[3]], [*TEXT[:10], TEXT[5]], logit_difference(TEXT[4], TEXT[6]))
LABELS = [f"·t{token}" for token in TEXT]
BYTES = byte_tokenizer()  # knows ids 0 to 255 and one more

PICTURES: dict[str, Callable[..., Figure]] = {
    "attention": lambda **how: plots.attention(SEEN["blocks.1.attn.pattern"][0, 0], LABELS, **how),
    "attention_grid": lambda **how: plots.attention_grid(SEEN, **how),
    "lens": lambda **how: plots.lens(logit_lens(MODEL, SEEN), BYTES, **how),
    "attribution": lambda **how: plots.attribution(direct_attribution(MODEL, SEEN, 3), **how),
    "of tokens": lambda **how: plots.attribution(input_x_gradient(MODEL, TEXT, 3), LABELS, **how),
    "sweep": lambda **how: plots.sweep(patch_heads(*SWEPT), **how),
    "surprisal": lambda **how: plots.surprisal(surprisal(SEEN)[0], LABELS, **how),
    "head_statistics": lambda **how: plots.head_statistics(head_statistics(SEEN), **how),
}


@pytest.mark.parametrize("name", PICTURES)
def test_each_gives_a_figure_that_a_notebook_shows(name: str) -> None:
    figure = PICTURES[name]()
    assert isinstance(figure, Picture)
    assert figure._repr_png_().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", PICTURES)
def test_each_draws_into_an_axis_that_it_is_given(name: str) -> None:
    mine = Figure(figsize=(12, 8))
    left, right = mine.subplots(1, 2)
    assert PICTURES[name](ax=left) is mine
    assert left.get_images() or left.patches or left.collections or left.child_axes
    assert not right.has_data()


def overlaps(figure: Figure, side: str) -> bool:
    """Whether tick labels of the first axis lie over each other."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    ax = figure.axes[0]
    labels = ax.get_xticklabels() if side == "x" else ax.get_yticklabels()
    boxes = [label.get_window_extent(renderer) for label in labels]
    return any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[i + 1 :])


@pytest.mark.parametrize("n", [8, 40, 200])
def test_labels_of_a_pattern_do_not_lie_over_each_other(n: int) -> None:
    pattern = torch.ones(n, n).tril() / torch.arange(1, n + 1)[:, None]
    figure = plots.attention(pattern, ["·token"] * n)
    assert not overlaps(figure, "x")
    assert not overlaps(figure, "y")
    assert (len(figure.axes[0].get_xticks()) == n) == (n <= 40)


@pytest.mark.parametrize("n", [8, 40, 200])
def test_pictures_of_long_texts_stay_as_large_as_a_page(n: int) -> None:
    shares = TokenAttribution([1] * n, torch.ones(n), 1.0)
    model = tiny_gpt2(n_positions=n)
    reading = logit_lens(model, record_text(model, [1 + i % 20 for i in range(n)]))
    for figure in (plots.attribution(shares), plots.lens(reading, BYTES, positions=range(n))):
        assert figure.get_size_inches().max() < 33
        assert not overlaps(figure, "x")
        assert not overlaps(figure, "y")
    assert (len(figure.axes[0].texts) > 0) == (n <= 40)


def contrast(colour: tuple[float, ...], other: float) -> float:
    """By WCAG 2.2, to a grey of that luminance."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
    luminance = sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
    return (max(luminance, other) + 0.05) / (min(luminance, other) + 0.05)


@pytest.mark.parametrize("colours", [SEQUENTIAL, DIVERGING])
def test_ink_contrasts_with_every_colour(colours: object) -> None:
    for i in range(256):
        colour = colours(i)  # type: ignore[operator]
        assert contrast(colour, 1.0 if ink(colour) == "white" else 0.0) >= 4.5


def test_numbers_in_cells_are_those_of_the_matrix_in_ink_that_contrasts() -> None:
    pattern = torch.tensor([[1.0, 0.0], [0.25, 0.75]])
    ax = plots.attention(pattern, ["a", "b"]).axes[0]
    assert [(text.get_position(), text.get_text()) for text in ax.texts] == [
        ((0, 0), "1.00"), ((0, 1), ".25"), ((1, 1), ".75"),
    ]  # fmt: skip
    image = ax.get_images()[0]
    for text in ax.texts:
        key, query = map(int, text.get_position())
        assert text.get_color() == ink(tuple(image.to_rgba(pattern.numpy())[query, key]))


def test_small_weights_differ_from_nothing_by_the_root_of_their_size() -> None:
    image = plots.attention(torch.eye(3), list("abc")).axes[0].get_images()[0]
    assert float(image.norm(0.25)) == pytest.approx(0.5)


def test_what_comes_later_is_no_small_attention() -> None:
    image = plots.attention(torch.eye(3), list("abc")).axes[0].get_images()[0]
    shown = image.get_array()
    assert shown is not None
    assert shown.mask.tolist() == torch.ones(3, 3, dtype=torch.bool).triu(1).tolist()


def test_the_grid_has_each_head_in_its_place() -> None:
    ax = plots.attention_grid(SEEN).axes[0]
    whole = ax.get_images()[0].get_array()
    assert whole is not None
    n, step = len(TEXT), len(TEXT) + len(TEXT) // 12
    part = torch.tensor(whole.filled(0.0))[step : step + n, :n]
    torch.testing.assert_close(part, SEEN["blocks.1.attn.pattern"][0, 0].tril())
    assert [label.get_text() for label in ax.get_yticklabels()] == ["0", "1"]


def test_the_lens_has_the_last_layer_on_top_and_its_tokens_in_the_cells() -> None:
    reading = logit_lens(MODEL, SEEN)
    ax = plots.lens(reading, BYTES, positions=[11, 12]).axes[0]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["1.resid_post", "0.resid_post", "embed"]
    top = [text.get_text() for text in ax.texts if text.get_position()[1] == 0]
    assert top == [printable(label) for label in token_labels(BYTES, TEXT[12:14])]
    shown = ax.get_images()[0].get_array()
    assert shown is not None
    torch.testing.assert_close(torch.tensor(shown.filled(0.0)), reading.kl[:, 0, [11, 12]].flip(0))


def test_the_lens_leaves_padding_out() -> None:
    both = logit_lens(MODEL, record_text(MODEL, [TEXT, TEXT[:5]]))
    alone = logit_lens(MODEL, record_text(MODEL, TEXT[:5]))
    shown = [
        [label.get_text() for label in plots.lens(reading, BYTES, row=row).axes[0].get_xticklabels()]
        for reading, row in ((both, 1), (alone, 0))
    ]
    assert shown[0] == shown[1]


def test_what_adds_and_what_takes_away_have_the_colours_of_the_scale_in_a_sweep() -> None:
    sweep = patch_heads(*SWEPT)
    sweep.values[0, 0] = -0.5
    image = plots.sweep(sweep).axes[0].get_images()[0]
    assert (image.norm.vmin, image.norm.vmax) == (-1, 1)  # nothing is in the middle: white
    shares = input_x_gradient(MODEL, TEXT, 3)
    bars = plots.attribution(shares, LABELS).axes[0].patches
    for bar, value in zip(bars, shares.values.tolist(), strict=True):
        orange, blue = (bar.get_facecolor()[channel] for channel in (0, 2))
        assert (orange > blue) == (value >= 0)
    orange, blue = (image.to_rgba(np.array([0.8]))[0][channel] for channel in (0, 2))
    assert orange > blue


def test_a_sweep_shows_what_was_not_done_as_nothing() -> None:
    result = patch_heads(*SWEPT)
    result.values[1, 1] = torch.nan
    ax = plots.sweep(result).axes[0]
    assert len(ax.texts) == 3
    result.values[0, 0] = -0.001
    assert plots.sweep(result).axes[0].texts[0].get_text() == "0.00"
    with pytest.raises(ValueError, match="2 columns cannot have 3 labels"):
        plots.sweep(result, ["a", "b", "c"])


def test_surprisal_writes_the_text_in_order() -> None:
    figure = plots.surprisal(torch.tensor([torch.nan, 0.0, 9.0]), ["The", "·king", "·$5$⏎"])
    assert [text.get_text() for text in figure.axes[0].texts] == ["The", "·king", "·$5$⏎"]


# Tokens of every kind


def test_labels_make_every_token_visible() -> None:
    tokens = BYTES.encode("a \n\t\u202eé\x00")
    assert token_labels(BYTES, tokens) == [
        "a", "·", "⏎", "⇥", "⟨E2⟩", "⟨80⟩", "⟨AE⟩", "⟨C3⟩", "⟨A9⟩", "⟨U+0000⟩",
    ]  # fmt: skip


def test_formatting_characters_are_named() -> None:
    _, tokenizer = minigpt.load()

    class Whole:
        def decode_bytes(self, tokens: list[int]) -> bytes:
            return "\u202eab\u0301".encode()

    assert token_labels(Whole(), [0]) == ["⟨U+202E⟩ab\u0301"]  # type: ignore[arg-type]
    assert token_labels(tokenizer, tokenizer.encode(" king")) == ["·king"]


def test_dollars_and_characters_that_no_font_has_are_written_as_they_are() -> None:
    labels = ["$x_1$", "你", "<script>", "\\frac", "𓀀"]
    figure = plots.attention(torch.eye(5), labels)
    assert isinstance(figure, Picture)
    figure._repr_png_()  # a warning of a missing glyph would be an error here
    label = figure.axes[0].get_xticklabels()[0]
    assert label.get_text() == "$x_1$"
    assert not label.get_parse_math()  # two dollars would be taken for a formula


# From a text to a picture


def test_attention_map_draws_what_the_head_attends_to() -> None:
    model, tokenizer = minigpt.load()
    text = "Once upon a time"
    figure = minigpt.attention_map(model, tokenizer, text, layer=3, head=1)
    shown = figure.axes[0].get_images()[0].get_array()
    assert shown is not None
    pattern = record_text(model, tokenizer.encode(text), "blocks.3.attn.pattern")["blocks.3.attn.pattern"]
    torch.testing.assert_close(torch.tensor(shown.filled(0.0)), pattern[0, 1].tril())
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == [
        "Once",
        "·upon",
        "·a",
        "·time",
    ]
    grid = minigpt.attention_map(model, tokenizer, text, layer=2)
    assert [label.get_text() for label in grid.axes[0].get_yticklabels()] == ["2"]
    assert len(minigpt.attention_map(model, tokenizer, text).axes[0].get_yticks()) == 8


def test_attention_map_refuses_what_there_is_not() -> None:
    model, tokenizer = minigpt.load()
    for error in (IndexError, minigpt.InvalidRequest):
        with pytest.raises(error, match="there is no layer 8: this model has layers 0 to 7"):
            minigpt.attention_map(model, tokenizer, "Once", layer=8, head=0)
    with pytest.raises(minigpt.InvalidRequest, match="head=1 needs a layer"):
        minigpt.attention_map(model, tokenizer, "Once", head=1)
    for text, words in {
        "": "an empty text has nothing to read",
        "a " * 5000: "do not fit the context",
    }.items():
        with pytest.raises(minigpt.InvalidRequest, match=words):
            minigpt.attention_map(model, tokenizer, text, layer=0, head=0)
    with pytest.raises(
        minigpt.InvalidRequest, match="no argument 'layers': it is layer, a single one: layer=1"
    ):
        minigpt.attention_map(model, tokenizer, "Once", layers=[1])  # type: ignore[arg-type]
    with pytest.raises(minigpt.InvalidRequest, match="encode takes one text, got 5"):
        minigpt.attention_map(model, tokenizer, 5)  # type: ignore[arg-type]
    with pytest.raises(minigpt.InvalidRequest, match=r"write model, tokenizer = minigpt\.load"):
        minigpt.attention_map(minigpt.load(), tokenizer, "Once")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"a pattern of shape \(3, 3\) does not fit 2 labels"):
        plots.attention(torch.eye(3), ["a", "b"])


def test_half_precision_and_one_token_are_drawn_too() -> None:
    seen = record_text(tiny_gpt2().bfloat16(), [5])
    plots.attention(seen["blocks.0.attn.pattern"][0, 0], ["x"])
    plots.attention_grid(seen)
    plots.head_statistics(head_statistics(seen))
    plots.surprisal(surprisal(seen)[0], ["x"])


def test_without_matplotlib_the_way_to_get_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("plots", "canvas", "attention_map"):
        monkeypatch.delitem(sys.modules, f"minigpt.interp.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ModuleNotFoundError, match=r"pictures need matplotlib: pip install 'minigpt\[plot\]'"):
        import_module("minigpt.interp.plots")

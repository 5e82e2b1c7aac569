"""The commonest wish in one line: from a text to the picture of what a head attends to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Never

from minigpt.errors import InvalidRequest
from minigpt.interp.labels import token_labels
from minigpt.interp.plots import attention, attention_grid
from minigpt.interp.record import record_text
from minigpt.model import GPT2
from minigpt.right_names import refuse_unknown
from minigpt.sampler.requests import check_model
from minigpt.sampler.text import check_tokenizer, encode_prompt
from minigpt.tokenizer import Tokenizer

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Those of `minigpt.interp.plots.attention_grid`, which shows several.
ADVICE = {
    "layers": "it is layer, a single one: layer=1; without it all are shown",
    "heads": "it is head, a single one: layer=1, head=2; without it all are shown",
}


def attention_map(
    model: GPT2,
    tokenizer: Tokenizer,
    text: str,
    layer: int | None = None,
    head: int | None = None,
    ax: Axes | None = None,
    **unknown: Never,
) -> Figure:
    """From a text to the picture of what a head attends to; without `head` or `layer`, of all of them.

    Args:
        model: which reads the text.
        tokenizer: its tokenizer.
        text: at least one token, at most what the model reads.
        layer: of the head.
        head: which of the layer.
        ax: an axis to draw into.

    Raises:
        InvalidRequest: the text is empty or too long, or a head is given without a layer.
        NoSuchIndex: there is no such layer or head; it is an InvalidRequest and an IndexError, too.

    >>> import minigpt
    >>> model, tokenizer = minigpt.load()
    >>> figure = attention_map(model, tokenizer, "Once upon a time there was a king.", layer=3, head=1)
    >>> figure.axes[0].get_title()
    'attention of head 3.1'
    """
    refuse_unknown("attention_map", unknown, ("layer", "head", "ax"), ADVICE)
    if layer is None and head is not None:
        raise InvalidRequest(f"head={head} needs a layer: every layer has one of that number")
    check_model("attention_map", model)
    check_tokenizer("attention_map", tokenizer)
    tokens = encode_prompt(tokenizer, text)
    chosen = None if layer is None else [layer]
    seen = record_text(
        model, tokens, "blocks.*.attn.pattern", layers=chosen, heads=None if head is None else [head]
    )
    labels = token_labels(tokenizer, tokens)
    if layer is None or head is None:
        return attention_grid(seen, layers=chosen, ax=ax)
    pattern = seen[f"blocks.{layer}.attn.pattern"][0, 0]
    return attention(pattern, labels, title=f"attention of head {layer}.{head}", ax=ax)

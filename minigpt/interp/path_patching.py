"""Path patching: what one head does to another, and through it to the answer, with all other ways closed."""

from __future__ import annotations

from collections.abc import Sequence

from minigpt.interp.interventions import patch
from minigpt.interp.points import all_points, as_indices, one_point
from minigpt.interp.record import equally_long, record_text
from minigpt.interp.recording import Recording
from minigpt.model import GPT2


def path_patching(
    model: GPT2,
    clean: Sequence[int],
    corrupt: Sequence[int],
    sender: tuple[int, int],
    receiver: str,
    heads: Sequence[int] | None = None,
) -> Recording:
    """The logits of the clean text, had one head's *direct* influence on a receiver been that of the corrupt text.

    Three passes: both texts are recorded; the clean one is read with every head held at its clean output, but the
    sender at its corrupt one, MLPs computed anew, and the receiver's input is recorded; it is read again with
    that input put in place, everything after the receiver computed anew.

    Args:
        model: which stays as it is.
        clean: a text.
        corrupt: another, equally long.
        sender: (layer, head) whose influence is changed.
        receiver: a point after the sender: "blocks.5.attn.q" (or k, v), "blocks.5.resid_pre", or for the direct
            effect on the logits the last "resid_post".
        heads: of the receiver, if it has heads; all unless given.

    Returns:
        A recording of the logits.

    Raises:
        KeyError: there is no such point.
        IndexError: there is no such layer or head.
        ValueError: the texts are not equally long, or the receiver is not after the sender.

    Source: Wang et al. 2022, "Interpretability in the Wild", section 3.1; Goldowsky-Dill et al. 2023.

    >>> import minigpt
    >>> model, tokenizer = minigpt.load()
    >>> clean, corrupt = tokenizer.encode("The king and"), tokenizer.encode("The dog and")
    >>> path_patching(model, clean, corrupt, sender=(0, 1), receiver="blocks.3.attn.k")["logits"].shape
    torch.Size([1, 3, 4096])
    """
    layer, head = sender
    as_indices("layer", [layer], model.config.n_layer)
    as_indices("head", [head], model.config.n_head)
    good, bad = equally_long(model, clean, corrupt)
    name = one_point(model.config, receiver)
    order = all_points(model.config)
    if order.index(name) <= order.index(f"blocks.{layer}.attn.z"):
        raise ValueError(
            f"{receiver} is computed before head {layer}.{head}, which therefore cannot influence it"
        )
    outputs = "blocks.*.attn.z"
    before, other = (record_text(model, text, outputs) for text in (good, bad))
    with patch(model, outputs, before), patch(model, f"blocks.{layer}.attn.z", other, heads=[head]):
        reached = record_text(model, good, name)
    with patch(model, name, reached, heads=heads):
        return record_text(model, good, "logits")

"""Attention in little room: the largest weights of each row in 8 bits, and how much of the row they hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from minigpt.interp.heads import value_lengths
from minigpt.interp.page.packed import pack
from minigpt.interp.recording import Recording
from minigpt.model import GPT2

# Shapes below:  L layers · B rows · H heads · T tokens (queries and keys) · k weights kept of each row

NO_KEY = 65535  # where a row has fewer keys than are kept
TINY = 1e-30  # so that a row without any weight is not divided by 0


def largest(kept: int) -> Callable[[Tensor], Tensor]:
    """What `record(take=...)` makes of a pattern: its `kept` largest weights, and behind them their keys.

    So a (T, T) pattern is never kept: (B, H, T, T)  ->  (B, H, T, 2k).

    >>> pattern = torch.tensor([[[[1.0, 0.0, 0.0], [0.4, 0.6, 0.0], [0.5, 0.2, 0.3]]]])
    >>> largest(2)(pattern)[0, 0, 2]
    tensor([0.5000, 0.3000, 0.0000, 2.0000])
    """

    def take(pattern: Tensor) -> Tensor:
        best = pattern.float().nan_to_num().topk(min(kept, pattern.size(-1)))
        return torch.cat([best.values, best.indices.float()], -1)

    return take


def pack_patterns(taken: Tensor, n_tokens: int) -> dict[str, Any]:
    """The patterns of all layers as the page has them; the weight of a key is weight / 255 * scale / 65535.

    Args:
        taken: what `largest` gave, of all layers: (L, H, T, 2k).
        n_tokens: rows that the page has; those of tokens that were not read are empty.
    """
    weights, keys = taken.chunk(2, -1)  # (L, H, T, k)
    own = torch.arange(taken.size(2), device=taken.device)[:, None]  # no query sees a later key
    unread = n_tokens - taken.size(2)
    keys = F.pad(keys.masked_fill(keys > own, NO_KEY), (0, 0, 0, unread), value=NO_KEY)
    weights = F.pad(weights, (0, 0, 0, unread))
    scale = weights[..., :1]
    return {
        "kept": weights.size(-1),
        "index": pack(keys, "uint16"),
        "weight": pack((255 * weights / scale.clamp_min(TINY)).round(), "uint8"),
        "scale": pack((65535 * scale[..., 0]).round().clamp_max(65535), "uint16"),
        "mass": pack((255 * weights.sum(-1)).round().clamp_max(255), "uint8"),
    }


def unpack_patterns(attention: dict[str, Tensor]) -> Tensor:
    """Patterns of which the kept weights alone are known, the others 0: (L, H, T, T).

    Args:
        attention: that of a run, as `load` gives it.
    """
    index, weight, scale = attention["index"], attention["weight"], attention["scale"]
    n = index.size(2)
    full = torch.zeros(*index.shape[:3], n + 1)  # the last place is for keys that there are not
    full.scatter_(-1, index.clamp_max(n), weight / 255 * scale[..., None] / 65535)
    return full[..., :n]


def pack_norms(model: GPT2, seen: Recording, n_tokens: int) -> dict[str, Any] | None:
    """How long the vector is that each key's value adds to the stream, for value-weighted attention.

    None for a model without plain weights, such as a quantised one.
    """
    try:
        layers = [value_lengths(model, seen, layer)[0] for layer in range(model.config.n_layer)]
    except ValueError:
        return None
    lengths = torch.stack(layers).nan_to_num()  # (L, H, T)
    scale = lengths.amax(-1)
    norm = (255 * lengths / scale[..., None].clamp_min(TINY)).round()
    return {"norm": pack(F.pad(norm, (0, n_tokens - norm.size(-1))), "uint8"), "scale": scale.tolist()}

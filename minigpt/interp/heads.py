"""What attention heads attend to, in numbers: computed from recorded patterns and tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from html import escape

import torch
from torch import Tensor

from minigpt.errors import InvalidRequest
from minigpt.interp.dense import head_weights
from minigpt.interp.points import expand
from minigpt.interp.recording import Recording
from minigpt.model import GPT2

# Shapes below:  L layers · B rows · H heads · T tokens (of one text: queries and keys) · K head dimension

PATTERNS = "blocks.*.attn.pattern"


@dataclass(frozen=True)
class HeadStatistics:
    """Six numbers for each head, each the mean over the queries of all texts: (L, H).

    The shares of attention lie between 0 and 1; NaN where no query of any text can have one.
    """

    entropy: Tensor  # nats; 0 is one token alone, ln(i + 1) all evenly
    mean_distance: Tensor  # tokens back
    previous_token: Tensor  # share on the token before; queries from the second on
    first_token: Tensor  # share on the first token; queries from the second on
    duplicate_token: Tensor  # share on earlier occurrences of the same token; queries that have one
    induction: Tensor  # share on what came after those, itself left out; queries that have one

    def top(self, name: str, n: int = 3) -> list[tuple[int, int, float]]:
        """The heads with the largest value of a statistic: (layer, head, value); none where it is NaN."""
        names = [field.name for field in fields(self)]
        if name not in names:
            raise InvalidRequest(f"there is no statistic {name!r}: there are {', '.join(names)}")
        values: Tensor = getattr(self, name)
        order = values.nan_to_num(-1).flatten().argsort(descending=True)[:n].tolist()
        best = [(i // values.size(1), i % values.size(1), float(values.flatten()[i])) for i in order]
        return [place for place in best if not math.isnan(place[2])]

    def __repr__(self) -> str:
        tops = [(field.name, self.top(field.name, 1)) for field in fields(self)[2:]]
        best = ", ".join(
            f"{name} " + ("{}.{} ({:.2f})".format(*top[0]) if top else "none") for name, top in tops
        )
        return f"HeadStatistics({len(self.entropy)} x {self.entropy.size(1)} heads; most: {best})"

    def _repr_html_(self) -> str:
        names = [field.name for field in fields(self)]
        head = "".join(f"<th>{escape(name.replace('_', ' '))}</th>" for name in ("head", *names))
        rows = "".join(
            f"<tr><td>{layer}.{i}</td>"
            + "".join(f"<td>{float(getattr(self, name)[layer, i]):.3f}</td>" for name in names)
            + "</tr>"
            for layer, i in torch.cartesian_prod(*map(torch.arange, self.entropy.shape)).tolist()
        )
        return f"<table><tr>{head}</tr>{rows}</table>"


def head_statistics(seen: Recording) -> HeadStatistics:
    """All statistics of all heads, over all texts of a recording with `blocks.*.attn.pattern`.

    Raises:
        KeyError: the patterns were not recorded.
        ValueError: the recording began in the middle of a text, or holds some heads only.

    Source: Olsson et al. 2022, "In-context Learning and Induction Heads"; its formula of prefix matching says
    "preceded" where "followed" is meant. Induction is matched by token here, not by a fixed distance, which a
    head that attends by position would match too.

    >>> import minigpt
    >>> from minigpt.interp import record_text
    >>> model, tokenizer = minigpt.load()
    >>> seen = record_text(model, tokenizer.encode("The king and the queen and the king"), "blocks.*.attn.pattern")
    >>> head_statistics(seen).induction.shape
    torch.Size([8, 5])
    """
    seen.require_beginning()
    seen.require_whole(*expand(seen.config, [PATTERNS]))
    collected: dict[str, list[Tensor]] = {field.name: [] for field in fields(HeadStatistics)}
    for row in range(len(seen.pad)):
        text = seen.row(row)
        pattern = text.stack(PATTERNS)[:, 0]  # (L, H, T, T)
        for name, values in per_query(pattern, text.tokens[0]).items():
            collected[name].append(values)
    return HeadStatistics(**{name: torch.cat(values, -1).nanmean(-1) for name, values in collected.items()})


def per_query(pattern: Tensor, tokens: Tensor) -> dict[str, Tensor]:
    """Every statistic at each query; NaN where it has none.

    Shapes: pattern (..., T, T), tokens (T,)  ->  (..., T) each

    >>> even = torch.ones(4, 4).tril() / torch.arange(1, 5)[:, None]             # a head that attends evenly
    >>> per_query(even, torch.tensor([5, 6, 5, 6]))["induction"]                  # the third saw what followed 5
    tensor([   nan,    nan, 0.3333, 0.2500])
    """
    n = pattern.size(-1)
    place = torch.arange(n, device=pattern.device)
    back = place[:, None] - place  # how far key j lies behind query i
    same = (tokens[:, None] == tokens) & (back > 0)  # j < i with the same token
    followed = torch.zeros_like(same)
    followed[:, 1:] = same[:, :-1]  # keys j + 1
    followed &= back > 0  # where a token stands twice in a row, that is the query itself
    return {
        "entropy": entropy(pattern),
        "mean_distance": (pattern * back).sum(-1),
        "previous_token": _share(pattern, back == 1),
        "first_token": _share(pattern, (place == 0) & (back > 0)),
        "duplicate_token": _share(pattern, same),
        "induction": _share(pattern, followed),
    }


def entropy(pattern: Tensor) -> Tensor:
    """How widely each query attends, in nats: -sum A ln A.  Shapes: (..., S)  ->  (...).

    >>> entropy(torch.tensor([[1.0, 0.0], [0.5, 0.5]]))
    tensor([0.0000, 0.6931])
    """
    nats: Tensor = torch.special.entr(pattern).sum(-1)
    return nats


def value_weighted(model: GPT2, seen: Recording, layer: int) -> Tensor:
    """How much each key really contributes: the length of A_ij v_j W_O. Much attention to small values is little.

    Args:
        model: that was recorded, with plain weights.
        seen: a recording with `attn.pattern` and `attn.v` of the layer, from the text's beginning.
        layer: which.

    Shapes: (B, H, T, T)

    Raises:
        KeyError: a point was not recorded.
        ValueError: the weights are quantised, or the recording began in the middle of a text or holds some heads only.

    Source: Kobayashi et al. 2020, "Attention is Not Only a Weight".

    >>> import minigpt
    >>> from minigpt.interp import record_text
    >>> model, tokenizer = minigpt.load()
    >>> seen = record_text(model, tokenizer.encode("Once upon a time"), "blocks.2.attn.*")
    >>> value_weighted(model, seen, layer=2).shape
    torch.Size([1, 5, 4, 4])
    """
    seen.require_whole(f"blocks.{layer}.attn.pattern")
    pattern = seen[f"blocks.{layer}.attn.pattern"]
    weighted: Tensor = pattern * value_lengths(model, seen, layer)[:, :, None]
    return weighted


def value_lengths(model: GPT2, seen: Recording, layer: int) -> Tensor:
    """The length of v_j W_O, what each key would add to the stream if a head attended to it alone.

    Args:
        model: that was recorded, with plain weights.
        seen: a recording with `attn.v` of the layer, from the text's beginning.
        layer: which.

    Shapes: (B, H, T)

    Raises:
        KeyError: the values were not recorded.
        ValueError: as for `value_weighted`.
    """
    seen.require_whole(f"blocks.{layer}.attn.v")
    v = seen[f"blocks.{layer}.attn.v"]
    seen.require_beginning()
    out = torch.stack([head_weights(model, layer, head).out for head in range(v.size(1))])  # (H, K, D)
    lengths: Tensor = (v.float() @ out.float()).norm(dim=-1)
    return lengths


def rollout(seen: Recording) -> Tensor:
    """Attention through all layers: how much of each input token is in each position after layer l.

    R_l = (A_l / 2 + I / 2) R_(l-1), with A_l the mean over heads: half of each step is the stream itself.
    It ignores values and MLPs: a rough picture, not an attribution.

    Args:
        seen: a recording with all patterns, from the text's beginning.

    Shapes: (L, B, T, T); rows sum to 1

    Raises:
        KeyError: the patterns were not recorded.
        ValueError: the recording began in the middle of a text, or holds some heads only.

    Source: Abnar & Zuidema 2020, "Quantifying Attention Flow in Transformers", section 3.

    >>> import minigpt
    >>> from minigpt.interp import record_text
    >>> model, tokenizer = minigpt.load()
    >>> rolled = rollout(record_text(model, tokenizer.encode("Once upon a time"), "blocks.*.attn.pattern"))
    >>> rolled.shape, bool(rolled.sum(-1).allclose(torch.ones(())))
    (torch.Size([8, 1, 4, 4]), True)
    """
    seen.require_beginning()
    seen.require_whole(*expand(seen.config, [PATTERNS]))
    mean = seen.stack(PATTERNS).mean(2)  # (L, B, T, T)
    identity = torch.eye(mean.size(-1), dtype=mean.dtype, device=mean.device)
    rolled, layers = identity, []
    for pattern in mean:
        rolled = (pattern + identity) / 2 @ rolled
        layers.append(rolled)
    return torch.stack(layers)


def _share(pattern: Tensor, targets: Tensor) -> Tensor:
    """The attention that falls on the targets of each query; NaN for one without any."""
    share = (pattern * targets).sum(-1)
    return share.masked_fill(~targets.any(-1), torch.nan)

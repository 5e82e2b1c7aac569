"""The logit lens: what the model would predict if it ended after an earlier layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import torch
from torch import Tensor

from minigpt.errors import InvalidRequest
from minigpt.interp.points import expand, point_of
from minigpt.interp.recording import Recording
from minigpt.interp.tuned_lens import TunedLens
from minigpt.json_files import counted, shown
from minigpt.model import GPT2

# Shapes below:  N layers of the lens · B rows · T tokens · D n_embd · V vocab_size

AFTER_EACH_LAYER = ("embed", "blocks.*.resid_post")
# KL in nats that rounding may cause: bfloat16 rounds logits of -100 to multiples of 0.5, which is about 0.01.
ROUNDING = 0.05


@dataclass(frozen=True)
class LensReading:
    """What each layer would predict; layers in the order of the model, the last one's is its prediction.

    Padding predicts nothing: there `entropy`, `kl` and `target_logprobs` are NaN, `rank` is 0, and the other
    values mean nothing.

    Shapes: `top_tokens` and `top_logprobs` (N, B, T, top); `entropy`, `kl`, `rank` and `target_logprobs` (N, B, T);
    `targets` (B, T)
    """

    points: list[str]
    tokens: Tensor  # (B, T)
    pad: Tensor  # (B,), how many of each row's first tokens are padding
    top_tokens: Tensor
    top_logprobs: Tensor  # nats
    entropy: Tensor  # of the prediction, in nats
    kl: Tensor  # KL(last layer || this layer), in nats
    targets: Tensor
    rank: Tensor  # of the target: 1 is the likeliest
    target_logprobs: Tensor  # nats

    def __repr__(self) -> str:
        rows, n = self.tokens.shape
        return f"LensReading({counted(len(self.points), 'layers')}, {rows} x {n} tokens)"

    def _repr_html_(self) -> str:
        """For notebooks: what `plots.lens` draws token by token, as means over all tokens but padding."""
        head = (
            "<tr><th>point</th><th>entropy</th><th>KL to the last layer</th><th>rank of the target</th></tr>"
        )
        real = ~_padding(self.tokens, self.pad)
        means = zip(
            *(x[:, real].float().mean(1).tolist() for x in (self.entropy, self.kl, self.rank)), strict=True
        )
        rows = "".join(
            f"<tr><td>{escape(name)}</td><td>{entropy:.3f}</td><td>{kl:z.3f}</td><td>{rank:.1f}</td></tr>"
            for name, (entropy, kl, rank) in zip(self.points, means, strict=True)
        )
        return f"<table><caption>{escape(repr(self))}: means, in nats</caption>{head}{rows}</table>"


def logit_lens(
    model: GPT2,
    seen: Recording,
    points: Sequence[str] = AFTER_EACH_LAYER,
    *,
    targets: Tensor | None = None,
    top: int = 5,
    tuned: TunedLens | None = None,
) -> LensReading:
    """Reads the residual stream at each point as if it were the last: softmax(LN_f(x) W_U).

    The final norm is computed anew at each point. The last row is the model's own prediction: an edit of
    `final_norm` or `logits` is not in it, and where the recorded logits show one, this raises.

    Args:
        model: that was recorded.
        seen: a recording with these points and the last `resid_post`.
        points: of the stream: also `resid_mid`, between attention and MLP.
        targets: tokens (B, T) whose rank is wanted; the model's own choices unless given.
        top: how many of the likeliest tokens to keep.
        tuned: translates each layer first; see `TunedLens`.

    Raises:
        KeyError: a point was not recorded.
        IndexError: a target is no token.
        ValueError: a point is none of the stream, `top` is below 1, the targets are not one for each token, the
            recording is of a model of another width, or its logits are not what this model makes of its stream.

    Source: nostalgebraist 2020, "interpreting GPT: the logit lens".

    >>> import minigpt
    >>> from minigpt.interp import record_text
    >>> model, tokenizer = minigpt.load()
    >>> seen = record_text(model, tokenizer.encode("Once upon a"), "embed", "blocks.*.resid_post")
    >>> reading = logit_lens(model, seen)
    >>> tokenizer.decode([int(reading.top_tokens[-1, 0, -1, 0])]), reading.rank[-1, 0].tolist()
    (' time', [1, 1, 1])
    """
    names = expand(model.config, points)
    require_stream(names)
    _require_at_least_one("top", top)
    seen.require_whole(*names, last_point(model))
    last = lens_logprobs(model, seen[last_point(model)])  # (B, T, V)
    _require_recorded_prediction(seen, last)
    targets = last.argmax(-1) if targets is None else _checked(targets, last)
    columns: list[list[Tensor]] = []
    for name in names:  # one layer at a time: all of them at once would be N x T x V numbers
        logprobs = lens_logprobs(model, seen[name], name, tuned)
        best = logprobs.topk(min(top, logprobs.size(-1)))
        target = logprobs.gather(-1, targets[..., None])
        columns.append([
            best.indices, best.values,
            -(logprobs.exp() * logprobs).nan_to_num().sum(-1),
            (last.exp() * (last - logprobs)).nan_to_num().sum(-1),
            (logprobs > target).sum(-1) + 1,
            target[..., 0],
        ])  # fmt: skip
    tokens, logprobs, entropy, kl, rank, target_logprobs = (
        torch.stack(column) for column in zip(*columns, strict=True)
    )
    pad = _recorded_pad(seen)
    padding = _padding(tokens[0, ..., 0], pad)
    return LensReading(
        names, seen.tokens, pad, tokens, logprobs, entropy.masked_fill(padding, torch.nan),
        kl.masked_fill(padding, torch.nan), targets, rank.masked_fill(padding, 0),
        target_logprobs.masked_fill(padding, torch.nan),
    )  # fmt: skip


def best_in_any_layer(
    model: GPT2,
    seen: Recording,
    points: Sequence[str] = AFTER_EACH_LAYER,
    *,
    row: int = 0,
    position: int | None = None,
    n: int = 5,
    tuned: TunedLens | None = None,
) -> tuple[Tensor, Tensor]:
    """The `n` tokens that come closest to the top at any layer, and their rank at each of them.

    A token may be the best guess half-way and forgotten at the end: the last layer's favourites do not show it.

    Args:
        row: which text of the batch.
        position: of which prediction, counted from the row's first token; the last unless given.

    Shapes: token ids (n,), ranks from 1 (N, n)

    Raises:
        IndexError: there is no such row or position.
        ValueError: a point is none of the stream, or `n` is below 1.

    >>> import minigpt
    >>> from minigpt.interp import record_text
    >>> model, tokenizer = minigpt.load()
    >>> seen = record_text(model, tokenizer.encode("Once upon a"), "embed", "blocks.*.resid_post")
    >>> tokens, ranks = best_in_any_layer(model, seen, n=3)
    >>> ranks.amin(0)
    tensor([1, 1, 1])
    """
    names, alone = expand(model.config, points), seen.row(row)
    require_stream(names)
    _require_at_least_one("n", n)
    seen.require_whole(*names)
    at = position_in(alone, position)
    rows = [lens_logprobs(model, alone[name][0, at], name, tuned) for name in names]
    logprobs = torch.stack(rows)  # (N, V)
    likelier = logprobs.size(-1) - torch.searchsorted(logprobs.sort().values, logprobs, right=True)
    ranks = 1 + likelier  # equals have one rank, as in `LensReading`
    best = ranks.amin(0)
    # Of equal ranks, that comes first which is reached in a later layer.
    when = (ranks == best).long().cumsum(0).argmax(0)
    tokens = (best * len(names) - when).argsort(stable=True)[:n]
    return tokens, ranks[:, tokens]


def lens_logprobs(model: GPT2, x: Tensor, name: str = "", tuned: TunedLens | None = None) -> Tensor:
    """Log-probabilities that a piece of the stream stands for: (..., D)  ->  (..., V), float32 at least."""
    with torch.no_grad():
        return lens_logits(model, x if tuned is None else tuned(x, name)).log_softmax(-1)


@torch.no_grad()
def lens_logits(model: GPT2, x: Tensor) -> Tensor:
    """Logits that a piece of the stream stands for: (..., D)  ->  (..., V), float32 at least."""
    if x.size(-1) != model.config.n_embd:
        raise ValueError(f"the recording's stream is {x.size(-1)} wide, this model's {model.config.n_embd}")
    # `.forward`, not a call: hooks must not take this for a pass.
    logits = model.head.forward(model.final_norm.forward(x), model.token_embedding.weight)
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def last_point(model: GPT2) -> str:
    return f"blocks.{model.config.n_layer - 1}.resid_post"


def require_stream(names: Sequence[str]) -> None:
    """Raises ValueError for a point that is none of the residual stream, or where there is none at all."""
    if not names:
        raise ValueError("a lens reads at least one point of the residual stream, got none")
    other = [
        name for name in names if point_of(name).name not in ("embed", "resid_pre", "resid_mid", "resid_post")
    ]
    if other:
        raise ValueError(
            f"{other[0]} is not the residual stream: a lens reads embed, resid_pre, resid_mid, resid_post"
        )


def recorded_logits(seen: Recording) -> Tensor | None:
    """The logits of every token, or of the last one: of text that was generated there are not all. None without any.

    Shapes: (B, T or 1, V), without a graph
    """
    if "logits" not in seen.names:
        return None
    logits = seen["logits"].detach()
    return logits if logits.size(1) == seen.tokens.size(1) else logits[:, -1:]


@torch.no_grad()
def _require_recorded_prediction(seen: Recording, last: Tensor) -> None:
    """Raises ValueError where logits were recorded that are not those of the last layer's stream."""
    logits = recorded_logits(seen)
    if logits is None:
        return
    recorded, n = logits.to(last.dtype).log_softmax(-1), logits.size(1)
    kl = (recorded.exp() * (recorded - last[:, -n:])).nan_to_num().sum(-1)  # (B, n)
    kl = kl.masked_fill(_padding(seen.tokens, _recorded_pad(seen))[:, -n:].to(kl.device), 0)
    if kl.max() > ROUNDING:
        row, token = divmod(int(kl.argmax()), n)
        raise ValueError(
            f"the recorded logits of row {row}, token {last.size(1) - n + token}, are not what this model makes of "
            f"its last layer: KL {float(kl.max()):.3g} nats, where rounding causes at most {ROUNDING}. They were "
            "recorded under an edit of final_norm or logits, or from another model: give the model that was "
            "recorded, and a recording without that edit"
        )


def _recorded_pad(seen: Recording) -> Tensor:
    """How many of each row's first tokens are padding (B,); what was read before the recording is not among them."""
    return (seen.pad - seen.start).clamp_min(0)


def _padding(tokens: Tensor, pad: Tensor) -> Tensor:
    """Which of the tokens are padding: (B, T), (B,)  ->  (B, T), on the tokens' device."""
    return torch.arange(tokens.size(1), device=tokens.device) < pad.to(tokens.device)[:, None]


def _require_at_least_one(name: str, n: int) -> None:
    """Raises InvalidRequest unless the argument is a number of tokens to keep."""
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise InvalidRequest(f"{name} is how many tokens to keep, a whole number from 1 on, got {shown(n)}")


def _checked(targets: Tensor, logprobs: Tensor) -> Tensor:
    """The targets, if there is one for each prediction and all are tokens; on the predictions' device."""
    if not isinstance(targets, Tensor):
        raise InvalidRequest(f"targets is a tensor of token ids, one for each token, got {shown(targets)}")
    if targets.shape != logprobs.shape[:-1]:
        raise ValueError(
            f"targets have shape {tuple(targets.shape)}, the tokens {tuple(logprobs.shape[:-1])}"
        )
    if not 0 <= int(targets.min()) <= int(targets.max()) < logprobs.size(-1):
        raise IndexError(f"targets must be ids from 0 to {logprobs.size(-1) - 1}")
    return targets.to(logprobs.device)


def position_in(alone: Recording, position: int | None) -> int:
    """The index of a position in a recording of one text; None is the last.

    Raises:
        IndexError: the recording does not have it.
    """
    n = alone.tokens.size(1)
    if position is None:
        return n - 1
    if not 0 <= position - alone.start < n:
        raise IndexError(
            f"there is no position {position}: the recording has {alone.start} to {alone.start + n - 1}"
        )
    return position - alone.start

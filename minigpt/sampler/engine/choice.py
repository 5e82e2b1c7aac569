"""Choosing tokens from scores; of equal ones always the first."""

from __future__ import annotations

import math
from collections.abc import Sequence

from minigpt.errors import InvalidRequest
from minigpt.json_files import counted
from minigpt.lazy import Tensor, torch
from minigpt.sampler.engine.active_sequence import ActiveSequence
from minigpt.sampler.engine.random_stream import sample
from minigpt.sampler.events import Request

GROUP = 64  # scores, of which first the greatest is looked at alone
EQUAL = 1e-5  # by how much values may differ, of 1 or of their size, that are equal in exact arithmetic

# Shapes below:  B rows (texts in progress) · V vocabulary · F texts with K candidates each


def choose(scores: Tensor, sequences: Sequence[ActiveSequence]) -> Tensor:
    """The next token of each text: sampled by the text's own random numbers if it has some, else the most likely.

    Shapes: (B, V)  ->  (B,)
    """
    streams = [sequence.random_stream for sequence in sequences]
    keys = [
        stream.key(len(sequence.tokens))
        for sequence, stream in zip(sequences, streams, strict=True)
        if stream
    ]
    return sample(scores, keys) if keys else argmax(scores)


def argmax(scores: Tensor) -> Tensor:
    """The most likely token of each row; of equals the first.

    Shapes: (B, V)  ->  (B,)
    """
    if scores.is_cpu and scores.dtype == torch.float32:  # numpy takes a tenth of torch's time
        return torch.from_numpy(scores.numpy().argmax(-1))
    return scores.argmax(-1)


def top_k_ids(scores: Tensor, k: int) -> Tensor:
    """The `k` best of one row, best first; of equals the first come first, as `topk` does not promise.

    Shapes: (V,)  ->  (k,), fewer where there are fewer
    """
    k = min(k, scores.numel())
    ids = _top_k_candidates(scores, k)
    some = scores[ids]
    ids = ids[some >= some.topk(k).values[-1]]  # more than k where several tie with the k-th
    return ids[scores[ids].argsort(descending=True, stable=True)[:k]]


def _top_k_candidates(scores: Tensor, k: int) -> Tensor:
    """The places of some scores of one row, in order, among them the `k` best and their equals.

    They lie in groups whose best is among the best of all groups. So few are sorted: of gpt2's vocabulary that takes a fraction
    of the time of `topk`.

    Shapes: (V,)  ->  (at least k,)
    """
    n = scores.numel()
    grouped = n // GROUP * GROUP
    if grouped < k * GROUP:
        return torch.arange(n, device=scores.device)
    best = scores[:grouped].view(-1, GROUP).amax(1)
    groups = (best >= best.topk(k).values[-1]).nonzero() * GROUP
    places = torch.arange(GROUP, device=scores.device)
    return torch.cat([(groups + places).flatten(), torch.arange(grouped, n, device=scores.device)])


def top_logprobs(logprobs: Tensor, n: int) -> list[list[tuple[int, float]]]:
    """The `n` most likely tokens of each row and their log-probabilities, best first.  Shape: (B, V)."""
    if not n:
        return [[] for _ in range(logprobs.size(0))]
    best = [top_k_ids(row, n) for row in logprobs]
    return [
        list(zip(ids.tolist(), row[ids].tolist(), strict=True))
        for ids, row in zip(best, logprobs, strict=True)
    ]


def require_possible(best: list[float], requests: Sequence[Request]) -> None:
    """Refuses to choose where even the best score of a row is none: -inf, +inf or NaN.

    Raises:
        InvalidRequest: that of one row is; the message says what to do.
    """
    for score, request in zip(best, requests, strict=True):
        if not math.isfinite(score):
            raise InvalidRequest(
                f"no token is left to choose after {counted(len(request.prompt), 'prompt tokens')}: the options rule"
                " out every one (or the logits are not finite numbers, as float16 can cause); loosen them, or use float32"
            )


def argmax_within_rounding(values: Tensor) -> Tensor:
    """The place of the best value of each row; of those that are equal but for rounding, of the first.

    The same numbers computed in other rows of a batch may differ in their last bits, and how they do depends
    on the processor. What is equal in exact arithmetic is decided by its order, the same everywhere.

    Shapes: (F, K)  ->  (F,)

    >>> import torch
    >>> argmax_within_rounding(torch.tensor([[0.3, 0.7, 0.70000005], [0.1, 0.2, 0.3]])).tolist()
    [1, 2]
    """
    best = values.amax(-1, keepdim=True)
    return (values >= best - EQUAL * best.abs().clamp_min(1)).float().argmax(-1)


def top_k_within_rounding(scores: Tensor, k: int) -> list[int]:
    """The places of the `k` best of one row, best first; of those that are equal but for rounding, the first.

    What is equal to the best of the rest has its rank, and so on downwards. There are fewer than `k` where fewer are
    possible: none that is ruled out (-inf) has a rank.

    Shapes: (N,)  ->  k places

    >>> import torch
    >>> top_k_within_rounding(torch.tensor([0.7, 0.3, 0.70000005, 0.9]), 3)
    [3, 0, 2]
    """
    least = scores.topk(min(k, scores.numel())).values[-1]
    near = (scores >= least - EQUAL * least.abs().clamp_min(1)) & (scores > float("-inf"))
    places = near.nonzero()[:, 0]
    best_first = sorted(zip(scores[places].tolist(), places.tolist(), strict=True), reverse=True)
    by_rank: list[tuple[float, int]] = []
    rank: float | None = None
    for score, place in best_first:
        if rank is None or score < rank - EQUAL * max(1, abs(rank)):
            rank = score
        by_rank.append((-rank, place))
    return [place for _, place in sorted(by_rank)[:k]]

"""Steps that look at the distribution alone: how daring it is, and which of its tail is cut off."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from minigpt.sampler.processors.processor import RULED_OUT, require


@dataclass(frozen=True)
class Temperature:
    """Divides the logits: below 1 the likely become likelier, above 1 the odds even out."""

    value: float

    def __post_init__(self) -> None:
        require(self.value > 0, "temperature", self.value, "above 0; for no randomness use greedy")

    def __call__(self, logits: Tensor, tokens: Tensor) -> Tensor:
        return logits / self.value


@dataclass(frozen=True)
class TopNSigma:
    """Drops tokens whose logit is more than `n` standard deviations below the best.

    Most logits lie around their mean like noise; those worth writing stand out from it. The temperature
    scales logits and deviation alike, so it makes the choice among the same tokens wilder or tamer.

    Source: Tang et al. 2024 (top-n-sigma), section 3; the deviation is that of all finite logits, not a
    sample's, as in llama.cpp.

    >>> TopNSigma(1.0)(torch.tensor([[4.0, 3.0, 1.0, 0.0]]), torch.tensor([[0]]))  # deviation 1.58
    tensor([[4., 3., -inf, -inf]])
    """

    n: float
    keep: int = 1  # never fewer than these

    def __post_init__(self) -> None:
        require(self.n > 0, "top_n_sigma", self.n, "above 0 (0 is off)")

    def __call__(self, logits: Tensor, tokens: Tensor) -> Tensor:
        finite = logits > RULED_OUT
        count = finite.sum(-1, keepdim=True)
        mean = logits.masked_fill(~finite, 0).sum(-1, keepdim=True) / count
        variance = (logits - mean).square().masked_fill(~finite, 0).sum(-1, keepdim=True) / count
        dropped = logits < logits.amax(-1, keepdim=True) - self.n * variance.sqrt()
        return logits.masked_fill(dropped & _beyond(self.keep, logits), RULED_OUT)


@dataclass(frozen=True)
class TopK:
    """Only the `k` likeliest tokens stay, and those that tie with the k-th.

    Source: Fan et al. 2018, section 5.

    >>> TopK(2)(torch.tensor([[1.0, 3.0, 2.0, 2.0]]), torch.tensor([[0]]))
    tensor([[-inf, 3., 2., 2.]])
    """

    k: int
    keep: int = 1

    def __post_init__(self) -> None:
        require(
            isinstance(self.k, int) and self.k >= 1,
            "top_k",
            self.k,
            "a whole number of at least 1 (0 is off)",
        )

    def __call__(self, logits: Tensor, tokens: Tensor) -> Tensor:
        k = min(max(self.k, self.keep), logits.size(-1))
        return logits.masked_fill(logits < logits.topk(k).values[:, -1:], RULED_OUT)


@dataclass(frozen=True)
class TopP:
    """The smallest set of likeliest tokens whose probability reaches `p`; the one that crosses it stays.

    Source: Holtzman et al. 2020 (nucleus sampling), section 3.1.

    >>> TopP(0.6)(torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log(), torch.tensor([[0]])).exp()
    tensor([[0.5000, 0.3000, 0.0000, 0.0000]])
    """

    p: float
    keep: int = 1

    def __post_init__(self) -> None:
        require(0 <= self.p <= 1, "top_p", self.p, "from 0 to 1")

    def __call__(self, logits: Tensor, tokens: Tensor) -> Tensor:
        ranked, order = logits.sort()  # from unlikely to likely: the small probabilities add up exactly
        dropped = ranked.softmax(-1).cumsum(-1) <= 1 - self.p
        dropped[:, -self.keep :] = False
        return logits.masked_fill(dropped.scatter(1, order, dropped), RULED_OUT)


@dataclass(frozen=True)
class MinP:
    """Drops tokens less than `p` times as likely as the likeliest.

    Source: Nguyen et al. 2024 (min-p sampling), section 3.
    """

    p: float
    keep: int = 1

    def __post_init__(self) -> None:
        require(0 <= self.p <= 1, "min_p", self.p, "from 0 to 1")

    def __call__(self, logits: Tensor, tokens: Tensor) -> Tensor:
        probabilities = logits.softmax(-1)
        dropped = probabilities < self.p * probabilities.amax(-1, keepdim=True)
        kept = probabilities.topk(min(self.keep, logits.size(-1))).indices
        return logits.masked_fill(dropped.scatter(-1, kept, False), RULED_OUT)


@dataclass(frozen=True)
class Typical:
    """Keeps the tokens about as surprising as the distribution is on average, up to a mass of `p`.

    Source: Meister et al. 2023 (locally typical sampling), section 4.
    """

    p: float
    keep: int = 1

    def __post_init__(self) -> None:
        require(0 < self.p < 1, "typical_p", self.p, "above 0 and below 1")

    def __call__(self, logits: Tensor, tokens: Tensor) -> Tensor:
        logprobs = logits.log_softmax(-1)
        entropy = -(logprobs.exp() * logprobs).nansum(-1, keepdim=True)  # 0 * -inf counts nothing
        distance, order = (-logprobs - entropy).abs().sort()
        mass = logits.gather(-1, order).softmax(-1).cumsum(-1)
        last = (mass < self.p).sum(-1, keepdim=True).clamp_max(logits.size(-1) - 1)
        dropped = distance > distance.gather(-1, last)
        dropped[:, : self.keep] = False
        return logits.masked_fill(dropped.scatter(1, order, dropped), RULED_OUT)


@dataclass(frozen=True)
class EpsilonCutoff:
    """Drops tokens less likely than `epsilon`.

    Source: Hewitt et al. 2022, section 4 (epsilon sampling).
    """

    epsilon: float
    keep: int = 1

    def __post_init__(self) -> None:
        require(0 < self.epsilon < 1, "epsilon_cutoff", self.epsilon, "above 0 and below 1 (0 is off)")

    def __call__(self, logits: Tensor, tokens: Tensor) -> Tensor:
        dropped = logits.softmax(-1) < self.epsilon
        return logits.masked_fill(dropped & _beyond(self.keep, logits), RULED_OUT)


@dataclass(frozen=True)
class EtaCutoff:
    """Drops tokens less likely than `epsilon`, or than less where the model is of many minds.

    The limit is min(epsilon, sqrt(epsilon) * exp(-entropy)).

    Source: Hewitt et al. 2022, section 4 (eta sampling).
    """

    epsilon: float
    keep: int = 1

    def __post_init__(self) -> None:
        require(0 < self.epsilon < 1, "eta_cutoff", self.epsilon, "above 0 and below 1 (0 is off)")

    def __call__(self, logits: Tensor, tokens: Tensor) -> Tensor:
        logprobs = logits - logits.logsumexp(-1, keepdim=True)
        finite = logprobs.clamp_min(torch.finfo(logits.dtype).min)  # 0 * -inf counts nothing
        entropy = -(finite * logprobs.softmax(-1)).sum(-1, keepdim=True)
        epsilon = torch.tensor(self.epsilon, device=logits.device)
        dropped = logits.softmax(-1) < torch.minimum(epsilon, epsilon.sqrt() * (-entropy).exp())
        return logits.masked_fill(dropped & _beyond(self.keep, logits), RULED_OUT)


def _beyond(keep: int, logits: Tensor) -> Tensor:
    """Which tokens are less likely than the `keep` likeliest: (B, V)  ->  (B, V)."""
    return logits < logits.topk(min(keep, logits.size(-1))).values[:, -1:]

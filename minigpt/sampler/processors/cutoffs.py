"""Processors that look at the distribution alone: temperature and truncation (top-k, top-p, min-p, ...)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from minigpt.lazy import Tensor, numpy, torch
from minigpt.options import HUGE, option, require_in_range
from minigpt.sampler.processors.processor import RULED_OUT, Processor, TextContext
from minigpt.sampler.seed import Seeded


@dataclass(frozen=True, kw_only=True)
class CutoffOptions(Seeded):
    """Temperature and truncation, for strategies that sample."""

    # fmt: off
    temperature: float = option(1.0, "below 1 sharpens, above 1 flattens the distribution, 0 takes the most likely token; 0.7 to 1.2 "
        "is usual",
        group="sampling", least=1e-6, most=1e4, off=0, metavar="T")
    top_k: int = option(0, "sample from the K most likely tokens; 40 is usual",
        group="sampling", least=1, below=HUGE, off=0, metavar="K")
    top_p: float = option(1.0, "sample from the smallest set of tokens with cumulative probability P (nucleus); "
        "0.9 to 0.95 is usual", group="sampling", least=0, most=1, off=1.0, metavar="P")
    min_p: float | None = option(None, "drop tokens less than P times as likely as the most likely one; 0.05 to 0.1 is usual",
        group="sampling", kind=float, least=0, most=1, metavar="P")
    typical_p: float = option(1.0, "sample from tokens whose surprisal is close to the entropy, of cumulative probability P "
        "(locally typical); 0.2 to 0.95 is usual", group="sampling", above=0, most=1, off=1.0, metavar="P")
    epsilon_cutoff: float = option(0.0, "drop tokens of a probability below E; 3e-4 to 9e-4 is usual",
        group="sampling", above=0, below=1, off=0, metavar="E")
    eta_cutoff: float = option(0.0, "as --epsilon-cutoff, with a lower threshold where entropy is high; 3e-4 to 4e-3 is usual",
        group="sampling", above=0, below=1, off=0, metavar="E")
    top_n_sigma: float = option(0.0, "sample from tokens within N standard deviations of the highest logit; 1 is usual",
        group="sampling", above=0, off=0, metavar="N")
    # fmt: on


@dataclass(frozen=True)
class Temperature:
    """Divides the logits: below 1 sharpens the distribution, above 1 flattens it."""

    value: float

    options: ClassVar[type] = CutoffOptions

    def __post_init__(self) -> None:
        require_in_range(CutoffOptions, temperature=self.value)

    @classmethod
    def for_text(cls, options: CutoffOptions, context: TextContext) -> Iterator[Processor]:
        if options.samples and options.temperature != 1:
            yield cls(options.temperature)

    def __call__(self, logits: Tensor, tokens: Tensor) -> Tensor:
        return logits / self.value


@dataclass(frozen=True)
class TopNSigma:
    """Drops tokens whose logit is more than `n` standard deviations below the highest.

    Most logits are noise around their mean; those of plausible tokens stand out from it. The temperature
    scales logits and deviation alike, so it changes the distribution over the same set of tokens.

    Source: Tang et al. 2024 (top-n-sigma), section 3; the deviation is that of all finite logits, not a
    sample's, as in llama.cpp.

    >>> TopNSigma(1.0)(torch.tensor([[4.0, 3.0, 1.0, 0.0]]), torch.tensor([[0]]))  # deviation 1.58
    tensor([[4., 3., -inf, -inf]])
    """

    n: float
    keep: int = 1  # never fewer than these

    options: ClassVar[type] = CutoffOptions

    def __post_init__(self) -> None:
        require_in_range(CutoffOptions, top_n_sigma=self.n)

    @classmethod
    def for_text(cls, options: CutoffOptions, context: TextContext) -> Iterator[Processor]:
        if options.samples and options.top_n_sigma:
            yield cls(options.top_n_sigma, context.keep)

    def __call__(self, logits: Tensor, tokens: Tensor) -> Tensor:
        finite = logits > RULED_OUT
        count = finite.sum(-1, keepdim=True)
        mean = logits.masked_fill(~finite, 0).sum(-1, keepdim=True) / count
        variance = (logits - mean).square().masked_fill(~finite, 0).sum(-1, keepdim=True) / count
        dropped = logits < logits.amax(-1, keepdim=True) - self.n * variance.sqrt()
        return logits.masked_fill(dropped & _beyond(self.keep, logits), RULED_OUT)


@dataclass(frozen=True)
class TopK:
    """Keeps the `k` most likely tokens, and those that tie with the k-th.

    Source: Fan et al. 2018, section 5.

    >>> TopK(2)(torch.tensor([[1.0, 3.0, 2.0, 2.0]]), torch.tensor([[0]]))
    tensor([[-inf, 3., 2., 2.]])
    """

    k: int
    keep: int = 1

    options: ClassVar[type] = CutoffOptions

    def __post_init__(self) -> None:
        require_in_range(CutoffOptions, top_k=self.k)

    @classmethod
    def for_text(cls, options: CutoffOptions, context: TextContext) -> Iterator[Processor]:
        if options.samples and options.top_k:
            yield cls(options.top_k, context.keep)

    def __call__(self, logits: Tensor, tokens: Tensor) -> Tensor:
        k = min(max(self.k, self.keep), logits.size(-1))
        return logits.masked_fill(logits < logits.topk(k).values[:, -1:], RULED_OUT)


@dataclass(frozen=True)
class TopP:
    """Keeps the smallest set of most likely tokens whose probability reaches `p`, the one that crosses it included.

    Source: Holtzman et al. 2020 (nucleus sampling), section 3.1.

    >>> TopP(0.6)(torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log(), torch.tensor([[0]])).exp()
    tensor([[0.5000, 0.3000, 0.0000, 0.0000]])
    """

    p: float
    keep: int = 1

    options: ClassVar[type] = CutoffOptions

    def __post_init__(self) -> None:
        require_in_range(CutoffOptions, top_p=self.p)

    @classmethod
    def for_text(cls, options: CutoffOptions, context: TextContext) -> Iterator[Processor]:
        if options.samples and options.top_p != 1:
            yield cls(options.top_p, context.keep)

    def __call__(self, logits: Tensor, tokens: Tensor) -> Tensor:
        ranked = _ascending(logits)  # so that the small probabilities add up exactly
        dropped = ranked.softmax(-1).cumsum(-1) <= 1 - self.p
        dropped[:, -self.keep :] = False
        n_dropped = dropped.sum(-1, keepdim=True)
        unlikely = logits < ranked.gather(-1, n_dropped)  # than the least likely token that is kept
        if not unlikely.sum(-1, keepdim=True).equal(n_dropped):  # of equals some are kept: torch says which
            unlikely = dropped.scatter(1, logits.sort().indices, dropped)
        return logits.masked_fill(unlikely, RULED_OUT)


@dataclass(frozen=True)
class MinP:
    """Drops tokens less than `p` times as likely as the most likely one.

    Source: Nguyen et al. 2024 (min-p sampling), section 3.
    """

    p: float
    keep: int = 1

    options: ClassVar[type] = CutoffOptions

    def __post_init__(self) -> None:
        require_in_range(CutoffOptions, min_p=self.p)

    @classmethod
    def for_text(cls, options: CutoffOptions, context: TextContext) -> Iterator[Processor]:
        if options.samples and options.min_p is not None:
            yield cls(options.min_p, context.keep)

    def __call__(self, logits: Tensor, tokens: Tensor) -> Tensor:
        probabilities = logits.softmax(-1)
        dropped = probabilities < self.p * probabilities.amax(-1, keepdim=True)
        kept = probabilities.topk(min(self.keep, logits.size(-1))).indices
        return logits.masked_fill(dropped.scatter(-1, kept, False), RULED_OUT)


@dataclass(frozen=True)
class Typical:
    """Keeps the tokens whose information content is nearest to the entropy, up to a cumulative probability of `p`.

    Source: Meister et al. 2023 (locally typical sampling), section 4.
    """

    p: float
    keep: int = 1

    options: ClassVar[type] = CutoffOptions

    def __post_init__(self) -> None:
        require_in_range(CutoffOptions, typical_p=self.p)

    @classmethod
    def for_text(cls, options: CutoffOptions, context: TextContext) -> Iterator[Processor]:
        if options.samples and options.typical_p != 1:
            yield cls(options.typical_p, context.keep)

    def __call__(self, logits: Tensor, tokens: Tensor) -> Tensor:
        logprobs = logits.log_softmax(-1)
        entropy = -(logprobs.exp() * logprobs).nansum(-1, keepdim=True)  # 0 * -inf is NaN; treat as 0
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

    options: ClassVar[type] = CutoffOptions

    def __post_init__(self) -> None:
        require_in_range(CutoffOptions, epsilon_cutoff=self.epsilon)

    @classmethod
    def for_text(cls, options: CutoffOptions, context: TextContext) -> Iterator[Processor]:
        if options.samples and options.epsilon_cutoff:
            yield cls(options.epsilon_cutoff, context.keep)

    def __call__(self, logits: Tensor, tokens: Tensor) -> Tensor:
        dropped = logits.softmax(-1) < self.epsilon
        return logits.masked_fill(dropped & _beyond(self.keep, logits), RULED_OUT)


@dataclass(frozen=True)
class EtaCutoff:
    """Drops tokens less likely than `epsilon`, or than a lower threshold where entropy is high.

    The limit is min(epsilon, sqrt(epsilon) * exp(-entropy)).

    Source: Hewitt et al. 2022, section 4 (eta sampling).
    """

    epsilon: float
    keep: int = 1

    options: ClassVar[type] = CutoffOptions

    def __post_init__(self) -> None:
        require_in_range(CutoffOptions, eta_cutoff=self.epsilon)

    @classmethod
    def for_text(cls, options: CutoffOptions, context: TextContext) -> Iterator[Processor]:
        if options.samples and options.eta_cutoff:
            yield cls(options.eta_cutoff, context.keep)

    def __call__(self, logits: Tensor, tokens: Tensor) -> Tensor:
        logprobs = logits - logits.logsumexp(-1, keepdim=True)
        finite = logprobs.clamp_min(torch.finfo(logits.dtype).min)  # 0 * -inf is NaN; treat as 0
        entropy = -(finite * logprobs.softmax(-1)).sum(-1, keepdim=True)
        epsilon = torch.tensor(self.epsilon, device=logits.device)
        dropped = logits.softmax(-1) < torch.minimum(epsilon, epsilon.sqrt() * (-entropy).exp())
        return logits.masked_fill(dropped & _beyond(self.keep, logits), RULED_OUT)


def _ascending(logits: Tensor) -> Tensor:
    """Each row in ascending order: (B, V)  ->  (B, V)."""
    if logits.device.type == "cpu" and logits.dtype == torch.float32:
        # torch sorts the tokens along with their logits, which takes many times as long.
        return torch.from_numpy(numpy.sort(logits.detach().numpy()))
    return logits.sort().values


def _beyond(keep: int, logits: Tensor) -> Tensor:
    """Which tokens are less likely than the `keep` most likely ones: (B, V)  ->  (B, V)."""
    return logits < logits.topk(min(keep, logits.size(-1))).values[:, -1:]

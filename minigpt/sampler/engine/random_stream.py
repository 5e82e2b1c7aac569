"""Reproducible random sampling: the same random numbers for the same seed, whatever the device, the batch or the drafts.

Which token they lead to depends on the logits, too, and those of two devices differ in their last bits: where two
tokens are as good as tied, a GPU may sample the one and a CPU the other.

Every text has a stream of random numbers of its own, and in it every position and every token has one: a
pure function of (seed, prompt, number of the text, position, token). Nothing is consumed, so reading ahead,
going back, or a batch mate that samples more or less changes no number.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING

from minigpt.lazy import Tensor, numpy, torch

if TYPE_CHECKING:
    from numpy import float64, intp, uint64
    from numpy.typing import NDArray

# Shapes below:  B rows · V vocabulary · N numbers

GAMMA, FIRST, SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB  # of SplitMix64


class RandomStream:
    """The random numbers of one text, fixed by the seed, the prompt and the number of the text.

    Args:
        seed: at least 0, of any size.
        prompt: its token ids, or the name that stands for it.
        index: which of its prompt's texts this is.
        purpose: keeps apart what one text samples for different ends.

    >>> stream = RandomStream(7, [5, 6])
    >>> stream.uniform(0) == RandomStream(7, (5, 6)).uniform(0) != stream.uniform(1)
    True
    """

    def __init__(
        self, seed: int, prompt: str | Sequence[int], index: int = 0, purpose: str = "token"
    ) -> None:
        # JSON distinguishes all of these: a list from a string of digits, [1, 23] from [12, 3].
        named = json.dumps([purpose, int(seed), index, prompt if isinstance(prompt, str) else list(prompt)])
        self._key = blake2b(named.encode("ascii"), digest_size=32).digest()

    def key(self, position: int) -> int:
        """The 64 bits from which all numbers of one position follow."""
        hashed = blake2b(position.to_bytes(8, "little"), key=self._key, digest_size=8)
        return int.from_bytes(hashed.digest(), "little")

    def uniform(self, position: int) -> float:
        """One number of a position, above 0 and below 1."""
        return float(uniform(self.key(position), numpy.zeros(1, numpy.uint64))[0])


def uniform(key: int, numbers: NDArray[uint64]) -> NDArray[float64]:
    """The random numbers of a key that have these numbers (N,): above 0 and below 1, of 52 bits.

    Source: Steele, Lea and Flood 2014 (SplitMix64), figure 17.
    """
    z = (numbers + 1) * GAMMA
    z += numpy.uint64(key)
    z ^= z >> 30
    z *= FIRST
    z ^= z >> 27
    z *= SECOND
    z ^= z >> 31
    return ((z >> 12).astype(numpy.float64) + 0.5) * 2.0**-52


def sample(logits: Tensor, keys: Sequence[int]) -> Tensor:
    """One token per row, each as often as the softmax of its row says.

    The token of least E / probability wins, where E is exponential noise, the token's own in this row's key
    (so minus its logarithm is Gumbel noise added to the logit). Two models that nearly agree then sample
    the same token nearly always, which drafts live by; had each row one number, looked up among cumulative
    probabilities, they would part wherever tokens that come before weigh more.

    On a GPU, the random numbers are computed there: copying the logits would take longer.

    Shapes: (B, V) and B keys  ->  (B,); a row of NaN or of nothing but -inf gives any token

    Source: Gumbel 1954; Maddison et al. 2014 (A* sampling), section 2.
    """
    if logits.is_cuda:
        return sample_by_torch(logits, keys)
    rows = zip(logits.cpu(), keys, strict=True)
    return torch.cat([_first_to_arrive(row, key, 1) for row, key in rows]).to(logits.device)


def sample_by_torch(logits: Tensor, keys: Sequence[int]) -> Tensor:
    """What `sample` gives, computed where the logits are.

    The bits are those of `uniform`; torch's logarithm and exponential may differ from numpy's in their last bit.

    Shapes: (B, V) and B keys  ->  (B,)
    """
    signed = torch.tensor([_signed(key) for key in keys], device=logits.device)
    z = torch.arange(1, logits.size(-1) + 1, device=logits.device) * _signed(GAMMA)
    z = z + signed[:, None]  # (B, V); products and sums wrap around, as those of unsigned integers do
    z ^= _shifted(z, 30)
    z *= _signed(FIRST)
    z ^= _shifted(z, 27)
    z *= _signed(SECOND)
    z ^= _shifted(z, 31)
    times = -((_shifted(z, 12).double() + 0.5) * 2.0**-52).log()
    return (times / (logits - logits.amax(-1, keepdim=True)).exp()).argmin(-1)


def _signed(number: int) -> int:
    """The signed integer of the same 64 bits."""
    return number - (number >> 63 << 64)


def _shifted(z: Tensor, n: int) -> Tensor:
    """Unsigned integers shifted to the right by n bits: torch shifts signed ones, and repeats the sign."""
    return (z >> n) & ((1 << 64 - n) - 1)


def sample_distinct(logits: Tensor, n: int, key: int) -> Tensor:
    """`n` different tokens of one row, sampled without replacement, in order.

    Shapes: (V,)  ->  (n,), fewer where fewer have a probability

    Source: Kool et al. 2019 (the Gumbel-top-k trick), section 2.
    """
    return _first_to_arrive(logits.cpu(), key, n).to(logits.device)


def _first_to_arrive(logits: Tensor, key: int, n: int) -> Tensor:
    """The n tokens of one row that win: (V,)  ->  (n,), or fewer, but at least one."""
    scores = logits.numpy()
    # After top-k a few of 50,000; NaN stays in, for the caller to see.
    tokens = numpy.flatnonzero(scores != -numpy.inf)
    if not len(tokens):
        return torch.zeros(1, dtype=torch.long, device="cpu")
    left = scores[tokens]
    times = -numpy.log(uniform(key, tokens.astype(numpy.uint64)))
    with numpy.errstate(divide="ignore"):  # what is too unlikely for a float never arrives
        times /= numpy.exp(left - left.max())
    return torch.from_numpy(tokens[_smallest(times, n)])


def _smallest(times: NDArray[float64], n: int) -> NDArray[intp]:
    """The places of the n smallest, in order."""
    if n == 1:
        return numpy.array([times.argmin()])
    some = times.argpartition(n - 1)[:n] if n < len(times) else numpy.arange(len(times))
    return some[times[some].argsort(kind="stable")]

"""The tokens that a page leaves out, as one number for every temperature: the log of the sum of their exponentials."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.polynomial import chebyshev
from torch import Tensor

TEMPERATURES = (0.1, 2.0)  # what the page's slider goes over
DEGREE = 31


def fit(logits: Tensor) -> Tensor:
    """The coefficients of log sum exp((logit - largest) / T), a Chebyshev series in ln T over `TEMPERATURES`.

    The function is smooth in ln T: for predictions such as GPT-2's 32 coefficients are right to 1e-9.

    Shapes: (n,), finite  ->  (DEGREE + 1,), float64

    >>> logits = torch.linspace(-9, 0, 1000, dtype=torch.float64)
    >>> abs(float(((logits / 0.7).logsumexp(0))) - at(fit(logits), 0.7)) < 1e-9
    True
    """
    below = (logits.double() - logits.max()).cpu()

    def log_sum(places: np.ndarray) -> np.ndarray:
        return np.array([float((below / temperature(float(x))).logsumexp(0)) for x in places])

    return torch.from_numpy(chebyshev.chebinterpolate(log_sum, DEGREE))


def at(coefficients: Tensor, t: float) -> float:
    """The value of the series at a temperature."""
    low, high = map(math.log, TEMPERATURES)
    return float(chebyshev.chebval((2 * math.log(t) - low - high) / (high - low), coefficients.numpy()))


def temperature(x: float) -> float:
    """The temperature at a place of the series, from -1 to 1."""
    low, high = map(math.log, TEMPERATURES)
    return math.exp((x * (high - low) + low + high) / 2)

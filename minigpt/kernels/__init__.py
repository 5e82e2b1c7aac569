"""How a CPU computes fastest: which kernel multiplies (`products`), from which memory (`room`), and functions in C."""

from minigpt.kernels.products import product
from minigpt.kernels.room import Room

__all__ = ["Room", "product"]

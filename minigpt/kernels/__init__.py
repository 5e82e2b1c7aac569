"""Kernels for the CPU: who multiplies (`products`), where weights lie in memory (`room`), functions in C (`blocks.c`)."""

from minigpt.kernels.products import product
from minigpt.kernels.room import Room

__all__ = ["Room", "product"]

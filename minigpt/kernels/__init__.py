"""Kernels for the CPU: who multiplies (`products`), where weights lie in memory (`room`), functions in C (`blocks.c`)."""

from minigpt.kernels.memory import WeightMemory
from minigpt.kernels.products import product

__all__ = ["WeightMemory", "product"]

"""Kernels for the CPU: which one multiplies (`products`), where weights lie in memory (`memory`), functions in C (`blocks.c`)."""

from minigpt.kernels.memory import WeightMemory
from minigpt.kernels.products import product

__all__ = ["WeightMemory", "product"]

"""Faster ways to compute what model.py computes; tests compare each with the modules."""

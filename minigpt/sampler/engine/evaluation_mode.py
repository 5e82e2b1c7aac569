"""Evaluation mode for the models of a run: dropout off, and no graph."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from minigpt.lazy import torch
from minigpt.sampler.events import LanguageModel

E = TypeVar("E")  # events


def in_evaluation_mode(models: Sequence[LanguageModel], events: Iterator[E]) -> Iterator[E]:
    """Passes events on, computing each with dropout off and no graph.

    Between two events the models are in whatever mode the caller puts them, which changes nothing of the text.
    """
    modules = [module for model in models for module in _modules(model)]
    while True:
        with torch.inference_mode(), _evaluating(modules):
            event = next(events, None)
        if event is None:
            return
        yield event


def _modules(model: LanguageModel) -> Iterator[torch.nn.Module]:
    """The model's torch modules; none if it is not built of them. A `Sliding` window gives its model's."""
    return model.modules() if hasattr(model, "modules") else iter(())


@contextmanager
def _evaluating(modules: Sequence[torch.nn.Module]) -> Iterator[None]:
    training = [module for module in modules if module.training]
    # By their dictionaries: to assign an attribute of a module calls Python code, in which Ctrl-C may strike.
    try:
        for module in training:
            module.__dict__["training"] = False
        yield
    finally:
        for module in training:
            module.__dict__["training"] = True

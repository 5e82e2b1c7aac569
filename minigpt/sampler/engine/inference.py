"""The models of a run: fit to be used together, and computing with dropout off and no graph."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from minigpt.errors import InvalidRequest
from minigpt.lazy import torch
from minigpt.options import flag_of
from minigpt.sampler.events import LanguageModel, PromptTooLong, Request, misfit
from minigpt.sampler.strategy import SecondModel

E = TypeVar("E")  # events


def check_second_model(model: LanguageModel, second: SecondModel, requests: Sequence[Request]) -> None:
    """Refuses a second model that does not share the vocabulary, or cannot read the texts though it must."""
    ours, theirs = model.config.vocab_size, second.model.config.vocab_size
    # Rows beyond a tokenizer's tokens pad the vocabulary to a multiple of 64, 128 or 1,024; nobody chooses them.
    padding = max(64, ours // 50) if second.optional else 1
    named = f"{second.option} ({flag_of(second.option)})"
    if abs(ours - theirs) >= padding:
        raise InvalidRequest(
            f"the {named} model has {theirs} tokens, the model {ours}: they must share one vocabulary;"
            " take one with the same tokenizer"
        )
    n_positions = second.model.config.n_positions
    longest = max(requests, key=lambda request: len(request.prompt) + request.max_new_tokens)
    if not second.optional and len(longest.prompt) + longest.max_new_tokens - 1 > n_positions:
        prompt = "the prompt" if len(requests) == 1 else "a prompt"
        sizes = len(longest.prompt), longest.max_new_tokens, n_positions
        why = misfit(prompt, *sizes, f"the {named} model")
        raise PromptTooLong(f"{why}: shorten the prompt, or ask for fewer new tokens")


def in_inference(models: Sequence[LanguageModel], events: Iterator[E]) -> Iterator[E]:
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
    """All of a model's modules, as of a window that slides over one; none of what is no such module."""
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

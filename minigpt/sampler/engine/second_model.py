"""A second model of a run: a draft or an amateur, fit to be used with the first."""

from __future__ import annotations

from collections.abc import Sequence

from minigpt.errors import InvalidRequest
from minigpt.options import flag_of
from minigpt.sampler.engine.sliding_window import Sliding
from minigpt.sampler.events import LanguageModel, PromptTooLong, Request, misfit
from minigpt.sampler.strategy import SecondModel


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
        slides = "; overflow slide moves the first model's window only" if isinstance(model, Sliding) else ""
        raise PromptTooLong(f"{why}: shorten the prompt, or ask for fewer new tokens{slides}")

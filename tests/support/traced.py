"""Decoding with traces, as several tests need it."""

from __future__ import annotations

from typing import Any

from minigpt.sampler import Completion, Strategy
from minigpt.sampler.api import run
from minigpt.sampler.events import Finished
from minigpt.sampler.requests import prepare


def traced(model: Any, prompts: list[list[int]], strategy: Strategy, **limits: Any) -> list[list[Completion]]:
    """What `generate` gives, each token with its trace."""
    events = run(model, prepare(model, prompts, trace=True, **limits), strategy)
    finished = [event for event in events if isinstance(event, Finished)]
    return [event.completions for event in sorted(finished, key=lambda event: event.prompt_index)]

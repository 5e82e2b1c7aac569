"""Every strategy by its name, for tests of what holds for all of them."""

from __future__ import annotations

from typing import Any

from minigpt import GPT2
from minigpt.options import options_of
from minigpt.sampler import Strategy
from minigpt.sampler.registry import find


def as_it_comes(name: str, *, second: GPT2, **options: Any) -> Strategy:
    """The strategy with its defaults: where it samples with a seed, where it needs a second model with this one."""
    kind = find(name)
    own: dict[str, Any] = {name: second for name, option in options_of(kind).items() if option.required}
    if "seed" in options_of(kind):
        own["seed"] = 5
    if "do_sample" in options_of(kind):
        own["do_sample"] = True
    return kind(**{**own, **options})

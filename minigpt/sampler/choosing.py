"""Taking the likeliest token or drawing lots, as asked: for strategies that do either."""

from __future__ import annotations

from dataclasses import dataclass

from minigpt.sampler.options import option
from minigpt.sampler.strategies.sample import SAMPLING, Sampling


@dataclass(frozen=True, kw_only=True)
class Choosing(Sampling):
    """The likeliest token each time, unless an option of sampling is given: then the draw of `Sample`."""

    temperature: float | None = option(  # type: ignore[assignment]
        None, "below 1 plays safe, above 1 takes risks (0.7 to 1.2)", group="sampling", metavar="T"
    )

    @property
    def draws(self) -> bool:
        # A class keeps each option's default under the option's name.
        return any(getattr(self, name) != getattr(type(self), name) for name in SAMPLING)

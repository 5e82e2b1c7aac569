"""The options of strategies that sample, always or if asked to."""

from __future__ import annotations

from dataclasses import dataclass

from minigpt.errors import InvalidRequest
from minigpt.options import named, option, options_of
from minigpt.sampler.engine.random_stream import RandomStream
from minigpt.sampler.events import Request
from minigpt.sampler.processors.order import SamplingOptions
from minigpt.sampler.strategy import Strategy


@dataclass(frozen=True, kw_only=True)
class Sampling(Strategy, SamplingOptions):
    """The options of every strategy that samples; a temperature of 0 switches sampling off."""

    def __post_init__(self) -> None:
        self.decide_seed()
        super().__post_init__()

    @property
    def samples(self) -> bool:
        return self.temperature != 0

    def random_stream(self, request: Request, index: int) -> RandomStream | None:
        if not self.samples:
            return None
        return RandomStream(self.seed_of(request.seed), request.random_name, index)


SAMPLING = frozenset(options_of(Sampling)) - frozenset(options_of(Strategy))


@dataclass(frozen=True, kw_only=True)
class Choosing(Sampling):
    """The options of strategies that take the most likely token, or sample if `do_sample` is set."""

    do_sample: bool = option(
        False,
        "sample each token, instead of taking the most likely one; flags of sampling set it",
        group=None,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, option_ in options_of(type(self)).items():
            idle = name in SAMPLING and name != "seed" and not self.do_sample
            if idle and getattr(self, name) != option_.default:
                raise InvalidRequest(
                    f"{named(type(self), name)} has no effect without do_sample=True: set it, or leave {name} out"
                )

    @property
    def samples(self) -> bool:
        return self.do_sample and super().samples

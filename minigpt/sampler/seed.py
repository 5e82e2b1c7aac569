"""The random seed: the option of everything that samples."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from minigpt.options import option


@dataclass(frozen=True, kw_only=True)
class Seeded:
    """A seed, random unless given, and from then on known, so that a text can be generated again."""

    seed: int | None = option(
        None, "random seed, printed: the same seed gives the same text; without one, a random one is taken",
        in_python="random seed: the same seed gives the same text; without one, a random one is taken and kept",
        group="sampling", kind=int, least=0, metavar="N",
    )  # fmt: skip

    def decide_seed(self) -> None:
        """Takes a random seed where one is needed and none is given."""
        if self.seed is None and self.samples:
            object.__setattr__(self, "seed", secrets.randbits(32))

    def seed_of(self, own: int | None) -> int:
        """The seed of a prompt: its own, if it has one."""
        seed = self.seed if own is None else own
        assert seed is not None
        return seed

    @property
    def samples(self) -> bool:
        """Whether anything is random at all."""
        return True

"""Timing of one run of `generate`: tokens per second, time to first token."""

from __future__ import annotations

import time

from minigpt.cli.machine import peak_memory
from minigpt.json_files import counted


class Clock:
    """When things happened, in seconds from the start."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._read: float | None = None
        self._first: float | None = None
        self._end = 0.0

    def _now(self) -> float:
        return time.perf_counter() - self._start

    def prompts_read(self) -> None:
        self._read = self._now()

    def token(self) -> None:
        self._first = self._first or self._now()

    def stop(self) -> None:
        self._end = self._now()

    def timing(self, read: int, lengths: list[int]) -> dict[str, float | int | None]:
        """Prompt tokens per second until all prompts are read, new ones from there to the end.

        Each text's first token comes out of reading its prompt, so the rate is that of the others.

        Args:
            read: how many tokens of prompts were read.
            lengths: how many new tokens each text has.
        """
        later = sum(lengths) - len(lengths)
        rest = self._end - self._read if self._read else 0.0
        return {
            "prompt_tokens": read,
            "prompt_tokens_per_s": round(read / self._read, 2) if self._read else None,
            "generated_tokens": sum(lengths),
            "generated_tokens_per_s": round(later / rest, 2) if rest and later else None,
            "first_token_s": round(self._first, 4) if self._first else None,
            "total_s": round(self._end, 4),
            "peak_memory_bytes": peak_memory(),
        }

    def summary(self, read: int, lengths: list[int], seed: int | None) -> str:
        timing = self.timing(read, lengths)

        def rate(name: str) -> str:
            value = timing[name]
            if not value:
                return ""
            return f" at {value:,.0f} tok/s" if value >= 10 else f" at {value:.1f} tok/s"

        parts = [
            f"prompt {counted(read, 'tokens')}{rate('prompt_tokens_per_s')}",
            f"generated {sum(lengths)}{rate('generated_tokens_per_s')}",
            f"first token after {timing['first_token_s'] or timing['total_s']:.2f} s",
            f"peak memory {(timing['peak_memory_bytes'] or 0) / 1e6:.0f} MB",
        ]
        return ", ".join(parts + ([f"seed {seed}"] if seed is not None else []))

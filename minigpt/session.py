"""One run of `generate`: what has been written so far, and how it is shown."""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigpt import cli
from minigpt.cli import BAD_FLAGS, FAILED, Failure
from minigpt.files import all_or_none
from minigpt.sampler import name_of, run
from minigpt.sampler.strategy import Completion, Emitted, Event, Finished, PromptsRead, Request, Strategy
from minigpt.tokenizer import cut_before

if TYPE_CHECKING:
    from minigpt.model import GPT2
    from minigpt.tokenizer import Tokenizer

BETWEEN_TEXTS = "\n---\n"


@dataclass
class Session:
    """One run of the command: what was asked, what has been written so far, and how it is shown."""

    args: argparse.Namespace
    model: GPT2
    tokenizer: Tokenizer
    strategy: Strategy
    texts: list[str]
    requests: list[Request]
    emitted: dict[tuple[int, int], list[Emitted]] = field(default_factory=dict)
    finished: dict[int, list[Completion]] = field(default_factory=dict)
    clock: Clock = field(default_factory=lambda: Clock())

    def decode(self) -> bool:
        """Runs the strategy, streaming if asked; whether Ctrl-C ended it. What was written stays."""
        screen = Screen(self) if self.args.stream else None
        try:
            if screen:
                screen.begin()
            for event in run(self.model, self.requests, self.strategy):
                self.take(event)
                if screen:
                    screen.take(event)
        except KeyboardInterrupt:
            return True
        except ValueError as error:  # the options rule out every token
            raise Failure(BAD_FLAGS, error) from error
        finally:
            if screen:
                screen.end()
            self.clock.stop()
        return False

    def take(self, event: Event) -> None:
        if isinstance(event, Emitted):
            self.clock.token()
            self.emitted.setdefault((event.prompt_index, event.index), []).append(event)
        elif isinstance(event, Finished):
            self.finished[event.prompt_index] = event.completions
        elif isinstance(event, PromptsRead):
            self.clock.prompts_read()

    def completions(self) -> Iterable[tuple[int, int, Completion]]:
        """Prompt by prompt, best first: (prompt_index, index, completion); unfinished ones as they stand."""
        for prompt_index in range(len(self.requests)):
            begun = [
                self._begun(prompt_index, events)
                for (i, _), events in self.emitted.items()
                if i == prompt_index
            ]
            for index, completion in enumerate(self.finished.get(prompt_index, begun)):
                yield prompt_index, index, completion

    def _begun(self, prompt_index: int, events: list[Emitted]) -> Completion:
        tokens, logprobs = [event.token for event in events], [event.logprob for event in events]
        reason = self.requests[prompt_index].finish_reason(tokens) or "interrupted"
        return Completion(tokens, logprobs, sum(logprobs), reason)

    def text_of(self, completion: Completion) -> str:
        """The text, without a special end token, and up to a stop string."""
        tokens = completion.tokens
        if completion.finish_reason == "eos" and tokens[-1] in self.tokenizer.special_tokens.values():
            tokens = tokens[:-1]
        return cut_before(self.tokenizer.decode(tokens), *self.args.stop)

    def show(self) -> None:
        """Prints or writes what was made, and the closing line."""
        if self.args.json:
            lines = [json.dumps(self.record(*made), ensure_ascii=False) for made in self.completions()]
            self._write("".join(f"{line}\n" for line in lines))
        elif not self.args.stream:
            shown = [self._echo(i) + self.text_of(completion) for i, _, completion in self.completions()]
            self._write(BETWEEN_TEXTS.join(shown) + "\n" if shown else "")
        if not self.args.quiet:
            cli.note("generate", self.clock.summary(self.requests, self.lengths(), self.seed))

    def _echo(self, prompt_index: int) -> str:
        return self.texts[prompt_index] if self.args.echo else ""

    def _write(self, text: str) -> None:
        if not self.args.output:
            write_out(text)
            return
        path = Path(self.args.output).resolve()  # a link stays one
        try:
            with all_or_none(path.parent) as aside:
                (aside / path.name).write_bytes(_utf8(text))
        except OSError as error:
            raise Failure(FAILED, f"--output {self.args.output}: {error.strerror or error}") from error

    def lengths(self) -> list[int]:
        """How many new tokens each text has."""
        return [len(completion.tokens) for *_, completion in self.completions()]

    @property
    def seed(self) -> int | None:
        return getattr(self.strategy, "seed", None)

    def record(self, prompt_index: int, index: int, completion: Completion) -> dict[str, Any]:
        """One text as a JSON object; README.md has its fields."""
        shown = {
            "prompt": self.texts[prompt_index],
            "text": self.text_of(completion),
            "prompt_tokens": list(self.requests[prompt_index].prompt),
            "tokens": completion.tokens,
            "token_strings": [self.tokenizer.token_string(token) for token in completion.tokens],
            "logprobs": [_number(logprob) for logprob in completion.logprobs],
            "finish_reason": completion.finish_reason,
            "score": _number(completion.score),
            "seed": self.seed,
            "prompt_index": prompt_index,
            "index": index,
            "model": self.args.model or "bundled",
            "strategy": name_of(type(self.strategy)),
            "timing": self.clock.figures(self.requests, self.lengths()),
        }
        if self.args.logprobs is not None:
            shown["top_logprobs"] = [
                [
                    {
                        "token": token,
                        "string": self.tokenizer.token_string(token),
                        "logprob": _number(logprob),
                    }
                    for token, logprob in step
                ]
                for step in completion.top_logprobs or [[] for _ in completion.tokens]
            ]
        return shown


def _number(value: float) -> float | None:
    """JSON knows no infinity."""
    return value if math.isfinite(value) else None


def write_out(text: str) -> None:
    sys.stdout.buffer.write(_utf8(text))
    sys.stdout.buffer.flush()


def _utf8(text: str) -> bytes:
    return text.encode(errors="replace")  # half a surrogate pair, as from an argument that is not UTF-8


class Screen:
    """Shows one text while it is written: never half a character, and nothing of a stop string."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._text = session.tokenizer.stream(*session.args.stop)

    def begin(self) -> None:
        if self._session.args.echo:
            write_out(self._session.texts[0])

    def take(self, event: Event) -> None:
        if isinstance(event, Emitted):
            ends = self._session.requests[0].end_tokens
            special = self._session.tokenizer.special_tokens.values()
            if not (event.token in ends and event.token in special):
                write_out(self._text.feed(event.token))

    def end(self) -> None:
        write_out(self._text.finish() + "\n")


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

    def figures(self, requests: Sequence[Request], lengths: list[int]) -> dict[str, float | int | None]:
        """Prompt tokens per second until all prompts are read, new ones from there to the end.

        Each text's first token comes out of reading its prompt, so the rate is that of the others.
        """
        read = sum(len(request.prompt) for request in requests)
        later = sum(lengths) - len(lengths)
        rest = self._end - self._read if self._read else 0.0
        return {
            "prompt_tokens": read,
            "prompt_tokens_per_s": round(read / self._read, 2) if self._read else None,
            "generated_tokens": sum(lengths),
            "generated_tokens_per_s": round(later / rest, 2) if rest and later else None,
            "first_token_s": round(self._first, 4) if self._first else None,
            "total_s": round(self._end, 4),
            "peak_memory_bytes": cli.peak_memory(),
        }

    def summary(self, requests: Sequence[Request], lengths: list[int], seed: int | None) -> str:
        figures = self.figures(requests, lengths)

        def rate(name: str) -> str:
            value = figures[name]
            return (
                f" at {value:,.0f} tok/s"
                if value and value >= 10
                else f" at {value:.1f} tok/s"
                if value
                else ""
            )

        parts = [
            f"prompt {figures['prompt_tokens']} tokens{rate('prompt_tokens_per_s')}",
            f"generated {sum(lengths)}{rate('generated_tokens_per_s')}",
            f"first token after {figures['first_token_s'] or figures['total_s']:.2f} s",
            f"peak memory {(figures['peak_memory_bytes'] or 0) / 1e6:.0f} MB",
        ]
        return ", ".join(parts + ([f"seed {seed}"] if seed is not None else []))

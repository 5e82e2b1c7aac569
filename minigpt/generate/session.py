"""One run of `generate`: what has been written so far, and how it is shown."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from minigpt import cli
from minigpt.cli import BAD_FLAGS, TOO_LONG, Failure
from minigpt.cli.outputs import save
from minigpt.cli.table import number
from minigpt.cli.terminal import write_err, write_out
from minigpt.generate.beam_screen import BeamScreen
from minigpt.generate.clock import Clock
from minigpt.generate.screen import EventObserver, LatticeFile, Screen
from minigpt.sampler.api import run, windowed
from minigpt.sampler.events import (
    Completion,
    Event,
    Finished,
    LanguageModel,
    PrefillDone,
    PromptTooLong,
    Request,
    TokenGenerated,
)
from minigpt.sampler.registry import name_of
from minigpt.sampler.requests import prepare
from minigpt.sampler.strategy import Strategy
from minigpt.sampler.text import text_of
from minigpt.sampler.token_trace import Explainer, table

if TYPE_CHECKING:
    from minigpt.model import GPT2
    from minigpt.tokenizer import Tokenizer

BETWEEN_TEXTS = "\n---\n"


@dataclass
class Session:
    """One run of the command: what was asked, what has been written so far, and how it is shown."""

    args: argparse.Namespace
    model: LanguageModel
    tokenizer: Tokenizer
    strategy: Strategy
    texts: list[str]
    requests: list[Request]
    explainer: Explainer | None = None
    emitted: dict[tuple[int, int], list[TokenGenerated]] = field(default_factory=dict)
    finished: dict[int, list[Completion]] = field(default_factory=dict)
    clock: Clock = field(default_factory=Clock)

    def decode(self) -> bool:
        """Runs the strategy, showing it if asked; whether Ctrl-C ended it. What was written stays."""
        shown = self._shown()
        try:
            for event in run(self.model, self.requests, self.strategy):
                self.take(event)
                for each in shown:
                    each.take(event)
        except KeyboardInterrupt:
            return True
        except PromptTooLong as error:  # for the window of a second model
            raise Failure(TOO_LONG, error) from error
        except ValueError as error:  # the options rule out every token
            raise Failure(BAD_FLAGS, error) from error
        finally:
            self.clock.stop()
            for each in shown:
                each.close()
        return False

    def _shown(self) -> list[EventObserver]:
        """Where what happens is to be seen while it happens."""
        shown: list[EventObserver] = [Screen(self)] if self.args.stream else []
        if self.args.show_beams:
            shown.append(BeamScreen(sys.stderr, self.tokenizer.decode))
        if self.args.lattice:
            prompts = [request.prompt for request in self.requests]
            shown.append(LatticeFile(self.args.lattice, prompts, self.tokenizer))
        return shown

    def take(self, event: Event) -> None:
        if self.explainer:
            self.explainer.take(event)
        if isinstance(event, TokenGenerated):
            self.clock.token()
            self.emitted.setdefault((event.prompt_index, event.index), []).append(event)
        elif isinstance(event, Finished):
            self.finished[event.prompt_index] = event.completions
        elif isinstance(event, PrefillDone):
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

    def _begun(self, prompt_index: int, events: list[TokenGenerated]) -> Completion:
        tokens, logprobs = [event.token for event in events], [event.logprob for event in events]
        reason = self.requests[prompt_index].finish_reason(tokens) or "interrupted"
        return Completion(tokens, logprobs, sum(logprobs), reason)

    def text_of(self, completion: Completion) -> str:
        """The text, without a special end token, and up to a stop string."""
        return text_of(completion, self.tokenizer, self.tokenizer.stop_strings(*self.args.stop))

    def show(self) -> None:
        """Prints or writes what was made, and the closing line."""
        if self.args.json:
            lines = [json.dumps(self.record(*made), ensure_ascii=False) for made in self.completions()]
            self._write("".join(f"{line}\n" for line in lines))
        elif not self.args.stream:
            shown = [self._echo(i) + self.text_of(completion) for i, _, completion in self.completions()]
            self._write(BETWEEN_TEXTS.join(shown) + "\n" if shown else "")
        if self.explainer and not self.args.json:
            self._explain(self.explainer)
        if not self.args.quiet:
            summary = self.clock.summary(self.requests, self.lengths(), self.seed)
            cli.note("generate", ", ".join([summary, *self._cost()]))

    def _explain(self, explainer: Explainer) -> None:
        made = list(self.completions())
        for i, index, completion in made:
            if len(made) > 1:
                write_err(f"prompt {i}, text {index}:\n")
            strings = [self.tokenizer.token_string(token) for token in completion.tokens]
            write_err(table(strings, explainer.explanations(i, index)))

    def _cost(self) -> list[str]:
        """What the window's sliding has cost, if it slid."""
        from minigpt.sampler.engine.sliding_window import Sliding

        if not isinstance(self.model, Sliding) or not self.model.cost.slides:
            return []
        slides, again = self.model.cost.slides, self.model.cost.tokens_again
        times = "once" if slides == 1 else f"{slides:,} times"
        return [f"window slid {times} by {self.model.stride:,}: {again:,} tokens read again"]

    def _echo(self, prompt_index: int) -> str:
        return self.texts[prompt_index] if self.args.echo else ""

    def _write(self, text: str) -> None:
        if self.args.output:
            save("--output", self.args.output, text)
        else:
            write_out(text)

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
            "logprobs": [number(logprob) for logprob in completion.logprobs],
            "finish_reason": completion.finish_reason,
            "score": number(completion.score),
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
                        "logprob": number(logprob),
                    }
                    for token, logprob in step
                ]
                for step in completion.top_logprobs or [[] for _ in completion.tokens]
            ]
        if self.explainer:
            told = self.explainer.explanations(prompt_index, index)
            shown["explanation"] = [each and asdict(each) for each in told]
        return shown


def begin(
    args: argparse.Namespace, model: GPT2, tokenizer: Tokenizer, strategy: Strategy, texts: list[str]
) -> Session:
    """A run that is ready to decode, its prompts encoded and checked.

    Raises:
        Failure: the prompts do not fit the model, or its window.
    """
    try:
        reads = windowed(model, args.overflow, args.stride)
        prompts = [
            tokenizer.encode(text, allow_special=args.allow_special) or _nothing(tokenizer) for text in texts
        ]
        requests = prepare(
            reads,
            prompts,
            max_new_tokens=args.max_new_tokens,
            stop=tokenizer.stop_strings(*args.stop).completed if args.stop else None,
            overflow=args.overflow,
            top_logprobs=args.logprobs or 0,
        )
    except PromptTooLong as error:
        raise Failure(TOO_LONG, error) from error
    except ValueError as error:
        raise Failure(BAD_FLAGS, error) from error
    if not args.quiet:
        _tell_what_is_not_read(reads, requests)
    explainer = Explainer(requests) if args.explain else None
    if explainer:
        strategy = replace(strategy, watch=explainer.watch)
    return Session(args, reads, tokenizer, strategy, texts, requests, explainer)


def _tell_what_is_not_read(model: LanguageModel, requests: list[Request]) -> None:
    """Nothing happens silently at the window's edge."""
    from minigpt.sampler.engine.sliding_window import Sliding

    for request in requests:
        unread = model.start(len(request.prompt)) if isinstance(model, Sliding) else request.dropped
        if unread:
            n = len(request.prompt) + request.dropped
            cli.note("generate", f"left out the {unread} oldest of {n} prompt tokens")


def _nothing(tokenizer: Tokenizer) -> list[int]:
    """What stands for an empty prompt: the token after which texts began in training."""
    if tokenizer.end_token is None:
        raise Failure(BAD_FLAGS, "this model's tokenizer has no <|endoftext|> to begin with: give a prompt")
    return [tokenizer.end_token]

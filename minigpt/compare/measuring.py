"""Measuring texts that continue prompts: quality, diversity and repetition."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

from minigpt import evaluation
from minigpt.data.prompts import Prompt
from minigpt.errors import InvalidRequest
from minigpt.evaluation import diversity as measures
from minigpt.evaluation.diversity import Figures
from minigpt.evaluation.mauve import mauve
from minigpt.evaluation.perplexity import perplexity_of
from minigpt.evaluation.scoring_windows import scoring_windows
from minigpt.lazy import Tensor, torch

if TYPE_CHECKING:
    from minigpt.model import GPT2
    from minigpt.tokenizer import Tokenizer

# Shapes below:  D n_embd


@dataclass(frozen=True)
class Judge:
    """Another model, which reads the texts with a tokenizer of its own."""

    model: GPT2
    tokenizer: Tokenizer


@dataclass(frozen=True)
class Measure:
    """The metrics of texts, under the generating model, and perhaps under an evaluator model."""

    model: GPT2
    tokenizer: Tokenizer
    prompts: Sequence[Prompt]
    judge: Judge | None = None

    def metrics(self, texts: Sequence[list[int]]) -> Figures:
        """Quality, diversity and repetition. End tokens count as predicted, and as nothing else."""
        bodies = [self.body(text) for text in texts]
        metrics = {"perplexity": perplexity(self.model, self._pairs(texts))}
        if self.judge:
            metrics["judge_perplexity"] = perplexity(
                self.judge.model, self._judged(self.judge.tokenizer, bodies)
            )
        metrics |= {f"distinct_{n}": measures.distinct(bodies, n) for n in (1, 2, 3)}
        metrics["self_bleu"] = measures.self_bleu(bodies)
        metrics["zipf"] = measures.zipf(bodies)
        metrics["rep_4"] = measures.repetition(bodies)
        metrics["loops"] = measures.loops(bodies)
        metrics["mean_tokens"] = sum(map(len, bodies)) / len(bodies)
        return metrics

    def likeness(self, texts: Sequence[list[int]]) -> Figures:
        """MAUVE, if there are human texts, several, and the package that compares with them."""
        if len(self.humans) < 2 or find_spec("mauve") is None:
            return {}
        bodies = [self.body(text) for text in texts]
        return {"mauve": mauve(self._features(self.humans), self._features(bodies))}

    @property
    def humans(self) -> list[list[int]]:
        """How humans continued the prompts; empty if that is not known."""
        return [list(prompt.human) for prompt in self.prompts if prompt.human is not None]

    def body(self, text: list[int]) -> list[int]:
        """A text's tokens without the end token."""
        special = self.tokenizer.special_tokens.values()
        return (
            text[:-1] if text and text[-1] in special and text[-1] in self.model.config.end_tokens else text
        )

    def _pairs(self, texts: Sequence[list[int]]) -> list[tuple[Sequence[int], list[int]]]:
        return [(prompt.tokens, text) for prompt, text in zip(self.prompts, texts, strict=True)]

    def _judged(
        self, tokenizer: Tokenizer, bodies: Sequence[list[int]]
    ) -> list[tuple[Sequence[int], list[int]]]:
        """Prompts and texts in the judge's tokens."""
        read = self.tokenizer.decode
        try:
            return [
                (tokenizer.encode(read(list(a))), tokenizer.encode(read(b))) for a, b in self._pairs(bodies)
            ]
        except ValueError as error:  # the judge's vocabulary lacks a character
            raise InvalidRequest(f"--judge cannot read the texts: {error}") from error

    def _features(self, bodies: Sequence[list[int]]) -> Tensor:
        """What leaves the model's last block at the end of each prompt and its text: (texts, D)."""
        size = self.model.config.n_positions
        states = []
        with torch.no_grad():
            for prompt, body in self._pairs(bodies):
                tokens = torch.tensor([[*prompt, *body][-size:]], device=self.model.device)
                cache = self.model.new_cache(tokens.size(1))
                states.append(self.model.hidden_states(tokens, cache)[0, -1].float())
        return torch.stack(states)


def perplexity(model: GPT2, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> float:
    """The perplexity of all tokens of all texts together, each text read after its prompt: (prompt, text).

    What exceeds the window is read in windows that move by half of it. NaN if there is no token.
    """
    size = model.config.n_positions
    cut = (
        window
        for prompt, text in pairs
        if text
        for window in scoring_windows([*prompt, *text], size, context=len(prompt))
    )
    logprobs = [scored.double() for _, scored in evaluation.predict(model, cut)]
    return perplexity_of(-float(torch.cat(logprobs).mean())) if logprobs else math.nan

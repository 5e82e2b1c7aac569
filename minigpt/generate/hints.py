"""Remarks on what is probably not meant, though it can be done."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Sequence

from minigpt.cli.inputs import STDIN
from minigpt.cli.strategy_flags import samples
from minigpt.cli.text_flags import escapes
from minigpt.generate.session import Result
from minigpt.generate.settings import GenerateSettings


def hints(settings: GenerateSettings, texts: Sequence[str]) -> Iterator[str]:
    """One line for each thing that is probably a mistake.

    Args:
        settings: what is asked for.
        texts: the prompts; none where they are those of `--prompts`.
    """
    yield from _prompts(settings, texts)
    yield from escapes(settings.strategy.flags)
    yield from _idle_seed(settings)
    if not settings.heal and any(ends_in_space(text) for text in texts):
        yield f"{TRAILING_SPACE}: leave it out for better text, or add --heal"


def _prompts(settings: GenerateSettings, texts: Sequence[str]) -> Iterator[str]:
    """A line where there is no prompt, and one for each prompt that is the name of a file."""
    if texts and not any(texts):
        yield "no prompt: the text begins after <|endoftext|>; give one in quotes, -f FILE, or -i"
    for text in settings.prompts:
        if text != STDIN and os.path.isfile(text):
            yield f"{text} is a file too: -f {shlex.quote(text)} continues its text"


def _idle_seed(settings: GenerateSettings) -> Iterator[str]:
    """A line for a seed where nothing is sampled."""
    flags = settings.strategy.flags
    seed = getattr(flags, "seed", None)
    if seed is None or samples(settings.strategy.kind, flags):
        return
    if flags.temperature == 0:
        yield f"at temperature 0 nothing is sampled, so --seed {seed} changes nothing"
    else:
        yield f"--seed {seed} changes nothing: {settings.strategy.name} does not sample; --temperature 1 does"


def same_texts(results: Sequence[Result]) -> Iterator[str]:
    """One line for each text that reads as a better one of its prompt, in other tokens: beams find such."""
    first: dict[tuple[int, str], Result] = {}
    for result in results:
        better = first.setdefault((result.prompt_index, result.text), result)
        if better.completion.tokens != result.completion.tokens:
            yield (
                f"text {result.index} of prompt {result.prompt_index} is text {better.index} again, in other tokens:"
                " ask for more texts if there are too few"
            )


TRAILING_SPACE = "the prompt ends in a space, which GPT-2's tokens have before a word, not after it"


def ends_in_space(text: str) -> bool:
    """Whether a text ends in a space after a word, which spoils what follows.

    >>> ends_in_space("Once upon a "), ends_in_space("Once upon a"), ends_in_space("")
    (True, False, False)
    """
    return text.endswith((" ", "\t"))

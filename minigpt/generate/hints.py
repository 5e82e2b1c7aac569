"""Remarks on what is probably not meant, though it can be done."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from minigpt.cli.strategy_flags import samples
from minigpt.generate.settings import GenerateSettings


def hints(settings: GenerateSettings, texts: Sequence[str]) -> Iterator[str]:
    """One line for each thing that is probably a mistake.

    Args:
        settings: what is asked for.
        texts: the prompts.
    """
    bad_words: Sequence[str] = getattr(settings.strategy.flags, "bad_words", None) or ()
    for flag, words in (("--stop", settings.stop), ("--bad-words", bad_words)):
        for word in words:
            if "\\n" in word or "\\t" in word:
                yield f"{flag} {word!r:.40} has a backslash and a letter in it; for a newline write $'\\n' in bash"
    seed = getattr(settings.strategy.flags, "seed", None)
    if seed is not None and not samples(settings.strategy.kind, settings.strategy.flags):
        yield f"--seed {seed} changes nothing: {settings.strategy.name} does not sample; --temperature 1 does"
    if any(ends_in_space(text) for text in texts):
        yield TRAILING_SPACE


TRAILING_SPACE = "the prompt ends in a space, which GPT-2's tokens have before a word, not after it: leave it out for better text"


def ends_in_space(text: str) -> bool:
    """Whether a text ends in a space after a word, which spoils what follows.

    >>> ends_in_space("Once upon a "), ends_in_space("Once upon a"), ends_in_space("")
    (True, False, False)
    """
    return text.endswith((" ", "\t"))

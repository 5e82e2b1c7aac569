"""Remarks on what is probably not meant, though it can be done."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from minigpt.cli.strategy_flags import samples
from minigpt.generate.session import Result
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
    yield from _idle_seed(settings)
    if not settings.heal and any(ends_in_space(text) for text in texts):
        yield f"{TRAILING_SPACE}: leave it out for better text, or add --heal"


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

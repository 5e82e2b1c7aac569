"""From settings to texts: prompts are prepared, continued, and shown or saved."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from minigpt import cli
from minigpt.cli import FAILED, Failure
from minigpt.cli.outputs import save
from minigpt.cli.progress import in_notebook
from minigpt.cli.terminal import is_terminal, write_err, write_out
from minigpt.generate.beam_screen import BeamScreen
from minigpt.generate.explain_table import explain_table
from minigpt.generate.records import Written, record
from minigpt.generate.screen import EventObserver, LatticeFile, Screen, TokenBar
from minigpt.generate.session import Session
from minigpt.generate.settings import GenerateSettings
from minigpt.json_files import counted
from minigpt.sampler.engine.sliding_window import Sliding
from minigpt.sampler.events import Request
from minigpt.sampler.requests import prepare
from minigpt.sampler.running import with_sliding_window
from minigpt.sampler.strategy import Strategy
from minigpt.sampler.text import healer, prompt_ids
from minigpt.tokenizer import Tokenizer

if TYPE_CHECKING:
    from minigpt.model import GPT2

BETWEEN_TEXTS = "\n---\n"


def write_texts(
    settings: GenerateSettings, model: GPT2, tokenizer: Tokenizer, strategy: Strategy, texts: Sequence[str]
) -> Session:
    """Continues texts, and shows or saves what comes of it.

    Args:
        settings: what is asked for.
        model: what continues them.
        tokenizer: the model's.
        strategy: that of the settings, ready to decode.
        texts: the prompts; an empty one stands for the end-of-text token.

    Returns:
        The session, once it is over.

    Raises:
        PromptTooLong: a prompt and its new tokens do not fit the context length.
        InvalidRequest: a prompt cannot be encoded, or the options rule out every token.
        Failure: a file cannot be written.
    """
    session = begin(settings, model, tokenizer, strategy, texts)
    if not settings.quiet:
        note_dropped_tokens(session)
    if settings.stream and settings.echo:
        write_out(texts[0])
    unseen = not (settings.stream or settings.show_beams) and (is_terminal(sys.stderr) or in_notebook())
    bars = [TokenBar(session.requests)] if unseen else []
    session.decode(observers(settings, tokenizer, session.requests), bars)
    show(settings, tokenizer, session, texts)
    return session


def begin(
    settings: GenerateSettings, model: GPT2, tokenizer: Tokenizer, strategy: Strategy, texts: Sequence[str]
) -> Session:
    """A session that is ready to decode, its prompts encoded and checked; errors as for `write_texts`."""
    reader = with_sliding_window(model, settings.overflow, settings.stride)
    stops = tokenizer.stop_strings(*settings.stop)
    requests = prepare(
        reader,
        [prompt_ids(text, tokenizer, settings.allow_special) for text in texts],
        max_new_tokens=settings.max_new_tokens,
        stop=stops.completed if settings.stop else None,
        overflow=settings.overflow,
        top_logprobs=settings.top_logprobs,
        trace=settings.explain,
    )
    if settings.heal:
        requests = list(map(healer(reader, tokenizer, stops), requests))
    return Session(reader, tokenizer, stops, strategy, requests)


def observers(
    settings: GenerateSettings, tokenizer: Tokenizer, requests: Sequence[Request]
) -> list[EventObserver]:
    """Where the run is to be seen while it happens."""
    watching: list[EventObserver] = []
    if settings.stream:
        hidden = requests[0].end_tokens & set(tokenizer.special_tokens.values())
        skip = len(tokenizer.decode_bytes(requests[0].taken_back))
        watching.append(Screen(tokenizer.stream(*settings.stop, skip=skip), frozenset(hidden)))
    if settings.show_beams and sys.stderr is not None:
        watching.append(BeamScreen(sys.stderr, tokenizer.decode))
    if settings.lattice:
        watching.append(LatticeFile(settings.lattice, requests, tokenizer))
    return watching


def note_dropped_tokens(session: Session) -> None:
    """Says which prompt tokens the model will not see: nothing exceeds the context length silently."""
    for request in session.requests:
        unread = session.n_beyond_window(request) + request.dropped
        if unread:
            n = len(request.prompt) + len(request.taken_back) + request.dropped
            cli.note("generate", f"left out the {unread:,} oldest of {n:,} prompt tokens")


def show(settings: GenerateSettings, tokenizer: Tokenizer, session: Session, texts: Sequence[str]) -> None:
    """Prints or saves the texts, then their explanations, then timing and memory."""
    if settings.json or not settings.stream:
        written = _as_json(settings, tokenizer, session, texts) if settings.json else _as_text(
            settings, session, texts
        )  # fmt: skip
        if not settings.output:
            write_out(written)
        elif written:  # nothing after an early Ctrl-C, which leaves the file as it was
            save("--output", settings.output, written)
    if settings.explain and not settings.json:
        _explain(session, tokenizer)
    for prompt_index, error in session.failures.items():
        cli.note("generate", Failure(FAILED, f"prompt {prompt_index} failed: {error}"))
    if not settings.quiet:
        summary = session.clock.summary(session.n_read(), session.lengths(), session.strategy.seed_in_use)
        cli.note("generate", ", ".join([summary, *_slides(session.model)]))


def _as_json(settings: GenerateSettings, tokenizer: Tokenizer, session: Session, texts: Sequence[str]) -> str:
    timing = session.clock.timing(session.n_read(), session.lengths())
    written = (
        Written(
            texts[result.prompt_index], session.requests[result.prompt_index], result.completion,
            result.prompt_index, result.index, session.strategy.seed_in_use, timing,
        )
        for result in session.results()
    )  # fmt: skip
    records = (record(each, settings, tokenizer) for each in written)
    return "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in records)


def _as_text(settings: GenerateSettings, session: Session, texts: Sequence[str]) -> str:
    shown = [
        (texts[result.prompt_index] if settings.echo else "") + result.text for result in session.results()
    ]
    return BETWEEN_TEXTS.join(shown) + "\n" if shown else ""


def _explain(session: Session, tokenizer: Tokenizer) -> None:
    results = session.results()
    for result in results:
        if len(results) > 1:
            write_err(f"prompt {result.prompt_index}, text {result.index}:\n")
        write_err(explain_table(result.completion, tokenizer.token_string))


def _slides(model: object) -> list[str]:
    """The cost of the sliding window, if it slid."""
    if not isinstance(model, Sliding) or not model.cost.slides:
        return []
    slides, again = model.cost.slides, model.cost.tokens_again
    times = "once" if slides == 1 else f"{slides:,} times"
    return [f"window slid {times} by {model.stride:,}: {counted(again, 'tokens')} read again"]

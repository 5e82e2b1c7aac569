"""From text to text: `complete`, and what the text of a completion is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol, Unpack, overload

from minigpt.errors import InvalidRequest
from minigpt.json_files import shown
from minigpt.sampler.api import decode_requests
from minigpt.sampler.events import Completion, LanguageModel, Request
from minigpt.sampler.processors.healing import Healer
from minigpt.sampler.requests import Lengths, checked_strategy, prepare
from minigpt.sampler.running import with_sliding_window
from minigpt.sampler.strategy import Strategy


class StopTest(Protocol):
    """Stop strings; `minigpt.tokenizer.stop_strings.StopStrings` is one."""

    def completed(self, tokens: Sequence[int], skip: int = 0) -> bool: ...
    def cut(self, text: str) -> str: ...


class TextTokenizer(Protocol):
    """What is asked of a tokenizer; `minigpt.Tokenizer` is one."""

    special_tokens: dict[str, int]
    end_token: int | None

    def encode(self, text: str, allow_special: bool = False) -> list[int]: ...
    def decode(self, tokens: Iterable[int]) -> str: ...
    def decode_bytes(self, tokens: Iterable[int]) -> bytes: ...
    def token_bytes(self) -> Sequence[bytes | None]: ...
    def stop_strings(self, *texts: str) -> StopTest: ...


@overload
def complete(
    model: LanguageModel,
    tokenizer: TextTokenizer,
    prompt: str,
    strategy: Strategy | None = None,
    *,
    stop: Sequence[str] = (),
    heal: bool = False,
    stride: int | None = None,
    **lengths: Unpack[Lengths],
) -> Completion: ...
@overload
def complete(
    model: LanguageModel,
    tokenizer: TextTokenizer,
    prompt: list[str] | tuple[str, ...],
    strategy: Strategy | None = None,
    *,
    stop: Sequence[str] = (),
    heal: bool = False,
    stride: int | None = None,
    **lengths: Unpack[Lengths],
) -> list[Completion]: ...
def complete(
    model: LanguageModel,
    tokenizer: TextTokenizer,
    prompt: str | list[str] | tuple[str, ...],
    strategy: Strategy | None = None,
    *,
    stop: Sequence[str] = (),
    heal: bool = False,
    stride: int | None = None,
    **lengths: Unpack[Lengths],
) -> Completion | list[Completion]:
    """Continues a text; `print` the result to see the new text.

    Args:
        model, tokenizer: as `minigpt.load` returns them.
        prompt: one text, or a list of texts. An empty one is continued from the end-of-text token.
        strategy: greedy decoding unless given, such as `Sample(top_p=0.9)` or `Beam(num_beams=5)`.
        stop: strings that end a completion; its text ends before the first of them.
        heal: token healing, for prompts that end in a space or within a word: the tokens at the end of the prompt are
            chosen anew, together with what follows. The text begins where the prompt ends all the same.
        stride: by how many tokens at once the window moves with overflow "slide".
        lengths: when the completion ends, and what is reported:
            max_new_tokens: the most tokens it may have; 50 unless given, or what fits.
            end_tokens: ids of tokens that end it; the model's own unless given, [] for none.
            overflow: what to do where prompt and new tokens exceed the context length: "error"; "truncate", without the
                oldest prompt tokens; "stop" there; "slide", with the latest tokens in view only.
            top_logprobs: how many of the likeliest tokens to report at each step, in `top_logprobs` of the result.

    Returns:
        The best completion of the prompt, its others in `alternatives`; a list of those for a list of
        prompts.

    Raises:
        PromptTooLong: prompt and new tokens do not fit the model's context length.
        InvalidRequest: an argument cannot be used, or the options rule out every token.

    >>> import minigpt
    >>> from minigpt.sampler import Sample
    >>> model, tokenizer = minigpt.load()
    >>> best = complete(model, tokenizer, "Once upon a time", Sample(top_p=0.9, seed=7), max_new_tokens=20)
    >>> best.text == tokenizer.decode(best.tokens), best.finish_reason
    (True, 'length')
    """
    strategy = checked_strategy("complete", model, strategy, lengths, ("stride", "heal"))
    check_tokenizer("complete", tokenizer)
    if isinstance(prompt, Mapping):
        raise InvalidRequest(f"complete() takes a text or a list of texts, got {shown(prompt)}")
    texts = list(prompt) if isinstance(prompt, Iterable) and not isinstance(prompt, str) else [prompt]
    if wrong := [text for text in texts if not isinstance(text, str)]:
        raise InvalidRequest(
            f"complete() takes text, got {shown(wrong[0])}: for token ids use minigpt.sampler.generate"
        )
    stops = stop_test(stop, tokenizer)
    model = with_sliding_window(model, lengths.get("overflow", "error"), stride)
    ids = [prompt_ids(text, tokenizer) for text in texts]
    requests = prepare(model, ids, stop=stops.completed if stop else None, **lengths)
    if heal:
        requests = list(map(healer(model, tokenizer, stops), requests))
    groups = decode_requests(model, requests, strategy)
    best = [_best_of([with_text(each, tokenizer, stops) for each in group]) for group in groups]
    return best[0] if isinstance(prompt, str) else best


def prompt_ids(text: str, tokenizer: TextTokenizer, allow_special: bool = False) -> list[int]:
    """The ids of a prompt; for an empty one the end-of-text token, after which texts began in training.

    Raises:
        InvalidRequest: the prompt is empty and there is no such token, or it cannot be encoded.
    """
    ids = encode_prompt(tokenizer, text, allow_special)
    if ids:
        return ids
    if tokenizer.end_token is None:
        raise InvalidRequest(
            "the prompt is empty, and this tokenizer has no <|endoftext|> to begin with: give a prompt"
        )
    return [tokenizer.end_token]


def encode_prompt(tokenizer: TextTokenizer, text: str, allow_special: bool = False) -> list[int]:
    """The ids of a text.

    Raises:
        InvalidRequest: it cannot be encoded.
    """
    try:
        return tokenizer.encode(text, allow_special)
    except ValueError as error:
        raise InvalidRequest(str(error)) from error


def stop_test(stop: str | Sequence[str], tokenizer: TextTokenizer) -> StopTest:
    """What finds the stop strings that are given; one by itself needs no list.

    Raises:
        InvalidRequest: they are not strings, or one is empty.
    """
    if not isinstance(stop, Iterable):
        raise InvalidRequest(f"stop must be a list of strings, got {shown(stop)}")
    try:
        return tokenizer.stop_strings(*([stop] if isinstance(stop, str) else stop))
    except ValueError as error:
        raise InvalidRequest(str(error)) from None


def healer(model: LanguageModel, tokenizer: TextTokenizer, stop: StopTest) -> Callable[[Request], Request]:
    """What takes back the end of a request's prompt, where other tokens may fit what follows; see `Healer`."""
    known = Healer(tokenizer.token_bytes()[: model.config.vocab_size])
    return lambda request: known.heal(request, stop.completed)


def with_text(completion: Completion, tokenizer: TextTokenizer, stop: StopTest) -> Completion:
    """The completion with its text: what follows the prompt, up to a stop string or a special end token."""
    tokens = completion.tokens
    if completion.finish_reason == "eos" and tokens[-1] in tokenizer.special_tokens.values():
        tokens = tokens[:-1]
    behind_prompt = tokenizer.decode_bytes(tokens)[len(tokenizer.decode_bytes(completion.taken_back)) :]
    return replace(completion, text=stop.cut(behind_prompt.decode(errors="replace")))


def _best_of(group: list[Completion]) -> Completion:
    best, *others = group
    return replace(best, alternatives=others)


def check_tokenizer(function: str, tokenizer: object) -> None:
    """Refuses what cannot be a tokenizer."""
    if not hasattr(tokenizer, "stop_strings"):
        raise InvalidRequest(
            f"{function}() takes a tokenizer second, got {shown(tokenizer)}: model, tokenizer = minigpt.load(...)"
        )

"""The right name for an argument that does not exist: other libraries' names, and near misses."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import fields
from difflib import get_close_matches

from minigpt.errors import UnknownArgument
from minigpt.sampler.registry import find, names

# Arguments of other libraries' `generate`, and what does the same here.
ELSEWHERE: Mapping[str, str] = {
    "assistant_model": "a draft model is a strategy: Speculative(draft=model)",
    "attention_mask": "prompts may differ in length; padding is added and masked for you",
    "bad_words_ids": "it is bad_words, an option of the strategy: Greedy(bad_words=[[id, ...]])",
    "do_sample": "sampling is a strategy: pass Sample() for do_sample=True, Greedy() for False",
    "eos_token_id": "it is end_tokens, a list of ids ([] never ends early)",
    "generation_config": "the strategy holds the options: Sample(top_p=0.9), Beam(num_beams=5)",
    "generator": "the seed is an option of the strategy: Sample(seed=7)",
    "heal": "it is for text: minigpt.complete(model, tokenizer, prompt, heal=True)",
    "input_ids": "it is prompts, a list of lists of ids",
    "inputs": "it is prompts, a list of lists of ids",
    "logits_processor": "it is processors, an option of the strategy: Sample(processors=(mine,))",
    "max_length": "it is max_new_tokens, which counts new tokens only",
    "max_tokens": "it is max_new_tokens",
    "output_logits": "it is top_logprobs, the number of likeliest tokens to report at each step",
    "output_scores": "it is top_logprobs, the number of likeliest tokens to report at each step",
    "pad_token_id": "prompts may differ in length; padding is added and masked for you",
    "return_dict_in_generate": "completions always carry tokens, logprobs, score and finish_reason",
    "stop_strings": "it is stop",
    "token_healing": "it is heal, of minigpt.complete",
    "stopping_criteria": "it is stop, a function of the new tokens",
    "streamer": "use minigpt.sampler.stream, which yields tokens as they are generated",
    "use_cache": "the KV cache is always used",
}


def refuse_unknown(function: str, unknown: Iterable[str], known: Collection[str]) -> None:
    """Raises UnknownArgument for the first unknown name, with the right one where there is one.

    >>> refuse_unknown("generate", ["max_length"], ["max_new_tokens"])
    Traceback (most recent call last):
    minigpt.errors.UnknownArgument: generate() has no argument 'max_length': it is max_new_tokens, which counts
    new tokens only
    """
    for name in unknown:
        raise UnknownArgument(f"{function}() has no argument {name!r}: {right_name(name, known)}")


def right_name(name: str, known: Collection[str]) -> str:
    """What to write instead of a name that does not exist.

    >>> right_name("top_p", ["max_new_tokens"])
    'it is an option of the strategy: Sample(top_p=...)'
    >>> right_name("max_new_token", ["max_new_tokens"])
    'did you mean max_new_tokens?'
    """
    if name in ELSEWHERE:
        return ELSEWHERE[name]
    if owner := _strategy_with(name):
        return f"it is an option of the strategy: {owner}({name}=...)"
    near = get_close_matches(name, known, n=1, cutoff=0.7)
    return f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"


def _strategy_with(option: str) -> str | None:
    """The class name of the strategy that is known for an option, or None."""
    usual = ["sample", "beam", "greedy"]  # the first that comes to mind; others have their options, too
    having = [name for name in [*usual, *names()] if option in {field.name for field in fields(find(name))}]
    return find(having[0]).__name__ if having else None

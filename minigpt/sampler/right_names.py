"""The right name for an argument of `generate` or `complete` that does not exist; it may be an option of a strategy."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import fields

from minigpt.right_names import meant_by, nearest
from minigpt.sampler.registry import find, names

# Arguments of other libraries' `generate`, where more is to be said than another name.
ADVICE: Mapping[str, str] = {
    "assistant_model": "a draft model is a strategy: Speculative(draft=model)",
    "attention_mask": "prompts may differ in length; padding is added and masked for you",
    "bad_words_ids": "it is bad_words, an option of the strategy: Greedy(bad_words=[[id, ...]])",
    "constraints": "texts that must contain phrases are a strategy: Constrained(must_include=[[id, ...]])",
    "do_sample": "sampling is a strategy: pass Sample() for do_sample=True, Greedy() for False",
    "eos_token_id": "it is end_tokens, a list of ids ([] never ends early)",
    "generation_config": "the strategy holds the options: Sample(top_p=0.9), Beam(num_beams=5)",
    "heal": "it is for text: minigpt.complete(model, tokenizer, prompt, heal=True)",
    "input_ids": "it is prompts, a list of lists of ids",
    "inputs": "it is prompts, a list of lists of ids",
    "logits_processor": "it is processors, an option of the strategy: Sample(processors=(mine,))",
    "max_length": "it is max_new_tokens, which counts new tokens only",
    "min_length": "it is min_new_tokens, an option of the strategy: Sample(min_new_tokens=...), which counts new tokens only",
    "output_attentions": "minigpt.interp.record records whatever the model computes",
    "output_hidden_states": "minigpt.interp.record records whatever the model computes",
    "output_logits": "it is top_logprobs, the number of likeliest tokens to report at each step",
    "output_scores": "it is top_logprobs, the number of likeliest tokens to report at each step",
    "pad_token_id": "prompts may differ in length; padding is added and masked for you",
    "return_dict_in_generate": "completions always carry tokens, logprobs, score and finish_reason",
    "token_healing": "it is heal, of minigpt.complete",
    "stopping_criteria": "it is stop, a function of the new tokens",
    "suppress_tokens": "it is bad_words, an option of the strategy: Greedy(bad_words=[[id], ...])",
    **dict.fromkeys(("stream", "streamer"), "use minigpt.sampler.stream, which yields tokens as they are generated"),
    "use_cache": "the KV cache is always used",
    "watermarking_config": "it is watermark, an option of the strategy: Sample(watermark=True)",
}  # fmt: skip


def right_name(name: str, known: Collection[str]) -> str:
    """What to write instead of a name that does not exist.

    >>> right_name("top_p", ["max_new_tokens"])
    'it is an option of the strategy: Sample(top_p=...)'
    >>> right_name("max_new_token", ["max_new_tokens"])
    'did you mean max_new_tokens?'
    >>> right_name("temprature", ["max_new_tokens"]), right_name("n", ["max_new_tokens"])
    ('did you mean Sample(temperature=...)?', 'it is an option of the strategy: Sample(num_return_sequences=...)')
    """
    if name in ADVICE:
        return ADVICE[name]
    owners = _owners()
    meant = name if name in owners else meant_by(name, [*known, *owners])
    if meant in known:
        return f"it is {meant}"
    if meant in owners:
        return f"it is an option of the strategy: {owners[meant]}({meant}=...)"
    if near := nearest(name, [*known, *owners]):
        return f"did you mean {near if near in known else f'{owners[near]}({near}=...)'}?"
    return f"there are {', '.join(known)}"


def _owners() -> dict[str, str]:
    """Every option, and the class name of the strategy that is known for it."""
    usual = ["sample", "beam", "greedy"]  # the first that comes to mind; others have their options, too
    owners: dict[str, str] = {}
    for kind in map(find, [*usual, *names()]):
        for field in fields(kind):
            owners.setdefault(field.name, kind.__name__)
    return owners

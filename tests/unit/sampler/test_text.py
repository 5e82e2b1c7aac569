"""Text in, text out: `complete` and `top` give what encoding, generating and decoding by hand give."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from command import reciter, save

import minigpt
from minigpt import GPT2, InvalidRequest, Tokenizer, complete, top
from minigpt.sampler import Beam, Greedy, Sample, generate

TEXT = "one two. three"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[GPT2, Tokenizer]:
    """A model that knows TEXT by heart, one byte a token."""
    return minigpt.load(save(tmp_path_factory.mktemp("model"), reciter(TEXT)))


def test_it_is_encode_generate_decode(pair: tuple[GPT2, Tokenizer]) -> None:
    model, tokenizer = pair
    best = complete(model, tokenizer, "one ", max_new_tokens=3)
    ((by_hand,),) = generate(model, [tokenizer.encode("one ")], max_new_tokens=3)
    assert (best.text, best.tokens, best.logprobs) == ("two", by_hand.tokens, by_hand.logprobs)
    assert str(best) == "two"


def test_the_text_ends_before_a_stop_string_and_without_the_end_token(pair: tuple[GPT2, Tokenizer]) -> None:
    stopped = complete(*pair, "one ", stop=["t", "."])
    assert (stopped.text, stopped.finish_reason) == ("", "stop")
    stopped = complete(*pair, "one ", stop=[". "])
    assert (stopped.text, stopped.finish_reason) == ("two", "stop")
    ended = complete(*pair, "one ")
    assert (ended.text, ended.finish_reason) == ("two. three", "eos")


def test_a_list_of_prompts_gives_a_list_and_each_is_what_it_is_alone(pair: tuple[GPT2, Tokenizer]) -> None:
    prompts = ["one ", "one two"]
    together = complete(*pair, prompts, max_new_tokens=4)
    assert together == [complete(*pair, prompt, max_new_tokens=4) for prompt in prompts]
    assert [each.text for each in together] == ["two.", ". th"]
    assert complete(*pair, []) == []


@pytest.mark.parametrize(
    "strategy", [Sample(num_return_sequences=3, seed=1), Beam(num_beams=4, num_return_sequences=3)]
)
def test_other_completions_are_alternatives(pair: tuple[GPT2, Tokenizer], strategy: Sample | Beam) -> None:
    model, tokenizer = pair
    best = complete(model, tokenizer, "one ", strategy, max_new_tokens=2)
    (group,) = generate(model, [tokenizer.encode("one ")], strategy, max_new_tokens=2)
    assert [best.tokens, *(other.tokens for other in best.alternatives)] == [each.tokens for each in group]
    assert all(other.text == tokenizer.decode(other.tokens) for other in best.alternatives)


def test_an_empty_prompt_is_the_end_of_text_token(pair: tuple[GPT2, Tokenizer]) -> None:
    model, tokenizer = pair
    assert tokenizer.end_token is not None
    ((by_hand,),) = generate(model, [[tokenizer.end_token]], max_new_tokens=2)
    assert complete(model, tokenizer, "", max_new_tokens=2).tokens == by_hand.tokens


def test_the_default_length_is_what_fits(pair: tuple[GPT2, Tokenizer]) -> None:
    model, tokenizer = pair
    best = complete(model, tokenizer, "one ", end_tokens=[])
    assert len(best.tokens) == model.config.n_positions - 4 + 1


def test_reprs_are_short(pair: tuple[GPT2, Tokenizer]) -> None:
    best = complete(*pair, "one ", max_new_tokens=3)
    assert repr(best).startswith("Completion(text='two', score=")
    ((ids,),) = generate(pair[0], [list(b"one ")], max_new_tokens=10, end_tokens=[])
    assert repr(ids).startswith("Completion(tokens=[116, 119, 111, 46, 32, 116, ... 10 in all], score=")
    assert str(ids) == repr(ids)
    assert repr(replace(best, text="a" * 60)).startswith(f"Completion(text='{'a' * 60}', score=")
    assert repr(replace(best, text="a" * 61)).startswith(f"Completion(text='{'a' * 57}...', score=")


def test_top_is_the_softmax_of_the_last_logits(pair: tuple[GPT2, Tokenizer]) -> None:
    model, tokenizer = pair
    table = top(model, tokenizer, "one ", n=3)
    probabilities = model(torch.tensor([list(b"one ")]))[0, -1].softmax(-1)
    assert table[0].text == "t"
    for row in table:
        assert math.isclose(row.probability, probabilities[row.token].item(), rel_tol=1e-5)
    assert str(table).splitlines()[0].split() == ["token", "id", "probability", "logprob"]
    assert len(str(table).splitlines()) == 1 + len(table) == 4


def test_top_works_on_a_model_in_training_mode(pair: tuple[GPT2, Tokenizer]) -> None:
    model, tokenizer = pair
    expected = top(model, tokenizer, "one ")
    model.train()
    try:
        assert top(model, tokenizer, "one ") == expected
        assert model.training
    finally:
        model.eval()


WRONG = [
    (lambda m, t: complete((m, t), t, "a"), r"complete\(\) takes a model, got a tuple"),
    (lambda m, t: complete(m, "a", "b"), r"takes a tokenizer second, got 'a'"),
    (lambda m, t: complete(m, m, "a"), r"takes a tokenizer second, got GPT2\( "),
    (lambda m, t: generate(m, [[1]], m), r"strategy must be a strategy such as .*, got GPT2\( "),
    (lambda m, t: complete(m, t, [[1, 2]]), r"complete\(\) takes text, got \[1, 2\]: for token ids use"),
    (lambda m, t: complete(m, t, None), r"complete\(\) takes text, got None"),
    (lambda m, t: complete(m, t, "a", "greedy"), r"strategy='greedy' is a name: pass minigpt.sampler.Greedy"),
    (lambda m, t: complete(m, t, "a", Greedy), r"strategy is the class Greedy: write Greedy\(\)"),
    (lambda m, t: complete(m, t, "a", 5), r"strategy must be a strategy such as .* got 5"),
    (lambda m, t: complete(m, t, {"a": 1}), r"complete\(\) takes a text or a list of texts, got \{'a': 1\}"),
    (
        lambda m, t: complete(m, t, "a", stop=[""]),
        r"^a stop string must not be empty, got \[''\]: every text contains it$",
    ),
    (
        lambda m, t: complete(m, t, "a", stop=["b", 3]),
        r"^a stop string must be a text, got 3$",
    ),
    (lambda m, t: complete(m, t, "a", stop=3), r"stop must be a list of strings, got 3$"),
    (
        lambda m, t: complete(m, t, "a", overflow="slide", stride=2.5),
        r"stride must be a whole number from 1 to the model's context length of \d+, got 2.5",
    ),
    (lambda m, t: complete(m, t, "a", do_sample=True), r"no argument 'do_sample': sampling is a strategy"),
    (lambda m, t: complete(m, t, "a", top_p=0.9), r"'top_p': it is an option of the strategy: Sample\(top_p"),
    (lambda m, t: complete(m, t, "a", num_beams=4), r"'num_beams': it is an option .*Beam\(num_beams=...\)"),
    (lambda m, t: complete(m, t, "a", max_length=9), r"'max_length': it is max_new_tokens"),
    (lambda m, t: complete(m, t, "a", attention_mask=1), r"'attention_mask': prompts may differ in length"),
    (lambda m, t: complete(m, t, "a", bad_words_ids=[]), r"'bad_words_ids': it is bad_words"),
    (lambda m, t: complete(m, t, "a", min_length=9), r"'min_length': it is min_new_tokens, an option of"),
    (lambda m, t: complete(m, t, "a", n=2), r"it is an option .* Sample\(num_return_sequences=...\)"),
    (lambda m, t: complete(m, t, "a", force_words_ids=[]), r"an option .* Constrained\(must_include=...\)"),
    (lambda m, t: complete(m, t, "a", temprature=1), r"did you mean Sample\(temperature=...\)\?"),
    (lambda m, t: complete(m, t, "a", max_new_token=9), r"did you mean max_new_tokens\?"),
    (
        lambda m, t: complete(m, t, "a", zebra=1),
        r"has no argument 'zebra': there are end_tokens, max_new_tok",
    ),
    (lambda m, t: complete(m, t, "a", zebra=1), r"'zebra': there are .* strategy, stride, heal$"),
    (lambda m, t: complete(m, t, "a", generator=1), r"it is an option of the strategy: Sample\(seed=...\)"),
    (lambda m, t: complete(m, t, "a", max_tokens=1), r"'max_tokens': it is max_new_tokens$"),
    (lambda m, t: complete(m, t, "a", stream=True), r"'stream': use minigpt.sampler.stream, which yields"),
    (lambda m, t: top(m, t, "a", k=3), r"top\(\) has no argument 'k': it is n$"),
    (lambda m, t: top(m, t, "a", zebra=3), r"top\(\) has no argument 'zebra': there are n$"),
    (lambda m, t: complete(m, t, "a" * 99), r"the prompt has 99 tokens, the model's context length is"),
    (lambda m, t: top(m, t, "a", n=0), r"n must be a whole number of at least 1, got 0"),
    (lambda m, t: top(m, t, [1]), r"top\(\) takes a text, got \[1\]"),
    (lambda m, t: generate(m, "text"), r"prompts are token ids, got the text 'text': use minigpt.complete"),
    (lambda m, t: generate(m, ["text"]), r"prompts are token ids, got the text 'text'"),
    (lambda m, t: generate(m, [1, 2]), r"write \[tokens\], not tokens"),
    (lambda m, t: generate(m, torch.tensor([1, 2])), r"write \[tokens\], not tokens"),
    (lambda m, t: generate(m, 5), r"prompts is a list of lists of ids, got 5"),
    (lambda m, t: generate(m, [[1.5]]), r"a prompt is a list of token ids, got \[1.5\]"),
    (lambda m, t: generate(m, [[]]), r"an empty prompt has nothing to continue"),
    (lambda m, t: generate(m, [[-1]]), r"the model knows ids from 0 to 257, the prompt holds \[-1\]"),
    (lambda m, t: generate((m, t), [[1]]), r"generate\(\) takes a model, got a tuple"),
    (lambda m, t: generate(t, [[1]]), r"generate\(\) takes a model first, got Tokenizer"),
    (lambda m, t: generate(m, [[1]], max_new_tokens=2.5), r"max_new_tokens must be a whole number .*got 2.5"),
    (lambda m, t: generate(m, [[1]], max_new_tokens=0), r"max_new_tokens must be .*at least 1, got 0"),
    (lambda m, t: generate(m, [[1]], top_logprobs=-1), r"top_logprobs must be .*at least 0, got -1"),
    (lambda m, t: generate(m, [[1]], end_tokens=5), r"end_tokens must be a list of ids, got 5: write \[5\]"),
    (lambda m, t: generate(m, [[1]], end_tokens=[-1]), r"end_tokens must be ids from 0 to 257, got \[-1\]"),
    (lambda m, t: generate(m, [[1]], stop=["x"]), r"stop=\['x'\] must be a function of the new tokens"),
    (lambda m, t: generate(m, [[1]], overflow="wrap"), r"overflow='wrap' is not known; there are error"),
]


@pytest.mark.parametrize(("call", "message"), WRONG, ids=[message for _, message in WRONG])
def test_what_is_wrong_is_said(pair: tuple[GPT2, Tokenizer], call: object, message: str) -> None:
    assert callable(call)
    with pytest.raises(InvalidRequest, match=message) as raised:
        call(*pair)
    assert "\n" not in str(raised.value)


def test_an_unknown_argument_is_a_type_error_too(pair: tuple[GPT2, Tokenizer]) -> None:
    with pytest.raises(TypeError, match="no argument 'use_cache': the KV cache is always used"):
        complete(*pair, "a", use_cache=True)  # type: ignore[call-overload]

"""Token healing: new tokens spell the end of the prompt first, and the text begins right behind the prompt."""

from __future__ import annotations

from typing import Any

import pytest
from fakes import FakeModel, Text, scrambled, tiny_gpt2
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import as_it_comes

from minigpt import InvalidRequest, Tokenizer, complete
from minigpt.data.prompt_rows import PromptRow
from minigpt.sampler import Beam, Greedy, Sample, generate
from minigpt.sampler.many import complete_many
from minigpt.sampler.processors import Healer, TopK
from minigpt.sampler.registry import names
from minigpt.sampler.requests import prepare
from minigpt.sampler.strategies.constrained import Constrained
from minigpt.sampler.text import healer
from minigpt.tokenizer.bpe import BYTES
from minigpt.tokenizer.files import END_OF_TEXT

MERGES = [
    ("Ġ", "t"), ("h", "e"), ("Ġt", "he"), ("Ġthe", "r"), ("Ġthe", "y"), ("i", "n"), ("in", "g"), ("Ã", "©"), ("t", "Ã©"),
    ("Ġ", "Y"), ("o", "r"), ("ĠY", "or"), ("ĠYor", "k"), ("Ċ", "Ċ"), (":", "/"), (":/", "/"), ("Ġ", "Ġ"),
]  # fmt: skip
VOCAB = {**BYTES, **{a + b: 256 + i for i, (a, b) in enumerate(MERGES)}}
END = len(VOCAB)
TOKENIZER = Tokenizer(VOCAB, MERGES, special_tokens={END_OF_TEXT: END})
TOKENS = TOKENIZER.token_bytes()
SIZES: dict[str, Any] = {"vocab_size": END + 1, "n_positions": 64, "eos_token_id": END}
MODEL, OTHER = tiny_gpt2(**SIZES), tiny_gpt2(seed=1, **SIZES)
RULE = scrambled(END + 1, spread=3)
FAKE: Any = FakeModel(RULE, end_tokens=[END])
CUT = [
    "a th",
    "a the",
    "in ",
    "New Yo",
    "http:",
    "xt",
    "cin",
    "a t",
    "at",
    "a  ",
    " the  t",
    "a in the thei",
]
WHOLE = ["a", "été", "the.", "ab", "a they"]  # no token goes on where these end

prompts = st.lists(
    st.sampled_from([*" aYtheroiyng:/é", "\n\n", " the", " Yor", "::"]), min_size=1, max_size=6
)


def spelled(tokens: Any) -> bytes:
    return TOKENIZER.decode_bytes(tokens)


def by_hand(prompt: str, n: int) -> tuple[list[int], list[int]]:
    """What stays of the prompt, and the new tokens that greedy decoding finds if every token is tried."""
    ids = TOKENIZER.encode(prompt)
    ends = {start: spelled(ids[start:]) for start in range(1, len(ids))}
    longer = [
        start for start, end in ends.items() if any(t and t.startswith(end) and t != end for t in TOKENS)
    ]
    if ids and (TOKENS[ids[-1]] or b"").isspace() and len(TOKENS[ids[-1]] or b"") > 1 and len(ids) > 1:
        longer.append(len(ids) - 1)
    start = min(longer, default=len(ids))
    rest, new = ends.get(start, b""), []
    for _ in range(len(ids) - start + n):
        fits = [
            i for i, t in enumerate(TOKENS) if not rest or (t and (t.startswith(rest) or rest.startswith(t)))
        ]
        scores = RULE((*ids[:start], *new))
        new.append(max(fits, key=scores.__getitem__))
        rest = rest[len(spelled(new[-1:])) :]
        if new[-1] == END:
            break
    return ids[:start], new


@settings(max_examples=40)
@given(parts=prompts)
def test_it_is_what_trying_every_token_finds(parts: list[str]) -> None:
    prompt = "".join(parts)
    best = complete(FAKE, TOKENIZER, prompt, max_new_tokens=3, heal=True)
    stays, new = by_hand(prompt, 3)
    assert best.tokens == new
    assert [*stays, *best.taken_back] == TOKENIZER.encode(prompt)
    behind = spelled([*stays, *new])[len(prompt.encode()) :]
    assert best.text == behind.removesuffix(END_OF_TEXT.encode()).decode(errors="replace")


@pytest.mark.parametrize("name", names())
def test_every_strategy_spells_the_prompt_first_and_a_prompt_alone_is_one_of_a_batch(name: str) -> None:
    how = as_it_comes(name, second=OTHER)
    together = complete(MODEL, TOKENIZER, CUT, how, max_new_tokens=4, heal=True)
    for prompt, best in zip(CUT, together, strict=True):
        alone = complete(MODEL, TOKENIZER, prompt, how, max_new_tokens=4, heal=True)
        ids = TOKENIZER.encode(prompt)
        for one, other in zip([best, *best.alternatives], [alone, *alone.alternatives], strict=True):
            assert (one.tokens, one.text) == (other.tokens, other.text)
            assert tuple(ids[-len(one.taken_back) :]) == one.taken_back != ()
            assert spelled(one.tokens).startswith(spelled(one.taken_back))
            stays = ids[: -len(one.taken_back)]
            whole = spelled([*stays, *one.tokens])[len(prompt.encode()) :]
            assert one.text == whole.removesuffix(END_OF_TEXT.encode()).decode(errors="replace")
            assert len(one.tokens) <= 4 + len(one.taken_back)


@pytest.mark.parametrize("name", names())
def test_a_prompt_that_no_token_would_lengthen_is_continued_as_it_is(name: str) -> None:
    how = as_it_comes(name, second=OTHER)
    healed = complete(MODEL, TOKENIZER, WHOLE, how, max_new_tokens=5, heal=True)
    assert healed == complete(MODEL, TOKENIZER, WHOLE, how, max_new_tokens=5)


def test_where_the_same_tokens_are_chosen_again_the_text_is_the_same() -> None:
    same = 0
    for prompt in (
        f"{a}{b}" for a in ["a", "in", " the", "to:", "Y"] for b in [" t", "i", " Y", " the", "in", "o", "h"]
    ):
        healed = complete(FAKE, TOKENIZER, prompt, max_new_tokens=6, heal=True)
        if healed.taken_back and tuple(healed.tokens[: len(healed.taken_back)]) == healed.taken_back:
            plain = complete(FAKE, TOKENIZER, prompt, max_new_tokens=6)
            assert (healed.text, healed.finish_reason) == (plain.text, plain.finish_reason)
            same += 1
    assert same > 2


@settings(max_examples=40)
@given(parts=prompts, stop=st.sampled_from(["e", "t", "he", " ", "i", "n"]))
def test_a_stop_string_ends_the_text_only_behind_the_prompt(parts: list[str], stop: str) -> None:
    prompt = "".join(parts)
    whole = complete(FAKE, TOKENIZER, prompt, max_new_tokens=4, heal=True)
    assert whole.text is not None
    stopped = complete(FAKE, TOKENIZER, prompt, max_new_tokens=4, heal=True, stop=[stop])
    assert stopped.text == whole.text.partition(stop)[0]
    assert (stopped.finish_reason == "stop") == (stop in whole.text)


def test_rows_of_many_are_healed_as_prompts_are() -> None:
    rows = [PromptRow(str(i), prompt) for i, prompt in enumerate([*CUT, *WHOLE])]
    for answer in complete_many(MODEL, TOKENIZER, rows, max_new_tokens=4, heal=True, stop=["y"]):
        expected = complete(MODEL, TOKENIZER, answer.row.prompt, max_new_tokens=4, heal=True, stop=["y"])
        (found,) = answer.completions
        assert (found.tokens, found.text) == (expected.tokens, expected.text)


def healed(prompt: str, **limits: Any) -> Any:
    (request,) = prepare(MODEL, [TOKENIZER.encode(prompt, allow_special=True)], **limits)
    return healer(MODEL, TOKENIZER, TOKENIZER.stop_strings())(request), request


def test_how_much_is_taken_back() -> None:
    def taken(prompt: str) -> list[str]:
        return [TOKENIZER.decode([token]) for token in healed(prompt)[0].taken_back]

    assert taken("New Yo") == [" Y", "o"]  # for both are in " York"
    assert taken("a the") == [" the"]
    assert taken("a in") == ["in"]  # no token begins with " in"
    assert taken("a the.") == []
    assert taken("the") == taken("t") == []  # the first token stays
    assert taken("a\n\n") == ["\n\n"]  # no token is longer, but before a word the second would be apart


def test_a_special_token_is_never_taken_back() -> None:
    assert healed(f"a{END_OF_TEXT}")[0].taken_back == ()
    request, _ = healed(f"a i{END_OF_TEXT} Y")
    assert TOKENIZER.decode(request.taken_back) == " Y"
    assert complete(MODEL, TOKENIZER, "", max_new_tokens=3, heal=True) == complete(
        MODEL, TOKENIZER, "", max_new_tokens=3
    )


def test_prompt_and_new_tokens_are_together_as_long_as_without() -> None:
    request, before = healed("New Yo", max_new_tokens=5)
    assert (len(request.prompt), request.max_new_tokens) == (len(before.prompt) - 2, 7)
    assert request.random_name == before.random_name  # so different prompts have different random numbers
    full = "a" * 62 + " t"
    assert len(complete(MODEL, TOKENIZER, full, max_new_tokens=2, heal=True, end_tokens=[]).tokens) == 3
    slid = complete(MODEL, TOKENIZER, full, max_new_tokens=9, heal=True, end_tokens=[], overflow="slide")
    assert len(slid.tokens) == 10


def test_only_beginnings_that_can_be_gone_on_from_are_allowed() -> None:
    # After "a" no token could spell "bc", and after "ab" none "c".
    known = Healer([b"a", b"ab", b"abc", b"abcd", b"bd"])
    assert known.mask(b"abc").tolist() == [False, False, True, True, False]
    assert known.mask(b"abd").tolist() == [True, False, False, False, False]
    assert not known.mask(b"x").any()


def test_cut_offs_act_on_what_fits() -> None:
    def likes_x(text: Text) -> list[float]:
        return [9.0 * (token == ord("x")) for token in range(END + 1)]

    model: Any = FakeModel(likes_x)  # before the cut-off nothing is left but x, which does not fit
    for how in (Sample(top_k=1, seed=1), Greedy(processors=(TopK(1),))):
        best = complete(model, TOKENIZER, "a t", how, max_new_tokens=3, heal=True)
        assert best.text is not None
        assert best.text.endswith("xx")


def test_a_model_with_more_rows_than_tokens_writes_none_of_them_in_the_prompt() -> None:
    large = tiny_gpt2(**{**SIZES, "vocab_size": END + 40})
    for seed in range(20):
        best = complete(large, TOKENIZER, "a th", Sample(seed=seed), max_new_tokens=1, heal=True)
        assert spelled(best.tokens).startswith(b" th")


def test_what_cannot_be_combined_is_refused() -> None:
    include = Constrained(num_beams=2, must_include=[[97]])
    with pytest.raises(InvalidRequest, match=r"heal \(--heal\) and must_include"):
        complete(MODEL, TOKENIZER, "a t", include, max_new_tokens=3, heal=True)
    assert complete(MODEL, TOKENIZER, "a", include, max_new_tokens=3, heal=True).text
    with pytest.raises(InvalidRequest, match=r"it is for text: minigpt\.complete"):
        generate(MODEL, [[1]], heal=True)  # type: ignore[call-arg]


def test_a_grammar_is_refused() -> None:
    pytest.importorskip("llguidance")
    from minigpt.sampler.grammar import Grammar

    how = Beam(num_beams=2, regex=Grammar("regex", "[a-z]+", TOKENS))
    with pytest.raises(InvalidRequest, match=r"heal \(--heal\) and a grammar cannot be combined"):
        complete(MODEL, TOKENIZER, "a t", how, max_new_tokens=3, heal=True)

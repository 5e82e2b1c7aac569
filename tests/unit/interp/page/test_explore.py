"""What a page holds is what the model and the sampler computed: each part against another way to it."""

from __future__ import annotations

import json
import math
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from command import END, bytes_alone, reciter, tiny
from traced import traced

from minigpt.errors import InvalidRequest
from minigpt.interp import logit_lens, record_text, surprisal
from minigpt.interp.page import Page, explore, load, steps
from minigpt.interp.page.data import without_nan
from minigpt.interp.page.packed import is_packed, unpack
from minigpt.interp.page.patterns import unpack_patterns
from minigpt.interp.page.sliders import Sliders
from minigpt.sampler import (
    Beam,
    Constrained,
    Contrastive,
    ContrastiveDecoding,
    DiverseBeam,
    DoLa,
    Greedy,
    PromptLookup,
    Sample,
    Speculative,
    Strategy,
)
from minigpt.sampler.events import PromptTooLong
from minigpt.sampler.processors import RepetitionPenalty

MODEL = tiny(n_layer=2, n_head=2, initializer_range=0.5, eos_token_id=None).eval()
TOKENIZER = bytes_alone()
PROMPT = "a cat"
SAMPLED = Sample(temperature=0.8, top_k=50, top_p=0.9, repetition_penalty=1.3, min_p=0.001, seed=3)


def unpacked(value: Any) -> Any:
    if is_packed(value):
        return unpack(value)
    if isinstance(value, dict):
        return {key: unpacked(inner) for key, inner in value.items()}
    return [unpacked(inner) for inner in value] if isinstance(value, list) else value


def run_of(strategy: Strategy | None = None, prompt: str = PROMPT, **asked: Any) -> Any:
    return unpacked(explore(MODEL, TOKENIZER, prompt, strategy, **asked).data["runs"][0])


SHOWN = run_of(SAMPLED, max_new_tokens=9)
TOKENS = [*PROMPT.encode(), *traced(MODEL, [[*PROMPT.encode()]], SAMPLED, max_new_tokens=9)[0][0].tokens]
SEEN = record_text(MODEL, TOKENS)


# ------------------------------------------------------------------------------ the text


def test_the_text_is_what_generate_writes() -> None:
    assert SHOWN["tokens"] == TOKENS
    assert SHOWN["text"] == TOKENIZER.decode(TOKENS)
    assert (SHOWN["prompt"], SHOWN["prompt_length"], SHOWN["read"]) == (PROMPT, 5, len(TOKENS))
    assert (SHOWN["finish_reason"], SHOWN["dropped"], SHOWN["beams"]) == ("length", 0, None)
    assert len(SHOWN["pieces"]) == len(TOKENS)


def test_a_prompt_can_be_shown_alone() -> None:
    alone = run_of(max_new_tokens=0)
    assert alone["tokens"] == [*PROMPT.encode()]
    assert (alone["steps"], alone["logits"], alone["finish_reason"]) == ([], "none", "")
    assert alone["attention"]["index"].shape == (2, 2, 5, 5)


def test_an_empty_prompt_is_the_end_token() -> None:
    assert run_of(prompt="", max_new_tokens=2)["tokens"][0] == END


def test_the_usual_length_is_20_or_what_fits() -> None:
    assert len(run_of()["steps"]) == 20
    assert len(run_of(prompt="x" * 30)["steps"]) == 3
    assert len(run_of(prompt="x" * 40, overflow="truncate")["steps"]) == 20


def test_the_last_token_may_lie_beyond_the_context() -> None:
    """A prompt that fills it yields one token, which is never read: all its rows are empty."""
    full = run_of(prompt="x" * 32, max_new_tokens=1)
    assert (len(full["tokens"]), full["read"]) == (33, 32)
    assert full["attention"]["index"][:, :, 32].eq(65535).all()
    assert full["attention"]["index"].size(2) == full["lens"]["rank"].size(1) == 33
    assert full["lens"]["entropy"][:, 32].isnan().all()
    assert full["lens"]["rank"][:, 31].gt(0).all()
    assert full["lens"]["rank"][:, 32].eq(0).all()
    assert full["surprisal"][32] > 0
    ((best,),) = traced(MODEL, [[120] * 32], Greedy(), max_new_tokens=1)
    assert full["surprisal"][32] == pytest.approx(-best.logprobs[0] / math.log(2), abs=1e-4)


def test_dropped_prompt_tokens_are_counted() -> None:
    run = run_of(prompt="x" * 40, overflow="truncate", max_new_tokens=3)
    assert run["dropped"] == 40 - run["prompt_length"] == 10


def test_a_text_that_ends_with_the_context() -> None:
    run = run_of(prompt="x" * 30, overflow="stop", max_new_tokens=9)
    assert (run["finish_reason"], len(run["tokens"])) == ("overflow", 33)


def test_a_text_that_ends_with_the_end_token() -> None:
    (run,) = explore(reciter("abc").eval(), TOKENIZER, "a").data["runs"]
    assert (run["text"], run["finish_reason"]) == ("abc<|endoftext|>", "eos")
    assert [step["chosen"] for step in run["steps"]] == [*b"bc", END]


def test_the_title_is_short_and_holds_nothing_that_is_obeyed() -> None:
    title = explore(MODEL, TOKENIZER, "a\n\x1b[2J\x00\u202eb", max_new_tokens=0).data["title"]
    assert title == "a ·[2J··b"
    long = explore(tiny(n_positions=99).eval(), TOKENIZER, "word " * 19, max_new_tokens=0).data["title"]
    assert (len(long), long[-1]) == (60, "…")


def test_a_text_that_stops_early() -> None:
    new = TOKENS[5:]
    n = next(i for i, token in enumerate(new, start=1) if token < 128)  # a character by itself
    stopped = run_of(SAMPLED, stop=[chr(new[n - 1])], max_new_tokens=9)
    assert (stopped["finish_reason"], stopped["tokens"]) == ("stop", TOKENS[: 5 + n])


# ------------------------------------------------------------------------------ attention, lens, surprisal


def test_attention_is_that_of_the_finished_text() -> None:
    truth = SEEN.stack("blocks.*.attn.pattern")[:, 0]
    assert (unpack_patterns(SHOWN["attention"]) - truth).abs().max() < 1 / 500
    assert SHOWN["attention"]["norms"]["norm"].shape == truth.shape[:3]


def test_the_lens_is_that_of_the_finished_text() -> None:
    targets = torch.tensor([[*TOKENS[1:], 0]])
    reading, lens = logit_lens(MODEL, SEEN, targets=targets), SHOWN["lens"]
    assert lens["points"] == ["embed", "blocks.0", "blocks.1"]
    assert lens["ids"].equal(reading.top_tokens[:, 0])
    torch.testing.assert_close(lens["probability"], reading.top_logprobs[:, 0].exp())
    assert lens["rank"][:, :-1].equal(reading.rank[:, 0, :-1])
    assert lens["rank"][:, -1].eq(0).all()
    torch.testing.assert_close(lens["entropy"], reading.entropy[:, 0] / math.log(2))
    torch.testing.assert_close(lens["kl"], reading.kl[:, 0].clamp_min(0) / math.log(2))


def test_the_lens_in_parts_is_the_lens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minigpt.interp.page.observed.AT_ONCE", 3)
    parts = run_of(SAMPLED, max_new_tokens=9)
    for name in ("ids", "probability", "rank", "entropy", "kl"):
        torch.testing.assert_close(parts["lens"][name], SHOWN["lens"][name])
    torch.testing.assert_close(parts["surprisal"], SHOWN["surprisal"], equal_nan=True)
    torch.testing.assert_close(parts["steps"][4]["logits"], SHOWN["steps"][4]["logits"])


def test_surprisal_is_that_of_the_finished_text() -> None:
    torch.testing.assert_close(SHOWN["surprisal"], surprisal(SEEN)[0], equal_nan=True)


# ------------------------------------------------------------------------------ the generated tokens


def test_steps_are_the_sampler_s_traces() -> None:
    ((best,),) = traced(MODEL, [[*PROMPT.encode()]], SAMPLED, max_new_tokens=9)
    for i, (step, trace) in enumerate(zip(SHOWN["steps"], best.traces, strict=True)):
        assert (step["position"], step["chosen"]) == (5 + i, best.tokens[i])
        assert step["logprob"] == best.logprobs[i]
        assert step["before"] == vars(trace.before)
        assert step["after"] == vars(trace.after)
        names = [stage["stage"] for stage in step["stages"]]
        assert names == ["repetition-penalty", "temperature", "top-k", "top-p", "min-p"]
        assert [stage["removed"] for stage in step["stages"]] == [stage.removed for stage in trace.stages]


def test_sliders_start_where_the_run_was() -> None:
    """So that with them alone they show what each token was sampled from: but for min-p, which the page says."""
    assert SHOWN["sampling"] == {
        "samples": True, "temperature": 0.8, "top_k": 50, "top_p": 0.9, "before": ["repetition-penalty"], "after": ["min-p"],
    }  # fmt: skip
    for step in SHOWN["steps"]:
        probabilities = Sliders(0.8, 50, 0.9)(step["logits"].double())
        assert probabilities[step["chosen"]] == pytest.approx(step["stages"][-2]["probability"], abs=1e-5)


def test_logits_are_those_that_enter_the_temperature() -> None:
    penalty = RepetitionPenalty(1.3)
    for step in SHOWN["steps"]:
        at = step["position"]
        own = penalty(SEEN["logits"][:, at - 1], torch.tensor([TOKENS[:at]]))[0]
        torch.testing.assert_close(step["logits"], own)
    assert SHOWN["logits"] == "all"


def test_of_large_vocabularies_the_likeliest_are_kept_and_the_sum_of_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("minigpt.interp.page.budget.OF_A_LOGIT", 1e9)
    monkeypatch.setattr(steps, "LIKELIEST", 20)
    run = run_of(Sample(seed=3, bad_words=[[97], [98]]), max_new_tokens=4)
    assert run["logits"] == "largest"
    whole = run_of(Sample(seed=3, bad_words=[[97], [98]]), max_new_tokens=0)
    assert whole["logits"] == "none"
    for step in run["steps"]:
        kept, at = step["logits"], step["position"]
        own = record_text(MODEL, run["tokens"], "logits")["logits"][0, at - 1].clone()
        own[[97, 98]] = -torch.inf
        best = own.sort(descending=True)
        torch.testing.assert_close(kept["values"], best.values[:20])
        assert kept["ids"].tolist() == best.indices[:20].tolist()
        assert kept["count"] == 258 - 20 - 2
        assert kept["top"] == pytest.approx(float(best.values[20]))
        everything = float((own.double() / 0.7).logsumexp(0))
        others = kept["top"] / 0.7 + _series(kept, 0.7)
        parts = torch.tensor([*(kept["values"].double() / 0.7).tolist(), others], dtype=torch.float64)
        assert float(parts.logsumexp(0)) == pytest.approx(everything, abs=1e-5)


def _series(kept: dict[str, Any], t: float) -> float:
    """The Chebyshev series as a script evaluates it (Clenshaw)."""
    low, high = map(math.log, kept["temperatures"])
    x, b, c = (2 * math.log(t) - low - high) / (high - low), 0.0, 0.0
    first, *rest = kept["coefficients"].tolist()
    for coefficient in reversed(rest):
        b, c = 2 * x * b - c + coefficient, b
    return float(x * b - c + first)


def test_where_all_others_are_ruled_out_there_is_no_tail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minigpt.interp.page.budget.OF_A_LOGIT", 1e9)
    (step,) = run_of(Greedy(), max_new_tokens=1)["steps"]
    assert step["logits"]["count"] == 2  # 258 tokens, 256 of them kept
    monkeypatch.setattr(steps, "LIKELIEST", 258)
    (step,) = run_of(Greedy(), max_new_tokens=1)["steps"]
    assert (step["logits"]["count"], step["logits"]["top"], len(step["logits"]["coefficients"])) == (
        0,
        None,
        0,
    )


def test_of_equal_logits_the_larger_id_comes_first() -> None:
    assert steps.ascending(torch.tensor([1.0, 0.0, 1.0])).tolist() == [1, 0, 2]


@pytest.mark.parametrize(
    "strategy",
    [
        Greedy(),
        Beam(num_beams=1),
        Beam(num_beams=3),
        Constrained(must_include=[[97, 98]]),
        Contrastive(),
        ContrastiveDecoding(amateur=MODEL),
        DiverseBeam(num_beams=4, num_beam_groups=2),
        DoLa(),
        PromptLookup(),
        Speculative(draft=MODEL),
    ],
    ids=lambda strategy: type(strategy).__name__,
)
def test_strategies_that_do_not_sample_leave_the_sliders_off(strategy: Strategy) -> None:
    run = run_of(strategy, max_new_tokens=4)
    sampling = run["sampling"]
    assert [sampling[name] for name in ("samples", "temperature", "top_k", "top_p")] == [False, 1.0, 0, 1.0]
    assert [step["chosen"] for step in run["steps"]] == run["tokens"][5:]


@pytest.mark.parametrize("strategy", [Beam(num_beams=3), SAMPLED])
def test_the_logits_of_beams_are_log_probabilities(strategy: Strategy) -> None:
    """As the page's documentation says: they enter the temperature as their strategy computes them."""
    run = run_of(strategy, max_new_tokens=4)
    sums = torch.stack([step["logits"].double().logsumexp(-1) for step in run["steps"]])
    assert (sums.abs().max() < 1e-5) == (strategy is not SAMPLED)


def test_beams_are_those_of_the_lattice() -> None:
    run = run_of(Beam(num_beams=3, repetition_penalty=1.5), max_new_tokens=4)
    assert [len(step) for step in run["beams"]["steps"]] == [3, 3, 3, 3]
    parent, token, score, reason = run["beams"]["steps"][0][0]
    assert (parent, reason) == (0, "")
    own = record_text(MODEL, [*PROMPT.encode()], "logits")["logits"][:, -1].log_softmax(-1)
    penalised = RepetitionPenalty(1.5)(own, torch.tensor([[*PROMPT.encode()]]))[0]
    assert (token, score) == (int(penalised.argmax()), pytest.approx(float(penalised.max()), abs=1e-5))
    torch.testing.assert_close(run["steps"][0]["logits"], penalised)  # of log-probabilities, not of logits


# ------------------------------------------------------------------------------ the page


def test_every_token_that_is_named_has_a_label(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "LIKELIEST", 64)
    for strategy in (SAMPLED, Beam(num_beams=90)):
        data = explore(MODEL, TOKENIZER, PROMPT, strategy, compare="é", max_new_tokens=4).data
        named: set[int] = set()
        for run in map(unpacked, data["runs"]):
            named |= {*run["tokens"], *run["lens"]["ids"].flatten().tolist()}
            named |= {beam[1] for step in (run["beams"] or {"steps": []})["steps"] for beam in step}
            for step in run["steps"]:
                named |= set(step["logits"].topk(64).indices.tolist())
        assert {str(token) for token in named} <= data["vocabulary"].keys()
        assert all(data["vocabulary"].values())


def test_the_same_input_gives_the_same_page_and_another_another() -> None:
    pages = [explore(MODEL, TOKENIZER, PROMPT, SAMPLED, max_new_tokens=5).html for _ in range(2)]
    assert pages[0] == pages[1]
    assert pages[0] != explore(MODEL, TOKENIZER, PROMPT, Sample(seed=4), max_new_tokens=5).html


def test_provenance() -> None:
    page = explore(MODEL, TOKENIZER, PROMPT, SAMPLED, max_new_tokens=1, model_name="tiny")
    provenance = page.data["provenance"]
    assert (provenance["model"], provenance["strategy"], provenance["seed"]) == ("tiny", "sample", 3)
    assert provenance["versions"].keys() == {"minigpt", "python", "torch"}
    other = tiny(n_layer=2, n_head=2, initializer_range=0.5, eos_token_id=None).eval()
    assert hash_of(other) == provenance["sha256"]
    with torch.no_grad():
        other.blocks[1].mlp.up.bias[0] += 1e-6
    assert hash_of(other) != provenance["sha256"]
    assert page.data["config"] == {
        "n_layer": 2, "n_head": 2, "n_embd": 8, "n_positions": 32, "vocab_size": 258, "cache_bytes": 2 * 8 * 4,
    }  # fmt: skip


def hash_of(model: Any) -> str:
    sha256: str = explore(model, TOKENIZER, "a", max_new_tokens=0).data["provenance"]["sha256"]
    return sha256


def test_two_prompts_are_two_runs_each_as_alone() -> None:
    both = explore(MODEL, TOKENIZER, PROMPT, SAMPLED, compare="a dog", max_new_tokens=3).data["runs"]
    for run, prompt in zip(both, (PROMPT, "a dog"), strict=True):
        alone = explore(MODEL, TOKENIZER, prompt, SAMPLED, max_new_tokens=3).data["runs"][0]
        assert run == alone


def test_a_saved_page_reads_back(tmp_path: Path) -> None:
    page = explore(MODEL, TOKENIZER, PROMPT, SAMPLED, max_new_tokens=9)
    page.save(tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == page.html
    (run,) = load(tmp_path / "page.html")["runs"]
    torch.testing.assert_close(run["attention"], SHOWN["attention"], rtol=0, atol=0)
    assert run["steps"][3]["logits"].equal(SHOWN["steps"][3]["logits"])
    assert run["text"] == SHOWN["text"]


def test_a_notebook_shows_it_in_a_frame_that_reaches_nothing() -> None:
    page = explore(MODEL, TOKENIZER, '"</iframe><script>', max_new_tokens=0)
    frames: list[dict[str, str | None]] = []

    class Frames(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            assert tag == "iframe"
            frames.append(dict(attrs))

    Frames().feed(page._repr_html_())
    (frame,) = frames
    assert frame["sandbox"] == "allow-scripts"
    assert frame["srcdoc"] == page.html
    assert frame["title"] == '"</iframe><script>'
    assert repr(page).startswith("""Page('"</iframe><script>', 18 tokens, """)


def test_numbers_that_json_has_not_are_null() -> None:
    assert without_nan({"a": [math.inf, (1.5, math.nan)], "b": 1}) == {"a": [None, [1.5, None]], "b": 1}
    assert json.loads(json.dumps(explore(MODEL, TOKENIZER, "a").data, allow_nan=False))


def test_watching_changes_nothing_and_leaves_no_hooks() -> None:
    batch = torch.tensor([TOKENS])
    before = MODEL(batch)
    explore(MODEL, TOKENIZER, PROMPT, SAMPLED)
    assert MODEL(batch).equal(before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in MODEL.modules())


# ------------------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [
        ({"prompt": "x" * 33}, PromptTooLong, "the prompt has 33 tokens"),
        ({"prompt": "x" * 33, "max_new_tokens": 0}, PromptTooLong, "the prompt has 33 tokens"),
        ({"compare": "x" * 33, "max_new_tokens": 0}, PromptTooLong, "the prompt has 33 tokens"),
        ({"max_new_tokens": -1}, InvalidRequest, "max_new_tokens .* must be at least 0, got -1"),
        (
            {"strategy": Sample(num_return_sequences=2)},
            InvalidRequest,
            "num_return_sequences .* must be 1, got 2",
        ),
        (
            {"overflow": "slide"},
            InvalidRequest,
            "overflow='slide' is not for a page, which shows one context",
        ),
        ({"stop": [""]}, ValueError, "a stop string must not be empty"),
    ],
)
def test_mistakes(asked: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        run_of(**asked)


def test_a_model_that_drops_numbers_at_random_is_refused() -> None:
    with pytest.raises(ValueError, match=r"call model.eval\(\) first"):
        explore(tiny(resid_pdrop=0.1).train(), TOKENIZER, "a", max_new_tokens=0)


def test_quantised_models_are_shown_without_norms() -> None:
    small = tiny(n_layer=2, n_head=2, n_embd=32).eval().quantize("int8")
    page: Page = explore(small, TOKENIZER, PROMPT, max_new_tokens=2)
    assert page.data["runs"][0]["attention"]["norms"] is None

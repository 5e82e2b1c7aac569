"""Every processor gives the scores of transformers' own, bit for bit."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest
import torch
from reference import reference
from torch import Tensor
from transformers import GenerationConfig, WatermarkDetector, WatermarkingConfig
from transformers.generation import logits_process as theirs

from minigpt.evaluation.watermark import WatermarkDetector as OurDetector
from minigpt.sampler import Beam, BeamSample, Greedy, Sample, Strategy
from minigpt.sampler.events import Request
from minigpt.sampler.processors import (
    BadWords,
    EpsilonCutoff,
    EtaCutoff,
    ExponentialLengthDecay,
    LogitBias,
    MinNewTokens,
    MinP,
    NoRepeatNGram,
    Processor,
    RepetitionPenalty,
    Temperature,
    TopK,
    TopP,
    Typical,
    Watermark,
    chain,
)

V = 29
NONE = float("-inf")


def logits_of_every_kind() -> dict[str, Tensor]:
    chance = torch.Generator().manual_seed(0)
    plain = 3 * torch.randn(6, V, generator=chance)
    some_ruled_out = plain.masked_fill(torch.rand(6, V, generator=chance) < 0.4, NONE)
    one_left = torch.full((2, V), NONE).index_fill(1, torch.tensor([5]), -1.5)
    rows_ruled_out = plain.clone()
    rows_ruled_out[[1, 4]] = NONE
    return {
        "plain": plain,
        "one row": plain[:1],
        "ties": plain.round(),
        "all equal": torch.zeros(2, V),
        "some -inf": some_ruled_out,
        "one finite": one_left,
        "ties and -inf": some_ruled_out.round(),
        "rows of -inf": rows_ruled_out,
        "steep": 100 * plain,
        "flat": plain / 1000,
        "log-probabilities": plain.log_softmax(-1),
    }


def tokens_of_every_kind(rows: int) -> dict[str, Tensor]:
    chance = torch.Generator().manual_seed(1)
    repeated = torch.tensor([5, 7, 5, 7, 5, 5, 7, 1, 5, 7]).repeat(rows, 1)
    return {
        "one token": torch.full((rows, 1), 5),
        "repeated": repeated,
        "varied": torch.randint(9, (rows, 12), generator=chance),
    }


LOGITS = logits_of_every_kind()
P = (0.0, 1e-9, 1e-3, 0.3, 0.9, 0.999999, 1.0)
KEEP = (1, 2, 3, V, V + 5)
BIASES = {0: 1.5, 7: -2.25, V - 1: 10.0, 5: NONE}
WORDS = [[3], [5, 7], [7, 5, 5], [1, 5, 7, 2], [5, 5], [5], [4] * 20]


def pairs() -> dict[str, tuple[Processor, Any]]:
    """Ours and theirs by a name that tells the options."""
    as_sequences = {(token,): bias for token, bias in BIASES.items()}
    found: dict[str, tuple[Processor, Any]] = {
        "logit bias": (LogitBias(BIASES), theirs.SequenceBiasLogitsProcessor(as_sequences)),
        "bad words": (BadWords(WORDS), theirs.NoBadWordsLogitsProcessor(WORDS)),
    }
    for penalty in (0.5, 1.0, 1.3, 4.0):
        found[f"repetition {penalty}"] = (
            RepetitionPenalty(penalty),
            theirs.RepetitionPenaltyLogitsProcessor(penalty),
        )
    for size in (1, 2, 3, 11, 13):
        found[f"n-gram {size}"] = (NoRepeatNGram(size), theirs.NoRepeatNGramLogitsProcessor(size))
    for n in (1, 5, 8, 50):
        found[f"minimum {n}"] = (
            MinNewTokens(n, 4, frozenset([2, 9])),
            theirs.MinNewTokensLengthLogitsProcessor(4, n, [2, 9]),
        )
    for start, factor in ((0, 1.01), (3, 1.6), (7, 1e6), (8, 2.0), (0, 3)):
        found[f"decay {start} {factor}"] = (
            ExponentialLengthDecay(start, factor, 4, frozenset([2, 9])),
            theirs.ExponentialDecayLengthPenalty((start, factor), [2, 9], 4),
        )
    for ratio, bias, key in ((0.25, 2.0, 15485863), (0.5, 0.1, 7), (0.01, 9.0, 2**40 + 1)):
        found[f"watermark {ratio}"] = (
            Watermark(bias, ratio, key),
            theirs.WatermarkLogitsProcessor(V, "cpu", ratio, bias, key),
        )
    for value in (0.01, 0.7, 3.0):
        found[f"temperature {value}"] = (Temperature(value), theirs.TemperatureLogitsWarper(value))
    for keep in KEEP:
        for k in (1, 2, 5, V, V + 1, 1000):
            found[f"top-k {k} {keep}"] = (TopK(k, keep), theirs.TopKLogitsWarper(k, min_tokens_to_keep=keep))
        for p in P:
            found[f"top-p {p} {keep}"] = (TopP(p, keep), theirs.TopPLogitsWarper(p, min_tokens_to_keep=keep))
            found[f"min-p {p} {keep}"] = (MinP(p, keep), theirs.MinPLogitsWarper(p, min_tokens_to_keep=keep))
            if 0 < p < 1:
                found[f"typical {p} {keep}"] = (
                    Typical(p, keep),
                    theirs.TypicalLogitsWarper(p, min_tokens_to_keep=keep),
                )
                found[f"epsilon {p} {keep}"] = (
                    EpsilonCutoff(p, keep),
                    theirs.EpsilonLogitsWarper(p, min_tokens_to_keep=keep),
                )
                found[f"eta {p} {keep}"] = (
                    EtaCutoff(p, keep),
                    theirs.EtaLogitsWarper(p, min_tokens_to_keep=keep),
                )
    return found


PAIRS = pairs()


@pytest.mark.parametrize("name", PAIRS)
def test_a_processor_gives_their_scores(name: str) -> None:
    our_own, their_own = PAIRS[name]
    for kind, logits in LOGITS.items():
        if name.startswith("eta") and kind == "rows of -inf":
            continue  # theirs raises
        for text, tokens in tokens_of_every_kind(len(logits)).items():
            if name.startswith("minimum") and tokens.size(1) < 4:
                continue  # shorter than its prompt cannot be
            before = logits.clone()
            scores = our_own(logits, tokens)
            assert torch.equal(scores, their_own(tokens, logits.clone())), (kind, text)
            assert torch.equal(logits, before), "the input was changed"
            assert scores.dtype == logits.dtype


def test_rows_that_are_ruled_out_throughout_stay_so() -> None:
    for our_own, _ in PAIRS.values():
        scores = our_own(LOGITS["rows of -inf"], tokens_of_every_kind(6)["varied"])
        assert (scores[[1, 4]] == NONE).all()


def test_half_precision_gives_their_scores_too() -> None:
    for name, (our_own, their_own) in PAIRS.items():
        if name.startswith(("logit bias", "bad words")):
            continue  # theirs returns float32
        for dtype in (torch.float16, torch.bfloat16):
            logits, tokens = LOGITS["ties and -inf"].to(dtype), tokens_of_every_kind(6)["varied"]
            assert torch.equal(our_own(logits, tokens), their_own(tokens, logits.clone())), (name, dtype)


PENALTIES: dict[str, Any] = {
    "logit_bias": BIASES,
    "repetition_penalty": 1.4,
    "no_repeat_ngram_size": 2,
    "bad_words": WORDS,
    "min_new_tokens": 20,
    "exponential_decay_length_penalty": (3, 1.3),
    "watermark": True,
}
CUT_OFFS: dict[str, Any] = {
    "temperature": 0.6,
    "top_k": 12,
    "top_p": 0.8,
    "min_p": 0.02,
    "typical_p": 0.9,
    "epsilon_cutoff": 0.03,
    "eta_cutoff": 0.2,
}
MODEL = reference(vocab_size=V)


def their_chain(ends: tuple[int, ...], prompt_length: int, **options: Any) -> Any:
    if "logit_bias" in options:
        options["sequence_bias"] = {(token,): bias for token, bias in options.pop("logit_bias").items()}
    if "bad_words" in options:
        options["bad_words_ids"] = options.pop("bad_words")
    if options.pop("watermark", False):
        options["watermarking_config"] = WatermarkingConfig()
    # Theirs has a default of 50 for top_k.
    config = GenerationConfig(
        **{"top_k": 0, "eos_token_id": list(ends) or None, "pad_token_id": 0, **options}
    )
    MODEL._prepare_special_tokens(config, device="cpu")
    return MODEL._get_logits_processor(config, input_ids_seq_length=prompt_length, device="cpu")


@pytest.mark.parametrize("ends", [(2,), (3, 2, 9)])
@pytest.mark.parametrize(
    ("strategy", "mode"),
    [
        (Greedy, {"do_sample": False}),
        (Beam, {"do_sample": False, "num_beams": 5}),
        (Sample, {"do_sample": True}),
        (BeamSample, {"do_sample": True, "num_beams": 5}),
    ],
)
def test_the_chain_has_their_order(
    strategy: type[Strategy], mode: dict[str, Any], ends: tuple[int, ...]
) -> None:
    """With every option given, with each alone, and with every two."""
    options = PENALTIES | CUT_OFFS if mode["do_sample"] else PENALTIES
    keep = len(ends) + 1 if "num_beams" in mode else 1
    for names in [tuple(options), *combinations(options, 1), *combinations(options, 2)]:
        some = {name: options[name] for name in names}
        ours = chain(strategy(**some), Request((1, 2, 3, 4), 9, end_tokens=frozenset(ends)), keep=keep)
        reference_chain = their_chain(ends, 4, **some, **mode)
        assert len(ours) == len(reference_chain) == len(names)
        for kind in ("plain", "ties and -inf", "log-probabilities", "rows of -inf"):
            if "eta_cutoff" in names and kind == "rows of -inf":
                continue  # theirs raises
            logits = LOGITS[kind]
            tokens = tokens_of_every_kind(len(logits))["varied"]
            scores = logits
            for processor in ours:
                scores = processor(scores, tokens)
            assert torch.equal(scores, reference_chain(tokens, logits.clone())), (names, kind)


@pytest.mark.parametrize(("top_p", "typical_p", "steps"), [(1.0, 1.0, 0), (0.999999, 0.999999, 2)])
def test_options_at_their_neutral_value_add_no_step(top_p: float, typical_p: float, steps: int) -> None:
    options = {"top_p": top_p, "typical_p": typical_p, "temperature": 1.0, "repetition_penalty": 1.0}
    assert len(chain(Sample(**options), Request((1, 2, 3, 4), 9))) == steps
    assert len(their_chain((), 4, do_sample=True, **options)) == steps


@pytest.mark.parametrize("once", [False, True])
@pytest.mark.parametrize(("ratio", "key"), [(0.25, 15485863), (0.5, 11)])
def test_the_detector_finds_what_theirs_finds(ratio: float, key: int, once: bool) -> None:
    settings = {"greenlist_ratio": ratio, "hashing_key": key, "bias": 2.0, "context_width": 1}
    their_own = WatermarkDetector(MODEL.config, "cpu", {**settings, "seeding_scheme": "lefthash"}, once)
    their_own.bos_token_id = V  # none; theirs leaves out a first token that is this
    our_own = OurDetector(V, ratio, key, count_repeats=not once)
    chance = torch.Generator().manual_seed(3)
    for n in (2, 17, 200):
        tokens = torch.randint(V, (1, n), generator=chance)
        theirs_found, found = their_own(tokens, return_dict=True), our_own(tokens[0].tolist())
        assert found.n_scored == theirs_found.num_tokens_scored
        assert found.n_green == theirs_found.num_green_tokens
        assert found.green_fraction == theirs_found.green_fraction
        assert found.z == pytest.approx(float(theirs_found.z_score[0]), rel=1e-12)
        # Their p_value is the normal distribution's, ours the binomial's.


def test_their_detector_knows_our_mark() -> None:
    tokens = [3]
    while len(tokens) < 60:
        marked = Watermark(bias=4.0)(LOGITS["flat"][:1], torch.tensor([tokens]))
        tokens.append(int(marked.argmax()))
    detector = WatermarkDetector(MODEL.config, "cpu", WatermarkingConfig())
    detector.bos_token_id = V
    assert detector(torch.tensor([tokens])).tolist() == [True]

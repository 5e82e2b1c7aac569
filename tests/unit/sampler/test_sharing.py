"""One model for several threads, copies, workers of their own, and what Ctrl-C leaves behind."""

from __future__ import annotations

import copy
import pickle
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from types import FrameType
from typing import Any

import pytest
import torch
from fakes import tiny_gpt2

import minigpt
from minigpt import GPT2
from minigpt.sampler import Beam, DiverseBeam, Greedy, PromptLookup, Sample, Strategy, generate, stream
from minigpt.sampler.grammar import Grammar

PROMPTS = [[5, 7, 9], [2], [11, 3, 3, 3, 8], [1, 2, 1, 2]]
LETTERS = [bytes([byte]) for byte in b"abcdefghijklmnopqrstuvw"]  # of the tiny model's 23 tokens
LIMITS: dict[str, Any] = {"max_new_tokens": 12, "end_tokens": []}


def regex() -> Grammar:
    return Grammar("regex", "([a-m][n-w]|k)*", LETTERS)


STRATEGIES: dict[str, Callable[[], Strategy]] = {
    "greedy": Greedy,
    "sample": lambda: Sample(top_p=0.9, seed=3, num_return_sequences=2, mirostat_tau=3.0),
    "beam": lambda: Beam(num_beams=3, num_return_sequences=2),
    "diverse": lambda: DiverseBeam(num_beams=4, num_beam_groups=2),
    "drafts": lambda: PromptLookup(do_sample=True, seed=1),
    "regex": lambda: Sample(seed=5, regex=regex()),
}


def texts(model: GPT2, strategy: Strategy, prompts: list[list[int]] = PROMPTS) -> list[list[int]]:
    return [text.tokens for group in generate(model, prompts, strategy, **LIMITS) for text in group]


# ------------------------------------------------------------------------------ threads


@contextmanager
def switching_often() -> Iterator[None]:
    """Lets threads take turns within what they do."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)


@pytest.mark.parametrize("name", STRATEGIES)
def test_threads_that_share_a_model_and_a_strategy_get_the_texts_of_one(name: str) -> None:
    model, strategy = tiny_gpt2(), STRATEGIES[name]()
    alone = [texts(model, strategy, [prompt]) for prompt in PROMPTS]
    together = threading.Barrier(len(PROMPTS))

    def work(prompt: list[int]) -> list[list[list[int]]]:
        together.wait()
        return [texts(model, strategy, [prompt]) for _ in range(5)]

    with ThreadPoolExecutor(len(PROMPTS)) as pool, switching_often():
        found = list(pool.map(work, PROMPTS))
    assert found == [[text] * 5 for text in alone]


def test_threads_may_forget_what_others_look_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A grammar keeps few parsers: here one alone, so that every thread takes those of the others away."""
    monkeypatch.setattr("minigpt.sampler.grammar.REMEMBERED", 1)
    grammar = regex()
    sequences = [[10], [0, 13], [10, 10], [10, 1, 14]]
    expected = [grammar.mask(tokens).tolist() for tokens in sequences]

    def work(tokens: list[int]) -> list[list[bool]]:
        return [grammar.mask(tokens).tolist() for _ in range(100)]

    with ThreadPoolExecutor(4) as pool, switching_often():
        assert list(pool.map(work, sequences)) == [[mask] * 100 for mask in expected]


def test_two_streams_take_turns() -> None:
    model = tiny_gpt2()
    strategies = [Sample(seed=1), Greedy()]
    expected = [
        texts(model, strategy, [prompt])[0] for strategy, prompt in zip(strategies, PROMPTS, strict=False)
    ]
    streams = [
        stream(model, prompt, strategy, **LIMITS)
        for strategy, prompt in zip(strategies, PROMPTS, strict=False)
    ]
    assert [list(column) for column in zip(*zip(*streams, strict=True), strict=True)] == expected


# ------------------------------------------------------------------------------ copies and workers


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_copies_give_the_same_texts(name: str, copied: Callable[[Any], Any]) -> None:
    model, strategy = tiny_gpt2(), STRATEGIES[name]()
    expected = texts(model, strategy)
    assert texts(copied(model), copied(strategy)) == expected
    assert texts(model, strategy) == expected


def test_a_model_may_be_copied_between_two_tokens() -> None:
    model = tiny_gpt2()
    expected = texts(model, Greedy(), [[5]])[0]
    found, copies = [], []
    for token in stream(model, [5], Greedy(), **LIMITS):
        found.append(token)
        copies.append(copy.deepcopy(model))
    assert found == expected
    assert texts(copies[3], Greedy(), [[5]]) == [expected]


def test_a_spawned_worker_gets_model_tokenizer_and_strategy() -> None:
    model, tokenizer = minigpt.load()
    grammar = Grammar("regex", " [a-z ]{9,}", tokenizer.token_bytes())
    ask = partial(
        minigpt.complete,
        model,
        tokenizer,
        "Once upon a time",
        Sample(seed=2, regex=grammar),
        max_new_tokens=9,
    )
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        assert pool.submit(ask).result(timeout=100) == ask()


FORK = """
import os, sys, torch, minigpt
from minigpt.sampler import Sample
model, tokenizer = minigpt.load()
ask = lambda: minigpt.complete(model, tokenizer, "Once upon a time", Sample(seed=2), max_new_tokens=9).text
torch.set_num_threads(2)
expected = ask()  # torch's threads have worked
child = os.fork()
if not child:
    torch.set_num_threads(1)
    os._exit(0 if ask() == expected else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(
    sys.platform != "linux", reason="needs Linux: elsewhere a process of threads may not be forked"
)
def test_a_forked_worker_computes_with_one_thread() -> None:
    result = subprocess.run([sys.executable, "-c", FORK], timeout=100, capture_output=True)
    assert result.returncode == 0, result.stderr.decode()


# ------------------------------------------------------------------------------ Ctrl-C


class Interruption:
    """Raises KeyboardInterrupt at the n-th call of a Python function of ours or of torch's; counts them."""

    def __init__(self, at: int | None = None) -> None:
        self.at, self.calls = at, 0

    def __call__(self, frame: FrameType, event: str, argument: object) -> None:
        if event == "call":
            self.calls += 1
            if self.calls == self.at:
                raise KeyboardInterrupt

    def during(self, work: Callable[[], object]) -> None:
        sys.setprofile(self)
        try:
            work()
        finally:
            sys.setprofile(None)


# Python itself drops an interrupt, with this warning, that strikes while a generator is thrown away.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", STRATEGIES)
def test_an_interrupt_at_any_point_leaves_all_as_it_was(name: str, training: bool) -> None:
    model, strategy = tiny_gpt2(resid_pdrop=0.2).train(training), STRATEGIES[name]()
    expected = texts(model, strategy)
    whole = Interruption()
    whole.during(lambda: texts(model, strategy))
    points, struck = random.Random(name).sample(range(1, whole.calls), 20), 0
    for at in [*points, whole.calls - 1]:
        try:
            Interruption(at).during(lambda: texts(model, strategy))
        except KeyboardInterrupt:
            struck += 1
        assert all(module.training is training for module in model.modules()), at
        assert not torch.is_inference_mode_enabled()
        assert torch.is_grad_enabled()
    assert struck > len(points) / 2
    assert texts(model, strategy) == expected
    model.loss(torch.tensor([[1, 2, 3]])).backward()  # and it can be trained

"""Who takes part in the benchmark: minigpt with each kind of weights, and the peers that are installed.

A side continues prompts of one length greedily or with beams, to an exact length; all have the same weights. Each
runs in a process of its own, and waits while others run: in one process, the threads that one library keeps for its
next call take the cores from the others.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch
import transformers
from transformers import GPT2LMHeadModel

from minigpt import GPT2
from minigpt.sampler import Beam, Greedy, generate

Prompts = list[list[int]]
Side = Callable[[Prompts, int, int], Prompts]  # prompts, number of new tokens, number of beams


def minigpt_side(directory: Path, kind: str) -> Side:
    model = GPT2.from_pretrained(directory, quantize=None if kind == "float32" else kind)

    def side(prompts: Prompts, n_new: int, beams: int) -> Prompts:
        strategy = Greedy() if beams == 1 else Beam(num_beams=beams)
        texts = generate(model, prompts, strategy, max_new_tokens=n_new, end_tokens=[])
        return [best.tokens for best, *_ in texts]

    return side


def transformers_side(directory: Path, kind: str) -> Side:
    model = GPT2LMHeadModel.from_pretrained(directory, dtype=torch.float32).eval()

    def side(prompts: Prompts, n_new: int, beams: int) -> Prompts:
        tokens = torch.tensor(prompts)
        written = model.generate(
            tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=n_new, num_beams=beams,
            do_sample=False, eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
        found: Prompts = written[:, tokens.size(1) :].tolist()
        return found

    return side


def ctranslate2_side(directory: Path, kind: str) -> Side:
    import ctranslate2

    made = directory / f"ctranslate2-{kind}"
    n_words = GPT2.from_pretrained(directory).config.vocab_size
    words = {f"t{i}": i for i in range(n_words - 1)} | {"<|endoftext|>": n_words - 1}
    (directory / "vocab.json").write_text(json.dumps(words))  # which its converter asks for
    (directory / "merges.txt").write_text("#version: 0.2\n")
    ctranslate2.converters.TransformersConverter(str(directory)).convert(str(made), quantization=kind)
    generator = ctranslate2.Generator(
        str(made), compute_type=kind, inter_threads=1, intra_threads=torch.get_num_threads()
    )

    def side(prompts: Prompts, n_new: int, beams: int) -> Prompts:
        results = generator.generate_batch(
            [[f"t{token}" for token in prompt] for prompt in prompts], beam_size=beams, sampling_topk=1,
            max_length=n_new, min_length=n_new, include_prompt_in_result=False,
        )  # fmt: skip
        return [result.sequences_ids[0] for result in results]

    return side


def onnxruntime_side(directory: Path, kind: str) -> Side:
    """The bare loop around a session: each step's outputs are the next one's inputs, and nothing is copied."""
    import numpy as np
    import onnxruntime
    from onnx_gpt2 import export
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model, path = GPT2.from_pretrained(directory), directory / "model.onnx"
    export(model, path)
    if kind == "int8":
        plain, path = path, directory / "model-int8.onnx"
        quantize_dynamic(
            plain, path, op_types_to_quantize=["MatMul"], per_channel=True, weight_type=QuantType.QInt8
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    inputs, outputs = (
        [value.name for value in values] for values in (session.get_inputs(), session.get_outputs())
    )

    def side(prompts: Prompts, n_new: int, beams: int) -> Prompts:
        value = onnxruntime.OrtValue.ortvalue_from_numpy
        nothing = value(np.zeros((len(prompts), model.config.n_head, 0, model.config.head_dim), np.float32))
        state = [value(np.array(prompts)), *[nothing] * (len(inputs) - 1)]
        steps = []
        for _ in range(n_new):
            state = session.run_with_ort_values(outputs, dict(zip(inputs, state, strict=True)))
            steps.append(state[0].numpy())
        found: Prompts = np.concatenate(steps, 1).tolist()
        return found

    return side


def llama_side(directory: Path, kind: str) -> Side:
    from gguf_gpt2 import export
    from llama_greedy import LlamaCpp

    path = directory / f"model-{kind}.gguf"
    export(GPT2.from_pretrained(directory), path, kind)
    llama = LlamaCpp(path, torch.get_num_threads())

    def side(prompts: Prompts, n_new: int, beams: int) -> Prompts:
        return llama(prompts, n_new)

    return side


# name -> (maker, kind of weights, the package it needs)
SIDES: dict[str, tuple[Callable[[Path, str], Side], str, str]] = {
    "transformers float32": (transformers_side, "float32", "transformers"),
    "minigpt float32": (minigpt_side, "float32", "torch"),
    "minigpt float16": (minigpt_side, "float16", "torch"),
    "minigpt int8": (minigpt_side, "int8", "torch"),
    "ctranslate2 float32": (ctranslate2_side, "float32", "ctranslate2"),
    "ctranslate2 int8": (ctranslate2_side, "int8", "ctranslate2"),
    "onnxruntime float32": (onnxruntime_side, "float32", "onnxruntime"),
    "onnxruntime int8": (onnxruntime_side, "int8", "onnxruntime"),
    "llama.cpp float32": (llama_side, "float32", "llama_cpp"),
    "llama.cpp int8": (llama_side, "int8", "llama_cpp"),
}
DISTRIBUTIONS = {"llama_cpp": "llama-cpp-python"}  # packages that PyPI has under another name


def present() -> list[str]:
    """The sides whose package is installed."""
    # one runs what the other writes
    needed = {"onnxruntime": ("onnxruntime", "onnx"), "llama_cpp": ("llama_cpp", "gguf")}
    return [
        name
        for name, (_, _, package) in SIDES.items()
        if all(map(find_spec, needed.get(package, (package,))))
    ]


def does_beams(name: str) -> bool:
    """Whether a side has beam search: ONNX Runtime runs a graph and nothing more, llama.cpp dropped its own."""
    return not name.startswith(("onnxruntime", "llama.cpp"))


class Crashed(Exception):
    """A side's process ended before it answered."""

    def __init__(self, side: str, exit_code: int) -> None:
        super().__init__(f"{side} crashed (exit code {exit_code})")
        self.side = side


class Worker:
    """A side in a process of its own.

    Raises:
        Crashed: the process ended, then or in a later call.
    """

    def __init__(self, name: str, directory: Path) -> None:
        self._name = name
        command = [sys.executable, __file__, name, str(directory), str(torch.get_num_threads())]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._answer()  # "ready"; the next one may write its form of the weights beside it

    def __call__(self, prompts: Prompts, n_new: int, beams: int) -> tuple[float, Prompts]:
        """Seconds, and what was written."""
        assert self._process.stdin
        with suppress(BrokenPipeError):  # there is no answer then
            print(json.dumps([prompts, n_new, beams]), file=self._process.stdin, flush=True)
        seconds, texts = json.loads(self._answer())
        return seconds, texts

    def _answer(self) -> str:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise Crashed(self._name, self._process.wait())
        return line

    def close(self) -> None:
        self._process.communicate()  # it ends with its input


def clock() -> Callable[[], float]:
    """With one thread, the processor's time, so that other work on the machine does not count."""
    return time.process_time if torch.get_num_threads() == 1 else time.perf_counter


def serve(name: str, directory: Path) -> None:
    """What a worker does: measures one run for each line of the input."""
    transformers.logging.set_verbosity_error()
    maker, kind, _ = SIDES[name]
    side, now = maker(directory, kind), clock()
    print("ready", flush=True)
    for line in sys.stdin:
        start = now()
        texts = side(*json.loads(line))
        print(json.dumps([now() - start, texts]), flush=True)


def versions() -> str:
    packages = dict.fromkeys(package for _, _, package in SIDES.values())
    names = {package: DISTRIBUTIONS.get(package, package) for package in packages}
    return ", ".join(
        f"{name} {version(name)}" if find_spec(package) else f"{name} not installed"
        for package, name in names.items()
    )


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[3]))
    serve(sys.argv[1], Path(sys.argv[2]))

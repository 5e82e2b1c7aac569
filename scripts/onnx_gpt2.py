"""GPT-2 as an ONNX graph with its cache as inputs and outputs, for `bench.py` to run by ONNX Runtime.

The graph reads tokens (B, T) after a past of any length and returns the likeliest next token of each row.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from minigpt import GPT2


class Graph:
    """Nodes and constants, in the order in which they are added."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def __call__(self, op: str, *inputs: str, n: int = 1, **attributes: Any) -> Any:
        """Adds a node; the name of its output, or the names of its `n`."""
        outputs = [f"{op}{len(self.nodes)}_{i}" for i in range(n)]
        self.nodes.append(helper.make_node(op, inputs, outputs, **attributes))
        return outputs[0] if n == 1 else outputs

    def constant(self, value: Any, dtype: Any = np.int64) -> str:
        name = f"constant{len(self.constants)}"
        array = np.ascontiguousarray(value, dtype)
        self.constants.append(numpy_helper.from_array(array, name))
        return name


class Decoder:
    """Builds the graph of one model."""

    def __init__(self, model: GPT2) -> None:
        self.graph, self.config = Graph(), model.config
        self.weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}

    def weight(self, name: str) -> str:
        return self.graph.constant(self.weights[name], np.float32)

    def norm(self, x: str, name: str) -> str:
        scale, bias = self.weight(f"{name}.weight"), self.weight(f"{name}.bias")
        return self.graph("LayerNormalization", x, scale, bias, epsilon=self.config.layer_norm_epsilon)

    def linear(self, x: str, name: str) -> str:
        return self.graph(
            "Add", self.graph("MatMul", x, self.weight(f"{name}.weight")), self.weight(f"{name}.bias")
        )

    def positions(self, tokens: str, past: str) -> tuple[str, str]:
        """The positions of the new tokens, and what is added to their scores: 0, or minus a lot for later tokens."""
        g = self.graph
        zero, one = g.constant(0), g.constant(1)
        n_past = g("Gather", g("Shape", past), g.constant(2))
        n_seen = g("Add", n_past, g("Gather", g("Shape", tokens), one))
        new = g("Range", n_past, n_seen, one)
        later = g("Greater", g("Range", zero, n_seen, one), g("Unsqueeze", new, g.constant([1])))
        mask = g("Where", later, g.constant(-1e9, np.float32), g.constant(0, np.float32))
        return new, mask

    def attention(self, h: str, layer: int, past: Sequence[str], mask: str) -> tuple[str, list[str]]:
        g, heads, name = self.graph, self.config.n_head, f"blocks.{layer}.attn"
        parts = g("Split", self.linear(h, f"{name}.qkv"), n=3, axis=2, num_outputs=3)
        shape = g.constant([0, 0, heads, -1])
        q, k, v = (g("Transpose", g("Reshape", part, shape), perm=[0, 2, 1, 3]) for part in parts)
        k, v = g("Concat", past[0], k, axis=2), g("Concat", past[1], v, axis=2)
        scale = g.constant(self.config.attention_scale(layer), np.float32)
        scores = g("MatMul", g("Mul", q, scale), g("Transpose", k, perm=[0, 1, 3, 2]))
        mixed = g("MatMul", g("Softmax", g("Add", scores, mask), axis=-1), v)
        rows = g("Reshape", g("Transpose", mixed, perm=[0, 2, 1, 3]), g.constant([0, 0, -1]))
        return self.linear(rows, f"{name}.out"), [k, v]

    def build(self) -> Any:
        g, n_layer = self.graph, self.config.n_layer
        past = [[f"past_{kind}{layer}" for kind in "kv"] for layer in range(n_layer)]
        positions, mask = self.positions("tokens", past[0][0])
        x = g("Gather", self.weight("token_embedding.weight"), "tokens")
        x = g("Add", x, g("Gather", self.weight("position_embedding.weight"), positions))
        present = []
        for layer in range(n_layer):
            name = f"blocks.{layer}"
            mixed, kv = self.attention(self.norm(x, f"{name}.attn_norm"), layer, past[layer], mask)
            x = g("Add", x, mixed)
            hidden = g(
                "Gelu", self.linear(self.norm(x, f"{name}.mlp_norm"), f"{name}.mlp.up"), approximate="tanh"
            )
            x = g("Add", x, self.linear(hidden, f"{name}.mlp.down"))
            present += kv
        last = self.norm(g("Gather", x, g.constant([-1]), axis=1), "final_norm")
        head = g.constant(self.weights["token_embedding.weight"].T, np.float32)
        chosen = g("ArgMax", g("MatMul", last, head), axis=-1, keepdims=0)
        return self._model([name for pair in past for name in pair], [chosen, *present])

    def _model(self, past: list[str], outputs: list[str]) -> Any:
        cached = ["B", self.config.n_head, None, self.config.head_dim]
        inputs = [helper.make_tensor_value_info("tokens", TensorProto.INT64, ["B", "T"])]
        inputs += [helper.make_tensor_value_info(name, TensorProto.FLOAT, cached) for name in past]
        results = [helper.make_tensor_value_info(outputs[0], TensorProto.INT64, ["B", 1])]
        results += [helper.make_tensor_value_info(name, TensorProto.FLOAT, cached) for name in outputs[1:]]
        graph = helper.make_graph(self.graph.nodes, "gpt2", inputs, results, self.graph.constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def export(model: GPT2, path: Path) -> None:
    """Writes the graph of a model with tied embeddings and tanh-GELU, as GPT-2's are."""
    onnx.save(Decoder(model).build(), path)

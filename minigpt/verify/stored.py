"""A model's files as they lie on the disk, read by their own names: nothing here knows how minigpt loads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from minigpt.json_files import read_object

# What config.json may leave out, with GPT-2's own values.
DEFAULTS: dict[str, Any] = {
    "vocab_size": 50257,
    "n_positions": 1024,
    "n_embd": 768,
    "n_layer": 12,
    "n_head": 12,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "tie_word_embeddings": True,
}
ALIASES = {
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_positions": "max_position_embeddings",
}
LINEAR = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
ANY_LAYER_NORM = "h.0.ln_1.weight"  # every GPT-2 has it, so what stands before it is the prefix of all names


class StoredModel:
    """The tensors of a directory by GPT-2's names, as "h.3.attn.c_attn.weight", and its config.json.

    Tensors are read when they are asked for, so that a large model is never in memory a second time.

    Raises:
        ValueError: no file has a tensor called h.0.ln_1.weight, so this is no GPT-2.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.files = sorted(directory.glob("model*.safetensors"))
        index = directory / "model.safetensors.index.json"
        if (directory / "model.safetensors").is_file():
            self.files = [directory / "model.safetensors"]
        elif index.is_file():
            shards = read_object(index)["weight_map"].values()
            self.files = sorted({directory / shard for shard in shards})
        self._places: dict[str, tuple[Any, str]] = {}
        # Opening reads no tensor yet.
        opened: list[Any] = [safe_open(file, framework="pt") for file in self.files]
        stored = {name: file for file in opened for name in file.keys()}  # noqa: SIM118 (a file, not a dict)
        prefixes = [name.removesuffix(ANY_LAYER_NORM) for name in stored if name.endswith(ANY_LAYER_NORM)]
        if not prefixes:
            raise ValueError(f"{directory}: no tensor is called {ANY_LAYER_NORM}: is it a GPT-2?")
        for name, file in stored.items():
            if "lm_head." in name:
                self._places["lm_head." + name.rpartition(".")[2]] = (file, name)
            elif name.startswith(prefixes[0]):
                self._places[name.removeprefix(prefixes[0])] = (file, name)
        self._config = read_object(directory / "config.json")

    def field(self, name: str) -> Any:
        """A field of config.json, under its own name or its alias, or GPT-2's value."""
        for spelling in (name, ALIASES.get(name, name)):
            if self._config.get(spelling) is not None:
                return self._config[spelling]
        return DEFAULTS[name]

    @property
    def quantization(self) -> str | None:
        """The kind of quantized weights that the file holds, as minigpt's own config.json says it."""
        kind: str | None = (self._config.get("quantization_config") or {}).get("weights")
        return kind

    def inner(self) -> int:
        """The width inside the mlp."""
        inner: int = self._config.get("n_inner") or 4 * self.field("n_embd")
        return inner

    def names(self) -> list[str]:
        return list(self._places)

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def tensor(self, name: str) -> Tensor:
        """A tensor as it is stored, in its own dtype; of a quantized file, the matrix that it stands for.

        Raises:
            ValueError: there is none of that name.
        """
        file, stored_name = self._place(name)
        tensor: Tensor = file.get_tensor(stored_name)
        if not self.quantization or tensor.dim() < 2 or name == "wpe.weight":
            return tensor
        tensor = tensor.float()  # (out, in)
        if (scale := f"{name}_scale") in self:
            inputs = name.replace("weight", "input_scale")
            tensor = tensor * self.tensor(scale)[:, None] * self.tensor(inputs)
        return tensor.mT if name.endswith(LINEAR) else tensor

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape that `tensor` has, without reading it."""
        file, stored_name = self._place(name)
        shape = tuple(file.get_slice(stored_name).get_shape())
        return shape[::-1] if self.quantization and name.endswith(LINEAR) else shape

    def _place(self, name: str) -> tuple[Any, str]:
        if name not in self._places:
            raise ValueError(f"{self.directory}: the weights lack {name}")
        return self._places[name]

    def embedding(self) -> Tensor:
        """The token embedding; a tied model may keep it under the head's name."""
        return self.tensor("wte.weight" if "wte.weight" in self else "lm_head.weight")

    def head(self) -> Tensor:
        """What the last stream is multiplied by: the embedding, unless the file has another head."""
        return self.tensor("lm_head.weight") if self.is_untied() else self.embedding()

    def is_untied(self) -> bool:
        """Whether config.json says so, or both of the pair are stored and differ."""
        if not self.field("tie_word_embeddings"):
            return True
        pair = ("wte.weight", "lm_head.weight")
        return all(name in self for name in pair) and not torch.equal(*map(self.tensor, pair))

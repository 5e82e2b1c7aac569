"""The hyperparameters of a GPT-2, under the names that its own config.json uses."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from minigpt.json_files import read_object, shown

ACTIVATIONS = ("gelu_new", "gelu", "gelu_pytorch_tanh", "gelu_fast", "quick_gelu", "relu", "silu", "tanh")

SWITCHES = (
    "scale_attn_weights",
    "scale_attn_by_inverse_layer_idx",
    "reorder_and_upcast_attn",
    "tie_word_embeddings",
)

# What no machine holds: refused before anything is reserved for it.
MOST_LAYERS, MOST_PARAMETERS = 10_000, 10**13
MAX_COUNT = 2**31 - 1  # of any other count; ids are 32-bit numbers in many a file

# Other names that config files in the wild use for the same numbers.
ALIASES = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
}

# Fields that would change the mathematics in a way that this model does not have, with their harmless value.
REFUSED = {"add_cross_attention": False, "pruned_heads": {}, "quantization_config": None}
OWN_METHOD = "minigpt"  # the quant_method of a quantization_config that is read, by `minigpt.quantization`


@dataclass(frozen=True)
class GPT2Config:
    """The shape and the mathematics of one GPT-2; the defaults are those of the 124M model.

    Raises:
        ValueError: a number is out of its range, or the activation is not one of `ACTIVATIONS`.

    Source: Radford et al. 2019; field names and defaults as in transformers' GPT2Config.

    >>> GPT2Config(n_layer=2, n_head=4, n_embd=64).head_dim
    16
    """

    vocab_size: int = 50257
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    n_inner: int | None = None  # width inside the feed-forward; None is 4 * n_embd
    activation_function: str = "gelu_new"
    resid_pdrop: float = 0.1  # the three dropouts act in training only
    embd_pdrop: float = 0.1
    attn_pdrop: float = 0.1
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    reorder_and_upcast_attn: bool = False
    tie_word_embeddings: bool = True
    bos_token_id: int | None = 50256
    eos_token_id: int | tuple[int, ...] | None = 50256

    def __post_init__(self) -> None:
        for name in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head"):
            _check_count(name, getattr(self, name))
        _require(self.n_layer <= MOST_LAYERS, "n_layer", f"at most {MOST_LAYERS:,}", self.n_layer)
        if self.n_inner is not None:
            _check_count("n_inner", self.n_inner)
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd={self.n_embd} does not split over n_head={self.n_head} equal heads")
        if self.n_parameters > MOST_PARAMETERS:
            raise ValueError(
                f"n_embd={self.n_embd}, n_layer={self.n_layer}, vocab_size={self.vocab_size}, n_positions="
                f"{self.n_positions} make {self.n_parameters:,} parameters; at most {MOST_PARAMETERS:,} are read"
            )
        if self.activation_function not in ACTIVATIONS:
            raise ValueError(
                f"activation_function={shown(self.activation_function)} is not supported; "
                f"there are {', '.join(ACTIVATIONS)}"
            )
        for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop"):
            value = getattr(self, name)
            _require(_is_number(value) and 0 <= value < 1, name, "at least 0 and below 1", value)
        for name in ("layer_norm_epsilon", "initializer_range"):
            value = getattr(self, name)
            _require(_is_number(value) and value >= 0, name, "a number of at least 0", value)
        for name in SWITCHES:
            _require(isinstance(getattr(self, name), bool), name, "true or false", getattr(self, name))
        _require(
            self.bos_token_id is None or _is_id(self.bos_token_id), "bos_token_id", "an id", self.bos_token_id
        )
        if isinstance(self.eos_token_id, list):  # as config.json writes several
            object.__setattr__(self, "eos_token_id", tuple(self.eos_token_id))
        _require(all(map(_is_id, self._ends)), "eos_token_id", "an id or a list of ids", self.eos_token_id)

    @property
    def head_dim(self) -> int:
        return self.n_embd // self.n_head

    @property
    def mlp_dim(self) -> int:
        return self.n_inner or 4 * self.n_embd

    @property
    def n_parameters(self) -> int:
        """How many numbers such a model learns; a tied head counts with the embedding.

        >>> GPT2Config().n_parameters
        124439808
        """
        d = self.n_embd
        head = 0 if self.tie_word_embeddings else self.vocab_size * d
        return (self.vocab_size + self.n_positions) * d + head + self.n_layer * self.block_parameters + 2 * d

    @property
    def block_parameters(self) -> int:
        """How many of them each block has: attention, feed-forward, two norms."""
        d, inner = self.n_embd, self.mlp_dim
        return 4 * d * (d + 1) + (2 * inner * d + inner + d) + 4 * d

    @property
    def end_tokens(self) -> frozenset[int]:
        """Every id after which a text ends; empty if there is none."""
        return frozenset(self._ends)

    @property
    def _ends(self) -> tuple[int, ...]:
        if self.eos_token_id is None:
            return ()
        return self.eos_token_id if isinstance(self.eos_token_id, tuple) else (self.eos_token_id,)

    def attention_scale(self, layer: int) -> float:
        """What the scores of layer `layer` (0 is the first) are multiplied by before the softmax."""
        scale: float = self.head_dim**-0.5 if self.scale_attn_weights else 1.0
        return scale / (layer + 1) if self.scale_attn_by_inverse_layer_idx else scale

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> GPT2Config:
        """Reads the contents of a config.json; what it leaves out has GPT-2's defaults.

        Raises:
            ValueError: the file describes another architecture, or something that would change the
                mathematics and is not implemented; the message names the field.

        >>> GPT2Config.from_dict({"model_type": "gpt2", "n_embd": 1024, "n_layer": 24, "n_head": 16}).mlp_dim
        4096
        """
        for alias, name in ALIASES.items():
            if alias in values and values.get(name, values[alias]) != values[alias]:
                raise ValueError(
                    f"{alias}={shown(values[alias])} and {name}={shown(values[name])} contradict each other"
                )
        values = {ALIASES.get(name, name): value for name, value in values.items()}
        values = {name: value for name, value in values.items() if value is not None or name not in SWITCHES}
        _check_supported(values)
        known = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in known})

    @classmethod
    def load(cls, directory: Path) -> GPT2Config:
        """Reads config.json, with the end tokens of generation_config.json where that file names them.

        That file's sampling defaults are left alone: what shapes the text is what the caller asks for.

        Raises:
            ValueError: as for `from_dict`, or a file is not JSON.
        """
        values, generation = read_object(directory / "config.json"), directory / "generation_config.json"
        if generation.is_file() and "eos_token_id" in (own := read_object(generation)):
            values["eos_token_id"] = own["eos_token_id"]
        try:
            return cls.from_dict(values)
        except ValueError as error:
            raise ValueError(f"{directory}: {error}") from None

    def save(self, directory: Path, dtype: str, quantization: str | None = None) -> None:
        """Writes config.json and generation_config.json.

        Args:
            directory: where to.
            dtype: that of the weights, as "float32".
            quantization: which of `minigpt.quantization`'s kinds the linear layers' weights are of, if any.
        """
        ends = {"bos_token_id": self.bos_token_id, "eos_token_id": self.eos_token_id}
        # transformers 5 reads `dtype`, everything older `torch_dtype`.
        values = {**self.to_dict(), "dtype": dtype, "torch_dtype": dtype}
        if quantization:
            values["quantization_config"] = {"quant_method": OWN_METHOD, "weights": quantization}
        _write_json(directory / "config.json", values)
        _write_json(directory / "generation_config.json", ends)

    def to_dict(self) -> dict[str, Any]:
        """The contents of a config.json that transformers, vLLM and llama.cpp's converter read."""
        names = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}
        # n_ctx is GPT-2's old name for n_positions; converters still ask for it.
        return {**names, **asdict(self), "n_ctx": self.n_positions}


def quantization_of(values: Mapping[str, Any]) -> str | None:
    """Which kind of quantized weights a config.json of ours says that its model has, or None."""
    entry = values.get("quantization_config")
    if not isinstance(entry, dict) or entry.get("quant_method") != OWN_METHOD:
        return None
    return str(entry.get("weights"))


def stored_quantization(directory: Path) -> str | None:
    """The same of a directory's config.json."""
    return quantization_of(read_object(directory / "config.json"))


def _require(holds: bool, name: str, limit: str, value: Any) -> None:
    if not holds:
        raise ValueError(f"{name} must be {limit}, got {shown(value)}")


def _check_count(name: str, value: Any) -> None:
    _require(_is_whole(value) and value >= 1, name, "a whole number of at least 1", value)
    _require(value <= MAX_COUNT, name, f"at most {MAX_COUNT:,}", value)


def _is_id(value: Any) -> bool:
    return _is_whole(value) and 0 <= value <= MAX_COUNT


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf


def _check_supported(values: Mapping[str, Any]) -> None:
    if "model_type" not in values:
        missing = [name for name in ("n_embd", "n_layer", "n_head") if name not in values]
        if missing:
            raise ValueError(
                f"config.json names no model_type and lacks {', '.join(missing)}: is it a GPT-2?"
            )
        warnings.warn("config.json names no model_type; reading it as gpt2", stacklevel=3)
    elif values["model_type"] != "gpt2":
        raise ValueError(
            f"model_type={shown(values['model_type'])} is not supported: minigpt reads gpt2 models only"
        )
    for name, harmless in REFUSED.items():
        if name == "quantization_config" and quantization_of(values):
            continue
        if values.get(name) and values[name] != harmless:
            raise ValueError(
                f"{name}={shown(values[name])} is not supported: it would change what the model computes"
            )


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


PUBLISHED = {
    "distilgpt2": GPT2Config(n_layer=6),
    "gpt2": GPT2Config(),
    "gpt2-medium": GPT2Config(n_embd=1024, n_layer=24, n_head=16),
    "gpt2-large": GPT2Config(n_embd=1280, n_layer=36, n_head=20),
    "gpt2-xl": GPT2Config(n_embd=1600, n_layer=48, n_head=25),
}

"""GPT-2's published tensors into our modules and back; the only file that knows both sets of names."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from minigpt.json_files import expect, field, parse, read_object, shown
from minigpt.kernels import WeightMemory
from minigpt.kernels.products import wants_output_major

NAMES = {  # checkpoint -> ours ("#" is the layer)
    "wte": "token_embedding",
    "wpe": "position_embedding",
    "h.#.ln_1": "blocks.#.attn_norm",
    "h.#.attn.c_attn": "blocks.#.attn.qkv",
    "h.#.attn.c_proj": "blocks.#.attn.out",
    "h.#.ln_2": "blocks.#.mlp_norm",
    "h.#.mlp.c_fc": "blocks.#.mlp.up",
    "h.#.mlp.c_proj": "blocks.#.mlp.down",
    "ln_f": "final_norm",
    "lm_head": "head",
}
THEIRS = {ours: theirs for theirs, ours in NAMES.items()}
EMBEDDING, HEAD = "token_embedding.weight", "head.weight"  # which GPT-2 ties

# What wrappers put before the names: DDP, torch.compile, transformers and models that hold a GPT-2.
# They compose in any order, so they are taken off one by one.
PREFIX = re.compile(r"^(_orig_mod|module|model|gpt|lm|transformer)\.")
STORED_MASK = re.compile(r"^h\.\d+\.attn\.(bias|masked_bias)$")  # the causal triangle, saved as a tensor
OTHER_HEAD = re.compile(r"^(score|classifier|v_head|multiple_choice_head)\.")
LONGEST_HEADER = 100_000_000  # bytes, as in safetensors
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
INTEGER_DTYPES = {"I8": torch.int8}  # of quantized models alone
LEAVES = ("weight", "bias", "weight_scale", "input_scale")  # the scales are of quantized models


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor lies, and what its file's header says of it."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    def read(self, into: Tensor) -> Tensor:
        """Reads the tensor, converted on the way: no second copy of it is ever in memory."""
        # Opened for each tensor, so that the pages of the file are let go of as soon as they are copied.
        with _open(self.file) as file:
            return into.copy_(file.get_tensor(self.name))


class SkipInitialisation(TorchFunctionMode):
    """While it is active, no tensor is filled with random numbers: it is going to be loaded.

    With `torch.device("meta")`, a module is built with shapes and no content. torch would "fill" such tensors
    by way of its compiler, whose import takes longer than all the rest of loading.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        if func is torch.nn.init.normal_:
            return (*args, *named.values())[0]  # the tensor, as it is
        return func(*args, **named)


class Checkpoint:
    """The tensors of a directory's model.safetensors, or of its shards, under our names.

    Opening reads headers only.

    Raises:
        ValueError: a file is damaged, or a tensor has no place in a GPT-2.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.tensors: dict[str, StoredTensor] = {}
        unknown, other_heads = [], []
        for stored in _headers(directory):
            name = _without_prefixes(stored.name)
            if STORED_MASK.match(name) and _is_mask(stored.shape):
                continue
            ours = to_ours(name)
            if OTHER_HEAD.match(name):
                other_heads.append(stored.name)
            elif ours is None:
                unknown.append(stored.name)
            elif ours in self.tensors:
                both = f"{self.tensors[ours].name} and {stored.name}"
                raise ValueError(f"{directory}: {both} are the same tensor of the model")
            else:
                self.tensors[ours] = stored
        if unknown:
            raise ValueError(f"{directory}: GPT-2 has no place for {_list(unknown)}")
        if other_heads:
            warnings.warn(
                f"{directory}: left out {_list(other_heads)}: not a language-modelling head", stacklevel=3
            )

    def tied_weights_differ(self) -> bool:
        """Whether the file holds both the embedding and a head, and they are not the same numbers."""
        pair = [self.tensors[name] for name in (EMBEDDING, HEAD) if name in self.tensors]
        if len(pair) < 2 or pair[0].shape != pair[1].shape:  # of two shapes, `fill` names the wrong one
            return len(pair) == 2
        return not torch.equal(*(twin.read(torch.empty(twin.shape, dtype=twin.dtype)) for twin in pair))

    def fill(self, model: nn.Module, dtype: torch.dtype | None, device: torch.device) -> None:
        """Puts every tensor into its place in a model that was built on "meta", one module after the other.

        Without a `dtype`: float32 on a CPU, the file's own elsewhere. What is not float32 in the model has its dtype
        from there: the quantized weights of a quantized one.

        Raises:
            ValueError: tensors are missing, or have other shapes; each is named.
        """
        state: dict[str, Tensor] = model.state_dict()
        tensors = dict(self.tensors)
        if HEAD not in state and HEAD in tensors:  # tied: either twin serves as both
            tensors.setdefault(EMBEDDING, tensors[HEAD])
            del tensors[HEAD]
        self._check(tensors, state)
        own = torch.float32 if device.type == "cpu" else tensors[EMBEDDING].dtype
        room = WeightMemory(device)
        for part, names in groupby(state, key=lambda name: name.rpartition(".")[0]):
            leaves = {
                name.rpartition(".")[2]: tensors[name].read(_place(name, state[name], dtype or own, room))
                for name in names
            }
            model.get_submodule(part).load_state_dict(leaves, assign=True)

    def _check(self, tensors: Mapping[str, StoredTensor], state: Mapping[str, Tensor]) -> None:
        missing = [to_theirs(name) for name in state if name not in tensors]
        if missing:
            raise ValueError(f"{self.directory}: the weights lack {_list(missing)}")
        extra = [tensors[name].name for name in tensors if name not in state]
        if extra:
            raise ValueError(f"{self.directory}: config.json leaves no place for {_list(extra)}")
        wrong = [
            f"{tensors[name].name} {tensors[name].shape} (config.json: {tuple(like.shape)})"
            for name, like in state.items()
            if tensors[name].shape != tuple(like.shape)
        ]
        if wrong:
            raise ValueError(f"{self.directory}: shapes differ from config.json's: {_list(wrong)}")
        for name, like in state.items():
            if tensors[name].dtype == torch.int8 != like.dtype:
                raise ValueError(
                    f"{tensors[name].file}: {tensors[name].name} is stored as I8; {', '.join(DTYPES)} are read"
                )


def _place(name: str, like: Tensor, dtype: torch.dtype, room: WeightMemory) -> Tensor:
    """Where one of the model's tensors goes, in the order in which this machine multiplies it fastest."""
    shape = tuple(like.shape)
    is_linear = name.startswith("blocks.") and len(shape) == 2
    if like.dtype != torch.float32 or not (is_linear or name in (EMBEDDING, HEAD)):
        kept = dtype if like.dtype == torch.float32 else like.dtype  # quantized weights keep their own
        return torch.empty(shape, dtype=kept, device=room.device)
    if is_linear and wants_output_major(shape, dtype, room.device):
        return room.reserve(shape[::-1], dtype).t()
    return room.reserve(shape, dtype)


def save(state: Mapping[str, Tensor], path: Path) -> None:
    """Writes tensors under GPT-2's names, as transformers does: the exact inverse of reading them.

    One after the other: of a model on a GPU, or sharded over processes, there is one tensor at a time in memory. If
    it is sharded, all other processes call `take_part_in_save` meanwhile.

    Raises:
        OSError: the disk is full, or the file cannot be written for another reason.
    """
    tensors = _in_order(state)
    try:
        with path.open("wb") as file:
            file.write(_new_header(tensors))
            for tensor in tensors.values():
                numbers = full_tensor(tensor).detach().cpu().contiguous()
                file.write(numbers.view(-1).view(torch.uint8).numpy().data)
    except OSError as error:
        raise OSError(f"{path} cannot be written ({error})") from None


def take_part_in_save(state: Mapping[str, Tensor]) -> None:
    """Takes part in `save` of a sharded model, which one process writes."""
    for tensor in _in_order(state).values():
        full_tensor(tensor)


def full_tensor(tensor: Tensor) -> Tensor:
    """A tensor with all its numbers in this process; if it is sharded, all processes must ask at the same time."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def _in_order(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under GPT-2's names, the dtype with the most bytes first, so that each lies at a multiple of its size."""
    named = {to_theirs(name): tensor for name, tensor in state.items()}
    return {name: named[name] for name in sorted(named, key=lambda name: (-named[name].itemsize, name))}


def _new_header(tensors: Mapping[str, Tensor]) -> bytes:
    """What a safetensors file begins with: the length of its JSON, and the JSON, filled up to whole words of 8 bytes.

    Source: https://github.com/huggingface/safetensors#format
    """
    names = {dtype: name for name, dtype in (DTYPES | INTEGER_DTYPES).items()}
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.numel() * tensor.itemsize
        shape = list(tensor.shape)
        entries[name] = {"dtype": names[tensor.dtype], "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def to_ours(name: str) -> str | None:
    """Our name of a checkpoint's tensor, or None.

    >>> to_ours("h.7.attn.c_proj.weight")
    'blocks.7.attn.out.weight'
    """
    return _translate(name, NAMES, r"^h\.(\d+)\.", "h.#.")


def to_theirs(name: str) -> str:
    """The name that transformers gives to one of our tensors.

    Raises:
        ValueError: it is none of GPT-2's.

    >>> to_theirs("blocks.7.attn.out.weight"), to_theirs("head.weight")
    ('transformer.h.7.attn.c_proj.weight', 'lm_head.weight')
    """
    theirs = _translate(name, THEIRS, r"^blocks\.(\d+)\.", "blocks.#.")
    if theirs is None:
        raise ValueError(
            f"GPT-2's checkpoints have no place for {name}: merge an adapter before saving its model"
        )
    return theirs if theirs.startswith("lm_head") else f"transformer.{theirs}"


def _translate(name: str, table: Mapping[str, str], layer: str, placeholder: str) -> str | None:
    number = re.match(layer, name)
    stem, _, leaf = re.sub(layer, placeholder, name).rpartition(".")
    if stem not in table or leaf not in LEAVES:
        return None
    return table[stem].replace("#", number[1] if number else "") + "." + leaf


def _without_prefixes(name: str) -> str:
    while PREFIX.match(name):
        name = PREFIX.sub("", name)
    return name


def _is_mask(shape: tuple[int, ...]) -> bool:
    """A square of ones, or the single number that was written over it."""
    return len(shape) < 1 or (len(shape) == 4 and shape[2] == shape[3])


def _files(directory: Path) -> list[Path]:
    """model.safetensors, or the shards; `hub.model_files` has seen to it that they are there."""
    single, index = directory / "model.safetensors", directory / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    return sorted(
        {directory / shard for shard in field(dict, read_object(index), "weight_map", index).values()}
    )


def _headers(directory: Path) -> list[StoredTensor]:
    return [stored for file in _files(directory) for stored in _header(file)]


def _header(path: Path) -> list[StoredTensor]:
    """What a file's header says of its tensors.

    Read without mapping the file, which may be larger than memory and yet not fit config.json; that it is as long
    as its header says is checked by safetensors, when a tensor is read.
    """
    stored = []
    for name, entry in _header_fields(path).items():
        if name == "__metadata__":
            continue
        where = f"{path}: {shown(name)}"
        entry = expect(dict, entry, where)
        shape = tuple(expect(int, size, where, "shape") for size in field(list, entry, "shape", where))
        dtype = field(str, entry, "dtype", where)
        bare = _without_prefixes(name)
        dropped = STORED_MASK.match(bare) or OTHER_HEAD.match(bare)
        known = DTYPES | INTEGER_DTYPES
        if dtype not in known and not dropped:
            raise ValueError(f"{path}: {name} is stored as {dtype}; {', '.join(DTYPES)} are read")
        stored.append(StoredTensor(path, name, shape, known.get(dtype, torch.bool)))
    return stored


def _header_fields(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 0 < length <= LONGEST_HEADER:
                raise ValueError(f"its header would have {length:,} bytes")
            return expect(dict, parse(file.read(length), "its header"), "its header")
    except ValueError as error:
        raise damaged(path, error) from None


def _open(path: Path) -> safe_open:
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise damaged(path, error) from None


def damaged(path: Path, error: Exception) -> ValueError:
    """What to raise where a file of weights cannot be read for this reason."""
    return ValueError(f"{path} is damaged or incomplete ({error}); fetch or save it again")


def _list(names: list[str]) -> str:
    listed = ", ".join(names[:8])
    return listed if len(names) <= 8 else f"{listed} and {len(names) - 8} more"

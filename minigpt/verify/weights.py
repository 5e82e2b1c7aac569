"""Whether the model in memory holds the file's numbers, tensor by tensor, and the file numbers at all."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from minigpt.json_files import counted
from minigpt.verify.points import distance
from minigpt.verify.report import Check, failed, not_checked, passed
from minigpt.verify.stored import LINEAR, StoredModel

if TYPE_CHECKING:
    from minigpt.model import GPT2

# The file's name of each tensor and where our model keeps it ("#" is the layer); written anew, not the loader's.
PLACES = {
    "ln_1.weight": "attn_norm.weight",
    "ln_1.bias": "attn_norm.bias",
    "attn.c_attn.weight": "attn.qkv.weight",
    "attn.c_attn.bias": "attn.qkv.bias",
    "attn.c_proj.weight": "attn.out.weight",
    "attn.c_proj.bias": "attn.out.bias",
    "ln_2.weight": "mlp_norm.weight",
    "ln_2.bias": "mlp_norm.bias",
    "mlp.c_fc.weight": "mlp.up.weight",
    "mlp.c_fc.bias": "mlp.up.bias",
    "mlp.c_proj.weight": "mlp.down.weight",
    "mlp.c_proj.bias": "mlp.down.bias",
}


def places(stored: StoredModel) -> dict[str, str]:
    """Our name of each tensor of a GPT-2 of this depth, by the file's."""
    both = {"wpe.weight": "position_embedding.weight", "ln_f.weight": "final_norm.weight"}
    both |= {"ln_f.bias": "final_norm.bias"}
    for layer in range(stored.field("n_layer")):
        both |= {f"h.{layer}.{theirs}": f"blocks.{layer}.{ours}" for theirs, ours in PLACES.items()}
    return both


def check_stored(stored: StoredModel) -> Iterator[Check]:
    """Names, shapes and numbers of the file by itself."""
    name = "tensors: names, shapes and types, as config.json has them"
    wanted = shapes(stored)
    missing = [one for one in wanted if one not in stored]
    wrong = [
        f"{one} is {stored.shape(one)}, config.json asks for {shape}"
        for one, shape in wanted.items()
        if one in stored and stored.shape(one) != shape
    ]
    faults = [*(f"{one} is missing" for one in missing), *wrong]
    faults += [
        f"{one} is not of floating point" for one in wanted if one in stored and not _floats(stored, one)
    ]
    yield failed(name, "; ".join(faults[:4])) if faults else passed(name)
    name = "tensors: every number finite"
    infinite = [one for one in wanted if one in stored and not stored.tensor(one).isfinite().all()]
    yield failed(name, f"not finite: {', '.join(infinite[:8])}") if infinite else passed(name)


def _floats(stored: StoredModel, name: str) -> bool:
    return stored.tensor(name).is_floating_point()


def shapes(stored: StoredModel) -> dict[str, tuple[int, ...]]:
    """What a GPT-2 of these sizes consists of."""
    d, inner = stored.field("n_embd"), stored.inner()
    sizes: dict[str, tuple[int, ...]] = {
        "ln_1.weight": (d,), "ln_1.bias": (d,), "attn.c_attn.weight": (d, 3 * d), "attn.c_attn.bias": (3 * d,),
        "attn.c_proj.weight": (d, d), "attn.c_proj.bias": (d,), "ln_2.weight": (d,), "ln_2.bias": (d,),
        "mlp.c_fc.weight": (d, inner), "mlp.c_fc.bias": (inner,), "mlp.c_proj.weight": (inner, d),
        "mlp.c_proj.bias": (d,),
    }  # fmt: skip
    vocabulary = (stored.field("vocab_size"), d)
    all_sizes: dict[str, tuple[int, ...]] = {"wpe.weight": (stored.field("n_positions"), d)}
    all_sizes |= {name: vocabulary for name in ("wte.weight", "lm_head.weight") if name in stored}
    for layer in range(stored.field("n_layer")):
        all_sizes |= {f"h.{layer}.{name}": size for name, size in sizes.items()}
    return all_sizes | {"ln_f.weight": (d,), "ln_f.bias": (d,)}


def check_loaded(model: GPT2, stored: StoredModel) -> Check:
    """Every parameter of the model, bit for bit, against the tensor that the file has for it.

    For the matrices of a quantized model see `minigpt.verify.quantized`.
    """
    name = "weights in memory, with the file's"
    parameters = {ours: tensor for ours, tensor in model.state_dict().items() if tensor.is_floating_point()}
    differing, absent = [], []
    for theirs, ours in places(stored).items():
        if model.quantization and theirs.endswith(LINEAR):
            continue
        if ours not in parameters or parameters[ours].shape != stored.shape(theirs):
            absent.append(theirs)
        elif _differs(parameters[ours], stored.tensor(theirs)):
            differing.append((theirs, ours))
    faults = _embedding_faults(model, stored)
    faults += [f"{theirs} {likeness(parameters[ours], theirs, stored)}" for theirs, ours in differing[:4]]
    if len(differing) > 4:
        faults.append(f"and {counted(len(differing) - 4, 'more tensors')}")
    if faults:
        return failed(name, "; ".join(faults))
    if absent:
        kept = f"{len(absent)} tensors are kept in another form, such as {absent[0]}"
        return not_checked(name, f"{kept}: their effect is compared below")
    return Check(name, "ok", "", 0.0, 0.0)


def _embedding_faults(model: GPT2, stored: StoredModel) -> list[str]:
    """The tied weights: what the model embeds with, and what it predicts with."""
    if model.quantization:
        return []
    faults = []
    if _differs(model.token_embedding.weight, stored.embedding()):
        faults.append("the token embedding is not the file's wte.weight")
    own_head = getattr(model.head, "weight", None)
    if own_head is None and stored.is_untied():
        faults.append(
            "the head is tied to the embedding, but the file has a head of its own (lm_head.weight)"
        )
    elif own_head is not None and _differs(own_head, stored.head()):
        faults.append("the head is not the file's lm_head.weight")
    return faults


def likeness(ours: Tensor, name: str, stored: StoredModel) -> str:
    """What a parameter holds in place of the tensor of that name, as exactly as can be said."""
    ours, theirs = ours.cpu(), stored.tensor(name)
    if theirs.dim() == 2 and theirs.size(0) == theirs.size(1) and not _differs(ours, theirs.mT):
        return "is transposed"
    if not ours.any():
        return "is all zeros in the model"
    if "c_attn" in name:
        q, k, v = theirs.chunk(3, -1)
        for order, parts in {"queries and keys": (k, q, v), "keys and values": (q, v, k)}.items():
            if not _differs(ours, torch.cat(parts, -1)):
                return f"has its {order} swapped"
        n_head, rows = stored.field("n_head"), theirs.shape[:-1]
        heads = theirs.reshape(*rows, 3, n_head, -1).transpose(-3, -2).flatten(-3)
        back = theirs.reshape(*rows, n_head, 3, -1).transpose(-3, -2).flatten(-3)
        if not _differs(ours, heads) or not _differs(ours, back):
            return "has its heads interleaved"
    for steps in (1, -1, 2, -2):
        if not _differs(ours, theirs.roll(steps, 0)):
            return f"is shifted by {counted(abs(steps), 'rows')}"
    for other in stored.names():
        if (
            other != name
            and stored.shape(other) == tuple(ours.shape)
            and not _differs(ours, stored.tensor(other))
        ):
            return f"holds the numbers of {other}"
    for dtype in (torch.bfloat16, torch.float16):
        if not _differs(ours, theirs.to(dtype)):
            return f"was rounded through {str(dtype).removeprefix('torch.')}"
    return f"holds other numbers, off by up to {distance(ours, theirs):.1e}"


def _differs(ours: Tensor, theirs: Tensor) -> bool:
    return ours.shape != theirs.shape or not torch.equal(ours.cpu(), theirs.to(ours.dtype))

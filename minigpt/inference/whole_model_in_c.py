"""From new tokens to the logits of what follows, by one function in C: the embeddings, all blocks, the final norm, the head.

With the bundled model and 8-bit weights, to call these one by one from Python takes a quarter of a token's time. Both ways
give the same bits.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from minigpt.cache import KVCache
from minigpt.inference import pass_in_c
from minigpt.inference.modules_in_c import LayerNormInC
from minigpt.inference.pass_in_c import Parts, is_readable_vector, structs_for
from minigpt.kernels import c_functions, products
from minigpt.kernels.c_functions import is_ordinary_tensor
from minigpt.kernels.c_structs import CBlock, CLinear, CModel, CTable
from minigpt.quantization.modules import QuantizedEmbedding, QuantizedHead, QuantizedTiedHead

# Shapes below:  B rows · T new tokens · V vocab_size


def next_logits(model: Any, tokens: Tensor, cache: KVCache) -> Tensor | None:
    """The logits of the token after each row: (B, T)  ->  (B, V).

    None if a part of the model cannot be read, or something does not fit: then the modules compute it, or say what is wrong.
    The caller has made sure that the model is plain, and that the tokens fit the cache's rows and the context length.

    Raises:
        ValueError: the cache is another model's.
        MemoryError: there is no memory for what is computed on the way.
    """
    fit = 0 <= cache.length <= cache.n_max - tokens.size(1)
    if not (fit and tokens.is_cpu and is_ordinary_tensor(tokens)):
        return None
    structs = structs_for(cache.model_in_c, _parts_of(model), lambda: _c_model(model))
    cache.model_in_c = structs
    if structs.made is None:
        return None
    ids = tokens.to(torch.int64).contiguous()
    return c_functions.next_logits(ids, structs.made, cache.slots, cache.length, cache.pads())


def _parts_of(model: Any) -> Parts:
    """What a model is made of: as `pass_in_c.parts_of`."""
    tensors, others = pass_in_c.parts_of(model.blocks)
    others.append(model.config)
    for module in _ends(model):
        own = module.__dict__.get("weight")  # that of a quantized embedding
        ours = [t for t in (*module._parameters.values(), *module._buffers.values(), own) if t is not None]
        tensors += ours
        others += (type(module), *module.__dict__.values(), *(t.dtype for t in ours))
    return tensors, others


def _ends(model: Any) -> tuple[Any, ...]:
    """All that is no block."""
    own = model._modules
    return own["token_embedding"], own["position_embedding"], own["final_norm"], own["head"]


def _c_model(model: Any) -> CModel | None:
    """The model as the function takes it; None if it cannot read a part, or the parts do not fit together."""
    is_changed = any("multiply" in module.__dict__ or "affine" in module.__dict__ for module in _ends(model))
    if is_changed or not isinstance(model.final_norm, LayerNormInC):
        return None
    tables = _table(model.token_embedding), _table(model.position_embedding)
    norm, head = pass_in_c.c_norm(model.final_norm), _head(model)
    blocks = pass_in_c.c_blocks(model.blocks)
    if tables[0] is None or tables[1] is None or head is None:
        return None
    widths = {tables[0].width, tables[1].width, norm.n, head.n_in}
    if len(widths) > 1 or not c_functions.fit_together(blocks, norm.n):
        return None
    first = ctypes.cast(blocks, ctypes.POINTER(CBlock))
    whole = CModel(*tables, first, len(blocks), norm, head)
    whole.kept = blocks, head  # the array that `first` points to, and tensors that the head points to
    return whole


def _table(embedding: Any) -> CTable | None:
    if isinstance(embedding, QuantizedEmbedding):
        return embedding.table()
    weight, is_plain = embedding.weight, embedding.max_norm is None and embedding.padding_idx is None
    return c_functions.plain_table(weight) if is_plain and is_readable_vector(weight) else None


def _head(model: Any) -> CLinear | None:
    head, embedding = model.head, model.token_embedding
    if isinstance(head, QuantizedTiedHead):
        return _layer(embedding) if head.is_tied_to(embedding) else None
    if isinstance(head, QuantizedHead):
        return _layer(head)
    weight = embedding.weight if model.config.tie_word_embeddings else head.weight
    is_plain = products.float32_in_c() and is_readable_vector(weight)
    return c_functions.plain_layer(weight, None) if is_plain else None


def _layer(module: Any) -> CLinear | None:
    """A quantized matrix as the function takes it; None if it would read a copy, which later changes do not reach."""
    vectors = [t for t in module._buffers.values() if t is not None]
    is_plain = hasattr(module.matrix, "layer") and module._buffers.get("bias") is None
    return module.layer() if is_plain and all(map(is_readable_vector, vectors)) else None

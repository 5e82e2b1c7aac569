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
from minigpt.inference.pass_in_c import Parts, can_be_read, structs_for
from minigpt.kernels import c_functions
from minigpt.kernels.c_functions import CLinear, CModel, CTable, holds_its_values
from minigpt.modules_in_c import LayerNormInC
from minigpt.quantization.modules import QuantizedEmbedding, QuantizedHead, QuantizedTiedHead

# Shapes below:  B rows · T new tokens · V vocab_size


def next_logits(model: Any, tokens: Tensor, cache: KVCache) -> Tensor | None:
    """The logits of the token after each row: (B, T)  ->  (B, V).

    None if a part of the model cannot be read, or a token has no embedding: then the modules compute it, or say what is
    wrong. The caller has made sure that the model is plain, and that the tokens fit the cache's rows and the context length.

    Raises:
        ValueError: there is no room in the cache, or it is another model's.
        MemoryError: there is no memory for what is computed on the way.
    """
    cache.check_room(tokens.size(1))
    if not (tokens.is_cpu and holds_its_values(tokens)):
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
    own = model._modules
    ends = own["token_embedding"], own["position_embedding"], own["final_norm"], own["head"]
    for module in ends:
        state = module.__dict__  # where a quantized embedding keeps its weight
        tensors += (*module._parameters.values(), *module._buffers.values(), state.get("weight"))
        others += (module, *map(state.get, ("matrix", "max_norm", "eps", "normalized_shape")))
    return tensors, others


def _c_model(model: Any) -> CModel | None:
    """The model as the function takes it; None if it cannot read a part, or the parts do not fit together."""
    if not isinstance(model.final_norm, LayerNormInC):
        return None
    tables = _table(model.token_embedding), _table(model.position_embedding)
    norm, head = pass_in_c.c_norm(model.final_norm), _head(model)
    blocks = pass_in_c.c_blocks(model.blocks)
    if tables[0] is None or tables[1] is None or head is None:
        return None
    widths = {tables[0].width, tables[1].width, norm.n, head.n_in}
    if len(widths) > 1 or not c_functions.fit_together(blocks, norm.n):
        return None
    first = ctypes.cast(blocks, ctypes.POINTER(c_functions.CBlock))
    whole = CModel(*tables, first, len(blocks), norm, head)
    whole.kept = blocks, head  # the array that `first` points to, and tensors that the head points to
    return whole


def _table(embedding: Any) -> CTable | None:
    if isinstance(embedding, QuantizedEmbedding):
        return embedding.table()
    weight = embedding.weight
    return c_functions.plain_table(weight) if embedding.max_norm is None and can_be_read(weight) else None


def _head(model: Any) -> CLinear | None:
    head, embedding = model.head, model.token_embedding
    if isinstance(head, QuantizedTiedHead):
        return _layer(embedding) if head.is_tied_to(embedding) else None
    if isinstance(head, QuantizedHead):
        return _layer(head)
    weight = head.weight if hasattr(head, "weight") else embedding.weight  # a tied head has none of its own
    return c_functions.plain_layer(weight, None) if can_be_read(weight) else None


def _layer(module: Any) -> CLinear | None:
    """A quantized matrix as the function takes it; None if it would read a copy, which later changes do not reach."""
    vectors = [t for t in module._buffers.values() if t is not None]
    return module.layer() if hasattr(module.matrix, "layer") and all(map(can_be_read, vectors)) else None

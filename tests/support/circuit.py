"""A GPT-2 whose weights are set by hand: what it does, and how, is known to the number.

Two layers of two heads form an induction circuit. The stream is four one-hot parts side by side:

    token · position · previous token · prediction

Head 0.0 attends to the token before (by position) and writes it into the third part. Head 1.0 attends to the
tokens that came after an earlier occurrence of the present one (queries read `token`, keys `previous token`)
and writes what it sees there into the fourth part, which the head of the model reads. The other heads and
the MLPs write nothing; their attention is uniform.

Every LayerNorm meets as many ones as its layer has filled parts; its weight and bias undo it exactly.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from minigpt import GPT2, GPT2Config

VOCAB, POSITIONS = 12, 28
WIDTH = 3 * VOCAB + POSITIONS  # 64
TOKEN, POSITION = slice(0, VOCAB), slice(VOCAB, VOCAB + POSITIONS)
PREVIOUS, PREDICTION = slice(WIDTH - 2 * VOCAB, WIDTH - VOCAB), slice(WIDTH - VOCAB, WIDTH)
SHARPNESS = 60.0  # the score of a match; of no match 0
GAIN = 20.0  # the logit of what is predicted; of all others 0
BOS = 0


@torch.no_grad()
def induction_circuit() -> GPT2:
    """The model; its texts begin with BOS, which never comes again."""
    config = GPT2Config(
        vocab_size=VOCAB, n_positions=POSITIONS, n_embd=WIDTH, n_layer=2, n_head=2, n_inner=8,
        tie_word_embeddings=False, eos_token_id=None, bos_token_id=BOS,
    )  # fmt: skip
    model = GPT2(config).eval()
    for parameter in model.parameters():
        parameter.zero_()
    model.token_embedding.weight[:, TOKEN] = torch.eye(VOCAB)
    model.position_embedding.weight[:, POSITION] = torch.eye(POSITIONS)
    model.head.weight[:, PREDICTION] = GAIN * torch.eye(VOCAB)
    for n_ones, norm in [
        (2, model.blocks[0].attn_norm), (3, model.blocks[0].mlp_norm), (3, model.blocks[1].attn_norm),
        (4, model.blocks[1].mlp_norm), (4, model.final_norm),
    ]:  # fmt: skip
        _undo(norm, n_ones)
    behind = torch.zeros(POSITIONS, POSITIONS)  # the query at position i looks for i - 1
    behind[range(1, POSITIONS), range(POSITIONS - 1)] = 1.0
    _set_head(model, 0, POSITION, behind, POSITION, PREVIOUS)
    _set_head(model, 1, TOKEN, torch.eye(VOCAB), PREVIOUS, PREDICTION)
    return model


def _undo(norm: nn.LayerNorm, n_ones: int) -> None:
    """Weight and bias with which the norm of a vector of `n_ones` ones, and else zeros, is that vector."""
    mean = n_ones / WIDTH
    norm.weight.fill_(math.sqrt(mean - mean**2 + norm.eps))
    norm.bias.fill_(mean)


def _set_head(model: GPT2, layer: int, query: slice, wish: Tensor, key: slice, writes: slice) -> None:
    """Head 0 of a layer: queries `query @ wish`, keys `key`, values the tokens, written to `writes`."""
    attn, head_dim = model.blocks[layer].attn, model.config.head_dim
    q, k, v = (attn.qkv.weight[:, i * WIDTH : i * WIDTH + head_dim] for i in range(3))
    q[query, : wish.size(1)] = SHARPNESS / attn.sdpa.scale * wish
    k[key, : wish.size(1)] = torch.eye(wish.size(1))
    v[TOKEN, :VOCAB] = torch.eye(VOCAB)
    attn.out.weight[:VOCAB, writes] = torch.eye(VOCAB)


def repeated(period: int, copies: int, seed: int = 0) -> list[int]:
    """BOS, then a block of different tokens, `copies` times."""
    order = torch.randperm(VOCAB - 1, generator=torch.Generator().manual_seed(seed)) + 1
    return [BOS, *order[:period].tolist() * copies]

"""Models with the outliers that real GPT-2 has and random or small ones lack."""

from __future__ import annotations

import copy

import torch

from minigpt import GPT2

CHANNELS = [3, 77, 130]


@torch.no_grad()
def plant_outliers(model: GPT2) -> GPT2:
    """The same function with a few channels 100 times larger: into the blocks' layers, and inside the MLP.

    What reads the channels is as much smaller. (Inside the MLP that is a little more than GPT-2 itself computes:
    there, gelu(100 x) / 100 is relu(x), and the model with outliers is its own reference.)
    """
    planted = copy.deepcopy(model)
    for block in planted.blocks:
        for norm, reader in ((block.attn_norm, block.attn.qkv), (block.mlp_norm, block.mlp.up)):
            norm.weight[CHANNELS] *= 100
            norm.bias[CHANNELS] *= 100
            reader.weight[CHANNELS] /= 100
        block.mlp.up.weight[:, CHANNELS] *= 100
        block.mlp.up.bias[CHANNELS] *= 100
        block.mlp.down.weight[CHANNELS] /= 100
    return planted

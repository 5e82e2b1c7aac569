"""How surprising each token was to the model, in bits."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from minigpt.interp.recording import Recording

# Shapes below:  B rows · T tokens · V vocab_size


def surprisal(seen: Recording) -> Tensor:
    """-log2 p(token | the tokens before it): 1 bit is a fair coin's toss, 0 what had to come.

    The first token of a text is predicted by nothing and has none: NaN, as has padding.

    Args:
        seen: a recording of the logits of every token.

    Shapes: (B, T), float32

    Raises:
        KeyError: logits were not recorded.
        ValueError: the text was generated while it was recorded, which gives the logits of some tokens only.

    >>> import minigpt
    >>> from minigpt.interp import record_text
    >>> model, tokenizer = minigpt.load()
    >>> bits = surprisal(record_text(model, tokenizer.encode("Once upon a time"), "logits"))
    >>> bits.shape, bool(bits[0, 1:].max() < 12)                        # log2(4096) = 12 would be no idea at all
    (torch.Size([1, 4]), True)
    """
    seen.require_whole("logits")
    logits, tokens = seen["logits"], seen.tokens
    if logits.size(1) != tokens.size(1):
        raise ValueError(
            "this recording has not every token's logits: record the finished text with record_text"
        )
    logprobs = logits[:, :-1].float().log_softmax(-1)
    bits = -logprobs.gather(-1, tokens[:, 1:, None])[..., 0] / math.log(2)  # (B, T - 1)
    bits = torch.cat([bits.new_full((len(bits), 1), math.nan), bits], 1)
    slots = torch.arange(tokens.size(1), device=bits.device)
    return bits.masked_fill(slots <= seen.pad.to(bits.device)[:, None] - seen.start, math.nan)

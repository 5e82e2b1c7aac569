"""GPT-2: embeddings, pre-LN transformer blocks, unembedding. Reads top to bottom as the paper does."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minigpt import hub, quantization, weights
from minigpt.atomic import all_or_none
from minigpt.attention import CausalAttention, attention_mask, kernels_for_any_length
from minigpt.cache import KVCache, LayerCache, NoCache, check_pad
from minigpt.config import GPT2Config, stored_quantization
from minigpt.errors import InvalidRequest
from minigpt.inference import graphed_step, modules_in_c, plain_pass, whole_model_in_c
from minigpt.json_files import counted, shown
from minigpt.kernels import product, products
from minigpt.kernels.c_functions import is_float32_on_cpu
from minigpt.kernels.memory import MemoryPool
from minigpt.linear import Linear

# Shapes below:  B rows · T new tokens · S tokens in view (cached + new) · D n_embd · V vocab_size


IGNORED = -100  # a target that does not count; `F.cross_entropy`'s own default


def quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


# GPT-2 was trained with the tanh form; the exact one (`gelu`, used by Cerebras-GPT) shifts its logits.
tanh_gelu = partial(F.gelu, approximate="tanh")
ACTIVATION_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu_new": tanh_gelu,
    "gelu_pytorch_tanh": tanh_gelu,
    "gelu_fast": tanh_gelu,
    "gelu": F.gelu,
    "quick_gelu": quick_gelu,
    "relu": F.relu,
    "silu": F.silu,
    "tanh": torch.tanh,
}


class MLP(nn.Module):
    """Position-wise feed-forward network: expand, activate, project back."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.up = Linear(config.n_embd, config.mlp_dim)
        self.activation = ACTIVATION_FUNCTIONS[config.activation_function]
        self.down = Linear(config.mlp_dim, config.n_embd)
        self.dropout = config.resid_pdrop

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(self.activation(self.up(x)))
        return F.dropout(x, self.dropout, self.training)


class Block(nn.Module):
    """One pre-LN residual layer: x + attn(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: GPT2Config, layer: int) -> None:
        super().__init__()
        self.attn_norm = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.attn = CausalAttention(config, layer)
        self.mlp_norm = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, past: LayerCache | NoCache, mask: Tensor | None) -> Tensor:
        x = x + self.attn(self.attn_norm(x), past, mask)
        x = x + self.mlp(self.mlp_norm(x))
        return x


class TiedHead(nn.Module):
    """Logits as products with each token's embedding: tied by having no weights of its own."""

    def forward(self, x: Tensor, token_embedding: Tensor) -> Tensor:
        return product(x, token_embedding)


class UntiedHead(nn.Module):
    """Logits by a weight matrix of the head's own, for `tie_word_embeddings: false`."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.vocab_size, config.n_embd))

    def forward(self, x: Tensor, token_embedding: Tensor) -> Tensor:
        return product(x, self.weight)

    def extra_repr(self) -> str:
        vocab_size, n_embd = self.weight.shape
        return f"in={n_embd}, out={vocab_size}"


class GPT2(nn.Module):
    """The decoder-only transformer of Radford et al. 2019.

    `GPT2(config)` is fresh, with GPT-2's own initialisation, and in training mode, as any new module.

    >>> model = GPT2(GPT2Config(vocab_size=100, n_positions=16, n_embd=32, n_layer=2, n_head=4)).eval()
    >>> model(torch.tensor([[1, 2, 3]])).shape
    torch.Size([1, 3, 100])
    """

    quantization: str | None = None  # "int8" or "float16" if the weights are quantized

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        if not isinstance(config, GPT2Config):
            raise InvalidRequest(
                f"GPT2 takes a GPT2Config, got {shown(config)}; GPT2.from_pretrained(name_or_dir) loads a model"
            )
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.n_embd)
        self.position_embedding = nn.Embedding(config.n_positions, config.n_embd)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.final_norm = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.head = TiedHead() if config.tie_word_embeddings else UntiedHead(config)
        self._cache_memory = MemoryPool()
        self._initialise()

    def forward(self, tokens: Tensor, pad: Tensor | None = None) -> Tensor:
        """Logits after every token.

        Rows of unequal length are padded on the left with any id; `pad` counts the padding of each row,
        and a padded row then gives the logits that it gives alone.

        Shapes: tokens (B, T), pad (B,)  ->  (B, T, V); logits at padded slots mean nothing

        Raises:
            ValueError: the tokens do not fit the model's context length or vocabulary, or `pad` does not
                fit the tokens. Ids are checked on a CPU only: on a GPU each pass would have to wait for them,
                and torch itself fails ("device-side assert"). `generate` checks its prompts everywhere.
        """
        _check_tensor("tokens", tokens)
        if pad is not None:
            _check_tensor("pad", pad)
            pad = pad.to(tokens.device)
            check_pad(pad, *tokens.shape)
        return self.unembed(self.hidden_states(tokens, NoCache(self.config, pad)))

    def loss(self, tokens: Tensor, pad: Tensor | None = None) -> Tensor:
        """Mean cross-entropy of every token but each row's first, given those before it, in nats.

        Shapes: tokens (B, T), pad (B,) as for `forward`  ->  ()

        Raises:
            ValueError: as for `forward`, or no row has two tokens.

        >>> model = GPT2(GPT2Config(vocab_size=100, n_positions=16, n_embd=32, n_layer=2, n_head=4)).eval()
        >>> 4 < model.loss(torch.tensor([[1, 2, 3]])).item() < 5       # fresh: about ln 100, for 100 ids
        True
        """
        logits = self(tokens, pad)[:, :-1]  # the last token has nothing to predict
        targets = tokens[:, 1:]
        if pad is not None:
            slots = torch.arange(1, tokens.size(1), device=tokens.device)
            targets = targets.masked_fill(slots <= pad.to(tokens.device)[:, None], IGNORED)
        if not (targets != IGNORED).any():
            raise ValueError("a loss needs two tokens: the first of a row is given, not predicted")
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED)

    @torch.no_grad()
    def next_logits(self, tokens: Tensor, cache: KVCache) -> Tensor:
        """Reads `tokens` into the cache; logits for the token that follows.

        Shapes: (B, T)  ->  (B, V)

        Raises:
            ValueError: as for `hidden_states`.
        """
        _check_tensor("tokens", tokens)
        _check_fit(tokens, cache, self.config)
        step = graphed_step.step_for(self, tokens, cache)
        if step is not None:
            return step(tokens)
        logits = self._next_logits_in_c(tokens, cache)
        if logits is None:
            n_last = 1 if _is_plain(self.final_norm, *modules_in_c.NORMS) else None  # hooks see all tokens
            logits = self.unembed(self._read(tokens, cache, n_last)[:, -1])
        cache.advance(tokens.size(1))
        return logits

    def _next_logits_in_c(self, tokens: Tensor, cache: KVCache) -> Tensor | None:
        """The logits by one function in C: (B, T)  ->  (B, V); None where torch or the modules have to compute them."""
        if not (isinstance(cache, KVCache) and plain_pass.are_in_c(self.blocks) and self.is_plain()):
            return None
        return whole_model_in_c.next_logits(self, tokens, cache)

    def hidden_states(self, tokens: Tensor, cache: KVCache | NoCache) -> Tensor:
        """Everything but the head.

        Shapes: (B, T)  ->  (B, T, D)

        Raises:
            ValueError: the tokens are no integer ids of shape (rows, tokens), or do not fit the vocabulary (which is
                checked on a CPU only), the context length, or the cache's room and rows.
        """
        _check_fit(tokens, cache, self.config)
        x = self._read(tokens, cache)
        cache.advance(tokens.size(1))
        return x

    def lens_states(self, tokens: Tensor, cache: KVCache | NoCache) -> Tensor:
        """The residual stream before the first block and after each, every one through the final norm.

        So `unembed` gives the prediction as of that layer; the last is the result of `hidden_states`.

        Shapes: (B, T)  ->  (n_layer + 1, B, T, D)

        Raises:
            ValueError: as for `hidden_states`.

        Source: nostalgebraist 2020, "interpreting GPT: the logit lens".
        """
        _check_fit(tokens, cache, self.config)
        with kernels_for_any_length(tokens.device):
            states = torch.stack([self.final_norm(x) for x in self._residual_stream(tokens, cache)])
        cache.advance(tokens.size(1))
        return states

    def _read(self, tokens: Tensor, cache: KVCache | NoCache, n_last: int | None = None) -> Tensor:
        """The pass itself; whoever calls it commits to the cache when all has gone well.

        Shapes: (B, T)  ->  (B, T, D), or (B, n_last, D) where no hook has to see more than the last tokens
        """
        with kernels_for_any_length(tokens.device):
            if isinstance(cache, KVCache) and self._blocks_are_plain():
                x, mask = self._embed(tokens, cache)
                x = plain_pass.through_blocks(self.blocks, x, mask, cache, n_last or tokens.size(1))
            else:
                for x in self._residual_stream(tokens, cache):  # noqa: B007
                    pass  # the last is what counts, and no other is kept in memory
        normed: Tensor = self.final_norm(x)
        return normed

    def is_plain(self) -> bool:
        """Whether this is a GPT2 in evaluation mode, of no class derived from it, whose parts compute just what their classes
        say, as `plain_pass` has it; and nothing is differentiated.
        """
        tied, untied = (TiedHead, quantization.QuantizedTiedHead), (UntiedHead, *quantization.UNTIED_HEADS)
        heads = tied if self.config.tie_word_embeddings else untied
        return (
            type(self) is GPT2
            and not self.training
            # no methods put in place of its class's
            and self.__dict__.keys().isdisjoint(("_embed", "_read", "unembed"))
            and self._blocks_are_plain()
            and _is_plain(self.token_embedding, nn.Embedding, *quantization.EMBEDDINGS)
            and _is_plain(self.position_embedding, nn.Embedding)
            and _is_plain(self.final_norm, *modules_in_c.NORMS)
            and _is_plain(self.head, *heads)
        )

    def _blocks_are_plain(self) -> bool:
        return plain_pass.blocks_are_plain(self.blocks, Block, MLP)

    def _residual_stream(self, tokens: Tensor, cache: KVCache | NoCache) -> Iterator[Tensor]:
        """What enters the first block, then what leaves each: (B, T, D) every time."""
        x, mask = self._embed(tokens, cache)
        yield x
        for block, past in zip(self.blocks, cache.layers, strict=True):
            x = block(x, past, mask)
            yield x

    def _embed(self, tokens: Tensor, cache: KVCache | NoCache) -> tuple[Tensor, Tensor | None]:
        """What enters the first block, and the mask of the pass: (B, T, D), and as from `attention_mask`."""
        n_new = tokens.size(1)
        mask = attention_mask(n_new, cache.length + n_new, cache.pad, tokens.device)
        positions = _positions(cache, n_new, tokens.device)
        try:
            x: Tensor = self.token_embedding(tokens) + self.position_embedding(positions)
        except IndexError:  # torch's own message names neither the id nor the limit
            wrong = tokens[(tokens < 0) | (tokens >= self.config.vocab_size)][:5].tolist()
            raise ValueError(
                f"tokens must be ids from 0 to {self.config.vocab_size - 1}, got {wrong}"
            ) from None
        return F.dropout(x, self.config.embd_pdrop, self.training), mask

    def unembed(self, x: Tensor) -> Tensor:
        """The logits of what `hidden_states` returns: (..., D)  ->  (..., V)."""
        logits: Tensor = self.head(x, self.token_embedding.weight)
        return logits

    def new_cache(self, n_max: int, rows: int = 1, pad: Tensor | None = None) -> KVCache:
        """An empty cache with room for `n_max` tokens, padding included, in each of `rows` rows.

        Shapes: pad (B,), how many of each row's first tokens will be padding
        """
        like = self.position_embedding.weight
        return KVCache(self.config, n_max, rows, like=like, pad=pad, pool=self._cache_memory)

    @classmethod
    def from_pretrained(
        cls,
        name_or_dir: str | os.PathLike[str] | None = None,
        *,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype | None = None,
        quantize: str | None = None,
        revision: str | None = None,
        offline: bool = False,
    ) -> Self:
        """The bundled model, one in a directory, or one from the Hugging Face hub; in evaluation mode.

        Without a `dtype`, weights are float32 on a CPU and as stored elsewhere. The weights go straight
        into place: there is never a second copy of them in memory. `quantize` is as for the method of that name.

        Raises:
            OSError: there is no such model, or it cannot be fetched.
            ValueError: it is no GPT-2, config.json and weights do not fit each other, or device or dtype cannot be used.
        """
        _check_device(device)
        dtype = _dtype(dtype)
        directory = hub.model_files(name_or_dir, revision=revision, offline=offline)
        config, checkpoint = GPT2Config.load(directory), weights.Checkpoint(directory)
        stored = stored_quantization(directory)
        quantization.check_request(stored, quantize, torch.device(device), dtype)
        if config.tie_word_embeddings and checkpoint.tied_weights_differ():
            warnings.warn(f"{directory}: wte and lm_head differ; loading them untied", stacklevel=2)
            config = replace(config, tie_word_embeddings=False)
        with torch.device("meta"), weights.SkipInitialisation():
            model = cls(config).float()  # whatever torch's default dtype is
        if stored:
            quantization.prepare(model, stored)
        with quantization.in_huge_pages() if stored else nullcontext():
            checkpoint.fill(model, dtype, torch.device(device))
        model.quantization = stored
        if not stored and products.float32_in_c() and is_float32_on_cpu(model.final_norm.weight):
            modules_in_c.put_into(model)
        return model.eval() if quantize in (None, stored) else model.quantize(quantize)

    def quantize(self, kind: str) -> Self:
        """Keeps the weights in fewer bits from now on: "int8" or "float16". In place; the model, for inference.

        Raises:
            ValueError: there is no such kind, or the weights are not float32 on a CPU.
        """
        quantization.quantize(self, kind)
        return self

    def save_pretrained(self, directory: str | os.PathLike[str]) -> None:
        """Writes config.json, generation_config.json and model.safetensors as transformers does.

        They are written aside and moved into place when all are whole.
        """
        with all_or_none(directory) as aside:
            weights.save(self.state_dict(), aside / "model.safetensors")
            dtype = str(self.position_embedding.weight.dtype).removeprefix("torch.")
            self.config.save(aside, dtype, self.quantization)

    @property
    def device(self) -> torch.device:
        return self.position_embedding.weight.device

    def extra_repr(self) -> str:
        kind = f", {self.quantization} weights" if self.quantization else ""
        return f"{self.config.n_parameters:,} parameters{kind}, context length {self.config.n_positions:,}"

    def _repr_html_(self) -> str:
        """For notebooks: the weights by name and shape; those of a block stand for those of all blocks."""
        rows = "".join(
            f"<tr><td>{name.replace('blocks.0.', 'blocks.*.')}</td><td>{' × '.join(map(str, tensor.shape))}</td></tr>"
            for name, tensor in self.state_dict().items()
            if not name.startswith("blocks.") or name.startswith("blocks.0.")
        )
        c = self.config
        shape = f"{counted(c.n_layer, 'layers')} × {counted(c.n_head, 'heads')}"
        about = f"GPT2: {self.extra_repr()}, {shape}"
        return f"<table><caption>{about}</caption><tr><th>weight</th><th>shape</th></tr>{rows}</table>"

    def _initialise(self) -> None:
        """Normal weights, zero biases; the projections onto the residual stream shrink with its depth.

        Source: Radford et al. 2019, section 2.3, so that the sum of 2 * n_layer additions keeps its size.
        """
        std = self.config.initializer_range
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif name.endswith(("attn.out.weight", "mlp.down.weight")):
                nn.init.normal_(parameter, std=std / math.sqrt(2 * self.config.n_layer))
            elif "norm" not in name:
                nn.init.normal_(parameter, std=std)


def _is_plain(module: nn.Module, *kinds: type[nn.Module]) -> bool:
    """Whether calling the module is calling the forward method of one of these classes."""
    return type(module) in kinds and plain_pass.is_plain(module, type(module))


def _check_tensor(name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        example = (
            "torch.tensor([ids]), one list for each row" if name == "tokens" else "torch.tensor([0, 1, 7])"
        )
        raise InvalidRequest(f"{name} must be a tensor, got {shown(value)}: write {example}")


def _dtype(wanted: object) -> torch.dtype | None:
    """The type of that name; None, and "auto", are for what follows from the device."""
    if wanted is None or wanted == "auto":
        return None
    dtype = getattr(torch, wanted.removeprefix("torch."), None) if isinstance(wanted, str) else wanted
    if isinstance(dtype, torch.dtype) and dtype.is_floating_point:
        return dtype
    raise InvalidRequest(
        f'dtype must be a floating-point type, as torch.float16 or "float16", got {wanted!r}'
    )


def _check_device(device: object) -> None:
    """Refuses what weights cannot be loaded to, before anything is fetched or read."""
    try:
        torch.empty(0, device=device)  # type: ignore[call-overload]
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise InvalidRequest(
            f"device={device!r} cannot be used here ({reason:.100}): take 'cpu', or 'cuda' or 'mps' where torch finds one"
        ) from None


def _check_fit(tokens: Tensor, cache: KVCache | NoCache, config: GPT2Config) -> None:
    if tokens.dim() != 2 or not tokens.numel():
        raise InvalidRequest(
            f"tokens have shape {tuple(tokens.shape)}; they must be (rows, tokens), at least one each"
        )
    if tokens.dtype not in (torch.int64, torch.int32):
        raise InvalidRequest(
            f"tokens must be int64 or int32 ids, got {str(tokens.dtype).removeprefix('torch.')}"
        )
    rows = tokens.size(0) if cache.rows is None else cache.rows
    if tokens.size(0) != rows:  # torch would stretch one row over all
        raise InvalidRequest(
            f"the tokens have {counted(tokens.size(0), 'rows')}, but the cache or its padding has {rows}"
        )
    length = cache.length + tokens.size(1) - cache.least_pad
    if length > config.n_positions:
        raise InvalidRequest(f"{length:,} tokens do not fit the context length of {config.n_positions:,}")


def _positions(cache: KVCache | NoCache, n_new: int, device: torch.device) -> Tensor:
    """The place of each new token in its own row, counted without padding: (T,), or (B, T) with padding."""
    slots = torch.arange(cache.length, cache.length + n_new, device=device)
    return slots if cache.pad is None else (slots - cache.pad[:, None]).clamp_min(0)

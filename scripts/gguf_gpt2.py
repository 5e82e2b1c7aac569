"""GPT-2 as a GGUF file, for `bench.py` to run by llama.cpp: what its own convert_hf_to_gguf.py writes.

The vocabulary is made up, for the benchmark gives and takes token ids; llama.cpp does not load a file without one.
"""

from __future__ import annotations

from pathlib import Path

import gguf
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType, TokenType

from minigpt import GPT2

# kind of weights -> (what the file is said to be, how its matrices are kept)
KINDS = {
    "float32": (LlamaFileType.ALL_F32, GGMLQuantizationType.F32),
    "int8": (LlamaFileType.MOSTLY_Q8_0, GGMLQuantizationType.Q8_0),  # a scale for every 32 weights
}
NAMES = {
    "token_embedding": "token_embd",
    "position_embedding": "position_embd",
    "attn_norm": "attn_norm",
    "attn.qkv": "attn_qkv",
    "attn.out": "attn_output",
    "mlp_norm": "ffn_norm",
    "mlp.up": "ffn_up",
    "mlp.down": "ffn_down",
    "final_norm": "output_norm",
    "head": "output",  # missing from models with tied embeddings: llama.cpp then takes token_embd
}


def renamed(name: str) -> str:
    """A tensor's name in GGUF: blocks.3.mlp.up.weight is blk.3.ffn_up.weight."""
    module, _, kind = name.rpartition(".")
    if not module.startswith("blocks."):
        return f"{NAMES[module]}.{kind}"
    _, layer, module = module.split(".", 2)
    return f"blk.{layer}.{NAMES[module]}.{kind}"


def add_shape(writer: GGUFWriter, model: GPT2) -> None:
    config = model.config
    writer.add_block_count(config.n_layer)
    writer.add_context_length(config.n_positions)
    writer.add_embedding_length(config.n_embd)
    writer.add_feed_forward_length(config.mlp_dim)
    writer.add_head_count(config.n_head)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)


def add_vocabulary(writer: GGUFWriter, n_words: int) -> None:
    # llama.cpp warns where it does not find the first, a line's end, and the last.
    words = ["Ċ", *(f"t{i}" for i in range(1, n_words - 1)), "<|endoftext|>"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(words)
    writer.add_token_types([TokenType.NORMAL] * (n_words - 1) + [TokenType.CONTROL])
    writer.add_token_merges(["t 0"])  # there must be one
    writer.add_eos_token_id(n_words - 1)


def add_tensors(writer: GGUFWriter, model: GPT2, matrices: GGMLQuantizationType) -> None:
    for name, tensor in model.state_dict().items():
        if name.startswith("blocks.") and tensor.ndim == 2:
            tensor = tensor.T  # (in, out) -> (out, in)
        plain = tensor.ndim == 1 or name.startswith("position_embedding")  # what llama.cpp never quantizes
        kind = GGMLQuantizationType.F32 if plain else matrices
        data = gguf.quants.quantize(tensor.contiguous().numpy(), kind)
        writer.add_tensor(renamed(name), data, raw_dtype=kind)


def export(model: GPT2, path: Path, kind: str) -> None:
    """Writes a float32 model with tanh-GELU and the usual attention scale, as GPT-2's are.

    Its matrices become `kind`, "float32" or "int8"; the latter takes widths that are multiples of 32.
    """
    file_type, matrices = KINDS[kind]
    writer = GGUFWriter(path, "gpt2")
    writer.add_file_type(file_type)
    add_shape(writer, model)
    add_vocabulary(writer, model.config.vocab_size)
    add_tensors(writer, model, matrices)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

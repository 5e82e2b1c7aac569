"""The right name for one that does not exist, for arguments and flags alike: other programs' names, and near misses."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from difflib import get_close_matches

from minigpt.errors import UnknownArgument

# What the same thing is called elsewhere, and in version 0.1. Of several names the first that there is is meant; one may
# have its value with it, and what has spaces in it is advice.
_CONTEXT = ("context", "a model's context length is fixed: `minigpt info MODEL` shows it")
ELSEWHERE: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("max_length", "max_tokens", "max_gen_len", "n_predict", "num_tokens", "length", "n_tokens"),
                    ("max_new_tokens",)),
    "min_length": ("min_new_tokens",),
    "do_sample": ("strategy=sample", "temperature"),
    "temp": ("temperature",),
    **dict.fromkeys(("p", "nucleus"), ("top_p",)),
    **dict.fromkeys(("k", "top_n"), ("top_k",)),
    **dict.fromkeys(("penalty", "repeat_penalty"), ("repetition_penalty",)),
    **dict.fromkeys(("beams", "beam_size", "beam_width", "n_beams"), ("num_beams",)),
    **dict.fromkeys(("n", "num_samples", "n_samples", "num_sequences", "best_of"), ("num_return_sequences",)),
    **dict.fromkeys(("stop_sequence", "stop_sequences", "stop_string", "stop_strings", "eos"), ("stop",)),
    "eos_token_id": ("end_tokens",),
    **dict.fromkeys(("random_seed", "rng_seed", "generator"), ("seed",)),
    **dict.fromkeys(("assistant_model", "draft_model"), ("draft",)),
    "prompt_lookup_num_tokens": ("num_draft_tokens",),
    "bad_words_ids": ("bad_words",),
    "sequence_bias": ("logit_bias",),
    "force_words_ids": ("must_include",),
    "logits_processor": ("processors",),
    **dict.fromkeys(("n_ctx", "block_size", "seq_len", "seq_length", "max_seq_len", "context_length", "context_size",
                     "n_positions", "ctx_size"), _CONTEXT),
    "learning_rate": ("lr",),
    **dict.fromkeys(("epochs", "num_epochs", "num_train_epochs", "max_steps", "max_iters", "iters", "num_steps",
                     "iterations"), ("steps",)),
    **dict.fromkeys(("out_dir", "output_dir", "save_dir", "output", "out", "o"), ("out", "output")),
    **dict.fromkeys(("dataset", "data_dir", "data_path", "train_data", "train_file", "input", "input_file"),
                    ("data", "file")),
    **dict.fromkeys(("prompt_file", "prompt_filename", "from_file"), ("file",)),
    "prompt": ("text",),
    "prompts_file": ("prompts", "file"),
    "repetition": ("repetition_penalty",),
    "emb": ("n_embd",),
    **dict.fromkeys(("layers", "n_layers", "num_layers", "num_hidden_layers"), ("n_layer",)),
    **dict.fromkeys(("heads", "n_heads", "num_heads", "num_attention_heads"), ("n_head",)),
    **dict.fromkeys(("d_model", "hidden_size", "dim", "embedding_size", "width"), ("n_embd", "num_beams")),
    **dict.fromkeys(("init_from", "pretrained", "base_model"), ("init", "model")),
    **dict.fromkeys(("model_name", "model_path", "model_dir", "model_name_or_path", "checkpoint", "m"), ("model", "init")),
    **dict.fromkeys(("grad_accum", "gradient_accumulation_steps", "gradient_accumulation"), ("accumulate",)),
    **dict.fromkeys(("micro_batch_size", "batch", "bs", "per_device_train_batch_size"), ("batch_size",)),
    **dict.fromkeys(("val_fraction", "validation", "validation_split", "val_split", "eval_split"), ("val",)),
    **dict.fromkeys(("warmup_steps", "warmup_iters", "num_warmup_steps"), ("warmup",)),
    "device_map": ("device",),
    **dict.fromkeys(("gpu", "cuda"), ("device=cuda",)),
    "cpu": ("device=cpu",),
    "torch_dtype": ("dtype",),
    **dict.fromkeys(("bf16", "half"), ("dtype=bfloat16", "dtype=float16")),
    "fp16": ("dtype=float16",),
    **dict.fromkeys(("quantize", "quantization"), ("quantize", "to")),
    "load_in_8bit": ("quantize=int8",),
    **dict.fromkeys(("silent", "no_progress"), ("quiet",)),
    **dict.fromkeys(("chat", "repl"), ("interactive",)),
    **dict.fromkeys(("show_prompt", "print_prompt"), ("echo",)),
    **dict.fromkeys(("local_files_only", "no_download"), ("offline",)),
}  # fmt: skip
NEAR = 0.78  # the least similarity of a name that may be a slip for another: less leads astray


def meant_by(name: str, known: Collection[str]) -> str:
    """What something is called here, with its value where that is meant, or advice; nothing where that is open.

    >>> meant_by("learning_rate", ["lr"]), meant_by("fp16", ["dtype"]), meant_by("top", ["lr"])
    ('lr', 'dtype=float16', '')
    """
    for meant in ELSEWHERE.get(name, ()):
        if " " in meant or meant.partition("=")[0] in known:
            return meant
    return ""


def nearest(name: str, known: Collection[str]) -> str:
    """The name that another is a slip for; nothing where none is near.

    >>> nearest("tempreature", ["temperature"]), nearest("max_tokens", ["min_new_tokens"])
    ('temperature', '')
    """
    near = get_close_matches(name, known, n=1, cutoff=NEAR)
    return near[0] if near else ""


def refuse_unknown(
    function: str, unknown: Iterable[str], known: Collection[str], advice: Mapping[str, str]
) -> None:
    """Raises UnknownArgument for the first unknown name, with the right one where there is one.

    Args:
        function: which was called.
        unknown: the names that it does not have.
        known: those that it has.
        advice: what to write instead of some names, where that is more than another name.

    >>> refuse_unknown("load", ["fp16"], ["device", "dtype"], {})
    Traceback (most recent call last):
    minigpt.errors.UnknownArgument: load() has no argument 'fp16': write dtype="float16"
    """
    for name in unknown:
        raise UnknownArgument(
            f"{function}() has no argument {name!r}: {advice.get(name) or _right_name(name, known)}"
        )


def _right_name(name: str, known: Collection[str]) -> str:
    meant, _, value = meant_by(name, known).partition("=")
    if value:
        return f'write {meant}="{value}"'
    if meant:
        return meant if " " in meant else f"it is {meant}"
    near = nearest(name, known)
    return f"did you mean {near}?" if near else f"there are {', '.join(known)}"

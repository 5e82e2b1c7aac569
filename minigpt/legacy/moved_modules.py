"""Modules of version 0.1 that have moved: who imports one by its old name reads where its contents are now."""

from __future__ import annotations

MOVED = {
    "alphabets": "tokenizer.byte_level",
    "comparison": "compare and minigpt.evaluation.diversity",
    "console": "generate",
    "explain": "sampler.token_trace",
    "figures": "cli.table",
    "files": "atomic",
    "last_word": "evaluation.lambada",
    "lattice": "sampler.lattice",
    "merges": "tokenizer.bpe",
    "plot": "interp.plots",
    "progress": "cli.progress",
    "sampler.chance": "sampler.engine.random_stream",
    "sampler.drafting": "sampler.engine.drafting",
    "sampler.plausible": "sampler.engine.contrast",
    "sampler.regex": "sampler.grammar",
    "sampler.search": "sampler.engine.beam_search",
    "sampler.sliding": "sampler.engine.sliding_window",
    "sampler.steps": "sampler.engine.decode_loop",
    "scoring": "evaluation.perplexity",
    "training.evaluate": "training.validation",
    "training.machine": "training.hardware",
    "training.processes": "training.distributed",
    "training.text": "data.documents",
    "training.tokens": "data.token_file",
    "training.windows": "data.windows",
    "vocabulary": "tokenizer.files",
    **{
        f"sampler.{strategy}": f"sampler.strategies.{strategy}"
        for strategy in (
            "beam", "beam_sample", "constrained", "contrastive", "contrastive_decoding", "diverse_beam", "dola",
            "greedy", "prompt_lookup", "sample", "speculative",
        )
    },
}  # fmt: skip


class MovedModules:
    """The last of `sys.meta_path`, asked for a module that no other finder has: it finds none, and says where to look."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        """Raises ModuleNotFoundError for a module that has moved; the arguments are those of every finder."""
        package, _, module = name.partition(".")
        if package == "minigpt" and module in MOVED:
            raise ModuleNotFoundError(f"{name} has moved: it is minigpt.{MOVED[module]}", name=name)

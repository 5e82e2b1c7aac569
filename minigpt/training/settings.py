"""The settings of a training run: each is an argument of `train`, a flag of `minigpt.train`, and a line of run.json."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from minigpt.atomic import replace_text
from minigpt.config import PUBLISHED, GPT2Config
from minigpt.json_files import expect, field, read_object, shown
from minigpt.options import Kind, check_options, documented, flag_of, option

RUN = "run.json"
# what run.json must say beside the settings
FACTS: dict[str, type] = {"train": str, "val": str, "dtype": str}
DTYPES = ("float32", "bfloat16")

# Shapes to learn with: a minute's, and that of the bundled model.
SMALL = {
    "tiny": GPT2Config(n_layer=4, n_head=4, n_embd=128, n_positions=128),
    "small": GPT2Config(n_layer=6, n_head=4, n_embd=256, n_positions=512),
}
SHAPES = {**SMALL, **PUBLISHED}
SHAPE_FLAGS = ("config", "n_layer", "n_head", "n_embd")


def _count(default: int | None, help: str, *, group: str, least: int = 1, **how: Any) -> Any:
    """An option that counts something: sizes are bounded by what can exist."""
    return option(default, help, group=group, kind=int, least=least, below=2**31, **how)


def _shapes() -> str:
    """The names of all shapes, with the sizes of those that are ours."""
    sizes = [
        f"{name} ({c.n_layer} layers, n_embd {c.n_embd}, context {c.n_positions})"
        for name, c in SMALL.items()
    ]
    return ", ".join([*sizes, *PUBLISHED])


def _are_strings(value: Any) -> bool:
    return isinstance(value, tuple) and all(isinstance(each, str) for each in value)


PATHS = Kind("a path or a name, or several", _are_strings, str, "FILE_OR_DIR")
TEACHER_WEIGHT = 0.5  # the text and the teachers count alike


@documented
@dataclass(frozen=True)
class Settings:
    """All settings; None where a default follows from others, until `with_defaults`.

    The fact `fixed` of an option says whether a run keeps it to its end (it does unless it says False); the others may be
    given anew with `--resume`.

    Raises:
        InvalidRequest: a value is of the wrong type or out of its range.
        ValueError: settings do not go together.
    """

    # fmt: off
    data: tuple[str, ...] = option((), "training data: .txt files (documents separated by lines <|endoftext|>), "
        ".jsonl files, or folders of them", group="data", kind=PATHS, nargs="+", fixed=False)
    val: str = option("0.05", "validation file, or the fraction of the text to hold out, in whole documents, the same "
        "for every --seed", group="data", metavar="FILE_OR_FRACTION", fixed=False)
    text_field: str = option("text", "the field of a .jsonl object that holds the text", group="data", metavar="NAME")
    separator: str | None = option(None, "the text that separates documents of .txt files, wherever it stands",
        group="data", kind=str, default_is="lines <|endoftext|>", metavar="TEXT")
    tokenizer: str | None = option(None, "a model's folder or name; bytes; or chars, the text's own characters",
        group="data", kind=str, default_is="the bundled model's, or that of --init", metavar="NAME_OR_DIR")
    token_cache: str | None = option(None, "where token files are kept", group="data", kind=str,
        default_is="~/.cache/minigpt/tokens", metavar="DIR", fixed=False)

    init: str | None = option(None, "fine-tune this model: bundled, a folder, or a hub name such as gpt2",
        group="model", kind=str, metavar="NAME_OR_DIR")
    config: str | None = option(None, f"a new model of this shape: {_shapes()}", group="model", kind=str,
        choices=SHAPES, default_is="tiny", metavar="NAME")
    n_layer: int | None = _count(None, "layers", group="model", default_is="those of --config")
    n_head: int | None = _count(None, "attention heads", group="model", default_is="those of --config")
    n_embd: int | None = _count(None, "embedding size", group="model", default_is="that of --config")
    context: int | None = _count(None, "context length in tokens", group="model", default_is="the model's")
    dropout: float = option(0.0, "dropout probability; 0.1 or more helps when training for many epochs", group="model",
        least=0, below=1, metavar="P")
    lora: int | None = _count(None, "train a low-rank adapter of this rank beside the frozen weights of --init; "
        "8 is usual", group="model", metavar="RANK")
    lora_alpha: float | None = option(None, "scale of the adapter: its product is multiplied by alpha / rank",
        group="model", kind=float, above=0, default_is="32", metavar="ALPHA")

    teacher: tuple[str, ...] = option((), "distil this model: learn its probabilities beside the text's next tokens; "
        "repeatable, for the mean of several models", group="model", kind=PATHS, collect=lambda names, _: tuple(names),
        metavar="NAME_OR_DIR")
    teacher_weight: float | None = option(None, "weight of the teachers in the loss; the text has the rest",
        group="model", kind=float, above=0, most=1, default_is=f"{TEACHER_WEIGHT:g}", metavar="W")

    steps: int = _count(2000, "optimizer steps, each of --batch-size x --accumulate sequences", group="training",
        fixed=False)
    batch_size: int = _count(12, "sequences per batch, over all processes", group="training")
    accumulate: int = _count(1, "gradient accumulation: batches per optimizer step", group="training")
    optimizer: str | None = option(None, "optimizer of the matrices inside the blocks; AdamW updates everything else",
        group="training", kind=str, choices=("adamw", "muon"),
        default_is="muon for a new model, adamw with --init or --shard", metavar="{adamw,muon}")
    lr: float | None = option(None, "peak learning rate", group="training", kind=float, least=0,
        default_is="6e-4 * 768 / n_embd from scratch, 1e-4 with --init, 5e-4 with --lora", metavar="LR")
    adamw_lr: float | None = option(None, "peak learning rate of AdamW beside Muon", group="training", kind=float,
        least=0, default_is="half of --lr", metavar="LR")
    schedule: str = option("cosine", "learning rate after the warm-up: cosine decay to zero, or wsd, constant with a "
        "decay at the end", group="training", choices=("cosine", "wsd"), metavar="{cosine,wsd}")
    warmup: int | None = _count(None, "warm-up steps", group="training", least=0, default_is="5% of steps")
    decay: int | None = _count(None, "with --schedule wsd: decay steps at the end", group="training", least=0,
        default_is="20% of steps", fixed=False)
    weight_decay: float = option(0.1, "weight decay, applied to weight matrices only", group="training", least=0)
    beta2: float = option(0.99, "AdamW beta2; 0.95 for large batches", group="training", least=0, below=1)
    seed: int = option(0, "random seed of weights, data order and dropout", group="training", least=0, below=2**63)
    dtype: str = option("auto", "autocast dtype; weights stay float32 (auto: bfloat16 where a one-second benchmark finds "
        "it faster)", group="training", choices=("auto", *DTYPES), metavar="{auto,float32,bfloat16}")

    eval_every: int = _count(250, "steps between validations", group="logging and checkpoints", fixed=False)
    eval_tokens: int = _count(200_000, "validation tokens per evaluation, spread evenly",
        group="logging and checkpoints")
    checkpoint_every: int = _count(250, "steps between checkpoints, from which --resume continues",
        group="logging and checkpoints", fixed=False)
    keep_every: int | None = _count(None, "also keep the weights of every N-th step, in steps/",
        group="logging and checkpoints", default_is="none", fixed=False)
    logger: str | None = option(None, "also write TensorBoard event files", group="logging and checkpoints", kind=str,
        choices=("tensorboard",), metavar="{tensorboard}", fixed=False)

    device: str = option("auto", "device; auto takes a GPU if there is one", group="hardware",
        choices=("auto", "cpu", "cuda", "mps"), metavar="{auto,cpu,cuda,mps}", fixed=False)
    threads: int | None = option(None, "CPU threads", group="hardware", kind=int, least=1, most=1024,
        default_is="one per core", metavar="N", fixed=False)
    compile: bool = option(False, "torch.compile the model: slow first step, faster after", group="hardware",
        fixed=False)
    gradient_checkpointing: bool = option(False, "recompute activations to save memory", group="hardware", fixed=False)
    shard: bool = option(False, "under torchrun: shard weights and optimizer over the processes (FSDP2)",
        group="hardware", fixed=False)
    # fmt: on

    def __post_init__(self) -> None:
        check_options(self)
        fraction = self.val_fraction
        if fraction is not None and not 0 < fraction < 1:
            raise ValueError(f"--val {self.val} must be a file, or a fraction above 0 and below 1")
        if self.init is not None:
            taken = [flag_of(name) for name in SHAPE_FLAGS if getattr(self, name) is not None]
            if taken:
                raise ValueError(
                    f"{', '.join(taken)}: the shape comes with --init; leave one or the other out"
                )
        elif self.lora is not None:
            raise ValueError("--lora adapts a pretrained model: add --init")
        if self.lora_alpha is not None and self.lora is None:
            raise ValueError(f"--lora-alpha {self.lora_alpha} scales an adapter: add --lora RANK")
        self._check_names()
        self._check_teachers()
        self._check_optimisation()

    def _check_names(self) -> None:
        for setting in ("data", "val", "tokenizer", "token_cache", "init", "teacher"):
            given = getattr(self, setting)
            if "" in (given if isinstance(given, tuple) else (given,)):
                raise ValueError(f"{flag_of(setting)} is an empty text: give a name, or leave it out")

    def _check_teachers(self) -> None:
        if self.teacher_weight is not None and not self.teacher:
            raise ValueError(f"--teacher-weight {self.teacher_weight} weighs a teacher: add --teacher MODEL")
        if twice := [name for name in self.teacher if self.teacher.count(name) > 1]:
            raise ValueError(f"--teacher {twice[0]} is given more than once: give it once")

    def _check_optimisation(self) -> None:
        if self.adamw_lr is not None and self.optimizer == "adamw":
            raise ValueError("--adamw-lr is the rate beside Muon: with --optimizer adamw, give --lr alone")
        if self.decay is not None and self.schedule != "wsd":
            raise ValueError(f"--decay {self.decay} belongs to --schedule wsd: add it, or leave --decay out")

    @property
    def val_fraction(self) -> float | None:
        """The fraction to hold out, if it is not a file's name."""
        return fraction_in(self.val)

    @property
    def data_paths(self) -> list[Path]:
        """The files and folders of --data."""
        return [Path(os.path.expanduser(name)) for name in self.data]

    def shape(self, vocab_size: int, end_token: int | None) -> GPT2Config:
        """The configuration of a new model.

        Raises:
            ValueError: the numbers do not fit together.
        """
        given = {name: getattr(self, name) for name in ("n_layer", "n_head", "n_embd")}
        given["n_positions"] = self.context
        base = replace(SHAPES[self.config or "tiny"], vocab_size=vocab_size, bos_token_id=end_token)
        base = replace(base, eos_token_id=end_token)
        return self.with_dropout(replace(base, **{k: v for k, v in given.items() if v is not None}))

    def with_dropout(self, config: GPT2Config) -> GPT2Config:
        return replace(config, resid_pdrop=self.dropout, embd_pdrop=self.dropout, attn_pdrop=self.dropout)

    def with_defaults(self, n_embd: int) -> Settings:
        """With every default that follows from other settings filled in."""
        # nanoGPT's at GPT-2's width; elsewhere as Yang et al. 2022 (arXiv:2203.03466) found it to go with width.
        scratch = min(5e-3, round(6e-4 * 768 / n_embd, 6))
        lr = scratch if self.init is None else 1e-4 if self.lora is None else 5e-4
        lr = lr if self.lr is None else self.lr
        whole = self.init is None and not self.shard
        optimizer = self.optimizer or ("muon" if whole else "adamw")
        beside = lr / 2 if optimizer == "muon" else None
        decay = self.steps // 5 if self.schedule == "wsd" else None
        return replace(
            self,
            teacher_weight=self.teacher_weight or (TEACHER_WEIGHT if self.teacher else None),
            optimizer=optimizer,
            lr=lr,
            adamw_lr=beside if self.adamw_lr is None else self.adamw_lr,
            warmup=self.steps // 20 if self.warmup is None else self.warmup,
            decay=decay if self.decay is None else self.decay,
        )

    def save(self, out: Path, facts: Mapping[str, Any]) -> None:
        """Writes run.json: the settings and further facts of the run."""
        replace_text(out / RUN, json.dumps({"settings": asdict(self), **facts}, indent=2) + "\n")

    def with_changes(self, given: Mapping[str, Any]) -> Settings:
        """These settings with those newly given that may change when a run is resumed.

        Raises:
            ValueError: a setting was given that cannot change; the message names it and both values.
        """
        for f in fields(self):
            before, after = getattr(self, f.name), given.get(f.name, getattr(self, f.name))
            # Which fraction of the text is held out decides what is learned; a file may have moved.
            fraction = f.name == "val" and (fraction_in(before), fraction_in(after)) != (None, None)
            if (f.metadata.get("fixed", True) or fraction) and before != after:
                raise ValueError(
                    f"{flag_of(f.name)} {_text(after)}: this run began with {_text(before)}, and keeps it to its end; "
                    "leave the flag out, or begin another run in another --out"
                )
        return replace(self, **given)


def _text(value: Any) -> Any:
    """A setting's value as messages show it."""
    return (", ".join(value) or None) if isinstance(value, tuple) else value


def fraction_in(val: str) -> float | None:
    """The fraction to hold out, if `val` is not a file's name."""
    try:
        return float(val)
    except ValueError:
        return None


def load(out: Path) -> tuple[Settings, dict[str, Any]]:
    """The settings of the run in a folder, and the other facts of its run.json.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        facts = read_object(out / RUN)
        values = field(dict, facts, "settings", RUN)
        # runs of version 0.1 had no other, and did not name it
        values = {"optimizer": "adamw", "teacher": [], **values}
        for name in ("data", "teacher"):
            texts = field(list, values, name, RUN)
            values[name] = tuple(expect(str, text, RUN, f"settings.{name}") for text in texts)
        for name, kind in FACTS.items():
            field(kind, facts, name, RUN)
        if facts["dtype"] not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {shown(facts['dtype'])}")
        field(dict, {"teachers": {}, **facts}, "teachers", RUN)
        del facts["settings"]
        settings = Settings(**values)
        # early runs of version 0.2, and those of 0.1, held out documents by their own seed
        facts.setdefault("held_out_seed", settings.seed)
        if field(int, facts, "held_out_seed", RUN) < 0:
            raise ValueError(f"held_out_seed must be at least 0, got {facts['held_out_seed']}")
        return settings, facts
    except (ValueError, TypeError) as error:
        raise ValueError(f"{out / RUN} is damaged ({error}): begin another run in another --out") from None

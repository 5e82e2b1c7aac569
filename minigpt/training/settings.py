"""The settings of a training run: each is an argument of `train`, a flag of `minigpt.train`, and a line of run.json."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import Field, asdict, dataclass, fields, replace
from dataclasses import field as dataclass_field
from pathlib import Path
from typing import Any

from minigpt.atomic import replace_text
from minigpt.config import PUBLISHED, GPT2Config
from minigpt.json_files import expect, field, read_object, shown

RUN = "run.json"
FACTS: dict[str, type] = {
    "train": str,
    "val": str,
    "dtype": str,
}  # what run.json must say beside the settings
DTYPES = ("float32", "bfloat16")

# Shapes to learn with: a minute's, and that of the bundled model.
SMALL = {
    "tiny": GPT2Config(n_layer=4, n_head=4, n_embd=128, n_positions=128),
    "small": GPT2Config(n_layer=6, n_head=4, n_embd=256, n_positions=512),
}
SHAPES = {**SMALL, **PUBLISHED}
SHAPE_FLAGS = ("config", "n_layer", "n_head", "n_embd")


def setting(
    default: Any,
    help: str,
    *,
    group: str,
    parse: Callable[[str], Any] = int,
    least: float | None = None,
    below: float | None = None,
    fixed: bool = True,
    **how: Any,
) -> Any:
    """A field that is a flag, too.

    Args:
        default: as of a dataclass field; None where it follows from other settings.
        help: one line for `--help`.
        group: the heading under which `--help` shows it.
        parse: one value from its text.
        least: the smallest value allowed.
        below: every value is less than this; counts are below 2**31 if nothing is said.
        fixed: a run keeps it to its end; the others may be given anew with `--resume`.
        how: whatever else argparse needs.
    """
    if below is None:
        below = 2**31 if parse is int else math.inf
    metadata = {"help": help, "group": group, "parse": parse, "least": least, "below": below, "how": how}
    return dataclass_field(default=default, metadata={**metadata, "fixed": fixed})


def _switch(help: str, *, group: str) -> Any:
    return setting(False, help, group=group, parse=bool, fixed=False, action="store_true")


@dataclass(frozen=True)
class Settings:
    """All settings; None where a default follows from others, until `settled`.

    Raises:
        ValueError: a number is out of its range.
    """

    # fmt: off
    data: tuple[str, ...] = setting((), "training data: .txt files (documents separated by lines <|endoftext|>), "
        ".jsonl files, or folders of them", group="data", parse=str, nargs="+", metavar="FILE_OR_DIR", fixed=False)
    val: str = setting("0.05", "validation file, or the fraction of documents to hold out (default: 0.05)",
        group="data", parse=str, metavar="FILE_OR_FRACTION", fixed=False)
    text_field: str = setting("text", "the field of a .jsonl object that holds the text (default: text)",
        group="data", parse=str, metavar="NAME")
    tokenizer: str | None = setting(None, "a model's folder or name; bytes; or chars, the text's own characters "
        "(default: the bundled model's, or that of --init)", group="data", parse=str, metavar="NAME_OR_DIR")
    token_cache: str | None = setting(None, "where token files are kept (default: ~/.cache/minigpt/tokens)",
        group="data", parse=str, metavar="DIR", fixed=False)

    init: str | None = setting(None, "fine-tune this model: bundled, a folder, or a hub name such as gpt2",
        group="model", parse=str, metavar="NAME_OR_DIR")
    config: str | None = setting(None, f"a new model of this shape: {', '.join(SHAPES)} (default: tiny)",
        group="model", parse=str, choices=list(SHAPES), metavar="NAME")
    n_layer: int | None = setting(None, "layers (default: those of --config)", group="model", metavar="N", least=1)
    n_head: int | None = setting(None, "attention heads", group="model", metavar="N", least=1)
    n_embd: int | None = setting(None, "embedding size", group="model", metavar="N", least=1)
    context: int | None = setting(None, "context length in tokens (default: the model's)", group="model",
        metavar="N", least=1)
    dropout: float = setting(0.0, "dropout probability; 0.1 or more helps when training for many epochs "
        "(default: 0)", group="model", parse=float, metavar="P", least=0, below=1)
    lora: int | None = setting(None, "train a low-rank adapter of this rank beside the frozen weights of --init",
        group="model", metavar="RANK", least=1)
    lora_alpha: float | None = setting(None, "scale of the adapter: its product is multiplied by alpha / rank "
        "(default: 32)", group="model", parse=float, metavar="ALPHA", least=0)

    steps: int = setting(2000, "optimizer steps (default: 2000)", group="training", metavar="N", least=1,
        fixed=False)
    batch_size: int = setting(12, "sequences per batch, over all processes (default: 12)", group="training", metavar="N",
        least=1)
    accumulate: int = setting(1, "gradient accumulation: batches per optimizer step (default: 1)", group="training", metavar="N", least=1)
    optimizer: str | None = setting(None, "optimizer of the matrices inside the blocks; AdamW updates everything else "
        "(default: muon for a new model, adamw with --init or --shard)", group="training", parse=str,
        choices=["adamw", "muon"])
    lr: float | None = setting(None, "peak learning rate (default: 6e-4 * 768 / n_embd from scratch, 1e-4 "
        "with --init, 5e-4 with --lora)", group="training", parse=float, metavar="LR", least=0)
    adamw_lr: float | None = setting(None, "peak learning rate of AdamW beside Muon (default: half of --lr)", group="training",
        parse=float, metavar="LR", least=0)
    schedule: str = setting("cosine", "learning rate after the warm-up: cosine decay to zero, or wsd, constant with a "
        "decay at the end (default: cosine)", group="training", parse=str, choices=["cosine", "wsd"])
    warmup: int | None = setting(None, "warm-up steps (default: 1/20 of steps)",
        group="training", metavar="N", least=0)
    decay: int | None = setting(None, "with --schedule wsd: decay steps at the end (default: 1/5 of steps)", group="training", metavar="N", least=0, fixed=False)
    weight_decay: float = setting(0.1, "weight decay, applied to weight matrices only (default: 0.1)", group="training",
        parse=float, metavar="X", least=0)
    beta2: float = setting(0.99, "AdamW beta2; 0.95 for large batches (default: 0.99)",
        group="training", parse=float, metavar="X", least=0, below=1)
    seed: int = setting(0, "random seed of weights, data order and dropout (default: 0)", group="training", metavar="N", least=0,
        below=2**63)
    dtype: str = setting("auto", "autocast dtype; weights stay float32 (auto: bfloat16 where a one-second "
        "benchmark finds it faster)", group="training", parse=str, choices=["auto", *DTYPES])

    eval_every: int = setting(250, "steps between validations (default: 250)", group="logging and checkpoints", metavar="N",
        least=1, fixed=False)
    eval_tokens: int = setting(200_000, "validation tokens per evaluation, spread evenly (default: 200000)",
        group="logging and checkpoints", metavar="N", least=1)
    checkpoint_every: int = setting(250, "steps between checkpoints, from which --resume continues (default: 250)",
        group="logging and checkpoints", metavar="N", least=1, fixed=False)
    keep_every: int | None = setting(None, "also keep the weights of every N-th step, in steps/ (default: none)",
        group="logging and checkpoints", metavar="N", least=1, fixed=False)
    logger: str | None = setting(None, "also write TensorBoard event files", group="logging and checkpoints", parse=str,
        choices=["tensorboard"], fixed=False)

    device: str = setting("auto", "device; auto takes a GPU if there is one", group="hardware", parse=str,
        choices=["auto", "cpu", "cuda", "mps"], fixed=False)
    threads: int | None = setting(None, "CPU threads (default: one per core)", group="hardware", metavar="N", least=1,
        below=1025, fixed=False)
    compile: bool = _switch("torch.compile the model: slow first step, faster after", group="hardware")
    gradient_checkpointing: bool = _switch("recompute activations to save memory", group="hardware")
    shard: bool = _switch("under torchrun: shard weights and optimizer over the processes (FSDP2)", group="hardware")
    # fmt: on

    def __post_init__(self) -> None:
        for f in fields(self):
            _check_value(f, getattr(self, f.name))
        share = self.val_share
        if share is not None and not 0 < share < 1:
            raise ValueError(f"--val {self.val} must be a file, or a fraction above 0 and below 1")
        if self.init is not None:
            taken = [flag_of(name) for name in SHAPE_FLAGS if getattr(self, name) is not None]
            if taken:
                raise ValueError(
                    f"{', '.join(taken)}: the shape comes with --init; leave one or the other out"
                )
        elif self.lora is not None:
            raise ValueError("--lora adapts a pretrained model: add --init")
        if self.lora_alpha is not None and (self.lora is None or self.lora_alpha == 0):
            raise ValueError(
                f"--lora-alpha {self.lora_alpha} must be above 0, and scales an adapter: add --lora RANK"
            )
        self._check_optimisation()

    def _check_optimisation(self) -> None:
        if self.optimizer == "muon" and self.shard:
            raise ValueError(
                "--shard splits every matrix over the processes, and Muon needs it whole: leave --shard out, "
                "or begin a run with --optimizer adamw"
            )
        if self.adamw_lr is not None and self.optimizer == "adamw":
            raise ValueError("--adamw-lr is the rate beside Muon: with --optimizer adamw, give --lr alone")
        if self.decay is not None and self.schedule != "wsd":
            raise ValueError(f"--decay {self.decay} belongs to --schedule wsd: add it, or leave --decay out")

    @property
    def val_share(self) -> float | None:
        """The fraction to hold out, if it is not a file's name."""
        return _share(self.val)

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

    def settled(self, n_embd: int) -> Settings:
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
            optimizer=optimizer,
            lr=lr,
            adamw_lr=beside if self.adamw_lr is None else self.adamw_lr,
            warmup=self.steps // 20 if self.warmup is None else self.warmup,
            decay=decay if self.decay is None else self.decay,
        )

    def save(self, out: Path, facts: Mapping[str, Any]) -> None:
        """Writes run.json: the settings and further facts of the run."""
        replace_text(out / RUN, json.dumps({"settings": asdict(self), **facts}, indent=2) + "\n")

    def resumed(self, given: Mapping[str, Any]) -> Settings:
        """These settings with those newly given that may change when a run is resumed.

        Raises:
            ValueError: a setting was given that cannot change; the message names it and both values.
        """
        for f in fields(self):
            before, after = getattr(self, f.name), given.get(f.name, getattr(self, f.name))
            # Which share of the text is held out decides what is learned; a file may have moved.
            share = f.name == "val" and (_share(before), _share(after)) != (None, None)
            if (f.metadata["fixed"] or share) and before != after:
                raise ValueError(
                    f"{flag_of(f.name)} {after}: this run began with {before}, and keeps it to its end; "
                    "leave the flag out, or begin another run in another --out"
                )
        return replace(self, **given)


def absolute_paths(given: Mapping[str, Any]) -> dict[str, Any]:
    """Some settings with every path made absolute, so that the run can be resumed from any folder.

    Names of models that are no folders, such as those on the hub, stay as they are.
    """
    values = dict(given)
    if "data" in values:
        values["data"] = tuple(map(_absolute, values["data"]))
    if "val" in values and _share(values["val"]) is None:
        values["val"] = _absolute(values["val"])
    for name in {"tokenizer", "init"} & values.keys():
        if os.path.isdir(os.path.expanduser(values[name])):
            values[name] = _absolute(values[name])
    if "token_cache" in values:
        values["token_cache"] = _absolute(values["token_cache"])
    return values


def _absolute(name: str) -> str:
    return os.path.abspath(os.path.expanduser(name))


def _share(val: str) -> float | None:
    """The fraction to hold out, if `val` is not a file's name."""
    try:
        return float(val)
    except ValueError:
        return None


def _check_value(f: Field[Any], value: Any) -> None:
    """Refuses a setting that is of another kind, none of its choices, or out of its range."""
    flag, least, below = flag_of(f.name), f.metadata["least"], f.metadata["below"]
    if f.name == "data" or (value is None and f.default is None):
        return
    expect(f.metadata["parse"], value, "settings", flag)
    choices = f.metadata["how"].get("choices", [value])
    if value not in choices:
        raise ValueError(f"{flag} must be one of {', '.join(choices)}, got {shown(value)}")
    # `not (a <= b)`, because NaN compares false with everything
    if least is not None and not least <= value < below:
        upper = "" if below == math.inf else f" and below {_plain(below)}"
        raise ValueError(f"{flag} must be at least {least:g}{upper}, got {shown(value)}")


def _plain(number: float) -> str:
    return f"{number:,}" if isinstance(number, int) else f"{number:g}"


def load(out: Path) -> tuple[Settings, dict[str, Any]]:
    """The settings of the run in a folder, and the other facts of its run.json.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        facts = read_object(out / RUN)
        values = field(dict, facts, "settings", RUN)
        texts = [expect(str, text, RUN, "settings.data") for text in field(list, values, "data", RUN)]
        for name, kind in FACTS.items():
            field(kind, facts, name, RUN)
        if facts["dtype"] not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {shown(facts['dtype'])}")
        del facts["settings"]
        values = {"optimizer": "adamw", **values}  # runs of version 0.1 had no other, and did not name it
        return Settings(**{**values, "data": tuple(texts)}), facts
    except (ValueError, TypeError) as error:
        raise ValueError(f"{out / RUN} is damaged ({error}): begin another run in another --out") from None


def flag_of(name: str) -> str:
    return "--" + name.replace("_", "-")

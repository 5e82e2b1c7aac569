"""Trains a GPT-2 from a text file: `python -m minigpt.train --data FILE --out DIR`."""

from __future__ import annotations

import argparse
import math
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigpt import cli
from minigpt.atomic import UNFINISHED
from minigpt.cli import BAD_FLAGS, DONE, FAILED, INTERRUPTED, NO_MODEL, OUT_OF_MEMORY, Failure
from minigpt.cli.model_flags import device as torch_device
from minigpt.cli.parser import Parser
from minigpt.training import settings as run_settings
from minigpt.training.settings import RUN, Settings, flag_of

if TYPE_CHECKING:
    from minigpt.training.run import Run

Tell = Callable[[str], None]

ABOUT = """Train a GPT-2 on your own text, from scratch or from a model that has learned already.

DIR then holds the last weights (what every command takes as --model DIR), in best/ those of the lowest
validation loss, metrics.jsonl, a loss curve, and checkpoints. Ctrl-C keeps what was done: --resume goes on from there,
as if nothing had happened.
"""

EXAMPLES = """examples:
  python -m minigpt.train --data tales.txt --out tales                       a tiny model, in minutes
  python -m minigpt.train --resume --out tales                               go on after Ctrl-C or a crash
  python -m minigpt.train --resume --out tales --steps 4000                  go on after its end
  python -m minigpt.train --data tales/ --out big --config small --steps 20000
  python -m minigpt.train --data plays.txt --out plays --init bundled        fine-tune the bundled model
  python -m minigpt.train --data plays.txt --out plays --init gpt2 --lora 8  fine-tune an adapter of GPT-2
  torchrun --nproc-per-node 2 -m minigpt.train --data tales.txt --out two    two processes, the same steps
"""

SAVES_MEMORY = "a smaller --batch-size with --accumulate, a smaller --context, or --gradient-checkpointing"


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run("train", together if "RANK" in os.environ else train, argv, SAVES_MEMORY)


def together(argv: Sequence[str]) -> int:
    """The whole command as one of several processes, which torchrun started."""
    from minigpt.training.distributed import report_first_failure

    with report_first_failure():
        return train(argv)


def train(argv: Sequence[str]) -> int:
    """The whole command: read the flags, make the run ready, run it."""
    args = parser().parse(argv)
    values = {f.name: _value(args, f.name) for f in fields(Settings)}
    # `is`, because 0 == False, and `--weight-decay 0` means something
    given = {name: value for name, value in values.items() if value is not None and value is not False}
    out = Path(args.out).expanduser()
    try:
        settings, facts = _begun(out, given) if _may_resume(args.resume, out) else (Settings(**given), {})
    except ValueError as error:
        raise Failure(BAD_FLAGS, error) from error
    _check(settings)

    if args.quiet:
        _hush()

    import torch

    from minigpt.training.distributed import joined
    from minigpt.training.prepare import prepare

    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    device = torch_device(settings.device)
    with joined(device) as processes:
        if not processes.first:
            warnings.simplefilter("ignore")  # the first one warns of the same
        if settings.shard and processes.world == 1:
            if "shard" in given:
                raise Failure(
                    BAD_FLAGS, "--shard splits a model over several processes: start them with torchrun"
                )
            settings = replace(settings, shard=False)  # a run that several began can go on in one

        def tell(text: str) -> None:
            if processes.first and not args.quiet:
                cli.note("train", text)

        if args.resume and not facts:
            tell(f"{out} holds no run to resume: beginning one")

        code = _go(lambda: prepare(settings, out, facts, device, processes, tell), bool(facts), tell)
        processes.wait()  # the first one writes longest, and when one ends by a stop, torchrun ends the others
        return code


def parser() -> Parser:
    usage = "python -m minigpt.train --data FILE_OR_DIR --out DIR [options]"
    exits = (DONE, FAILED, BAD_FLAGS, NO_MODEL, OUT_OF_MEMORY, INTERRUPTED)
    parser = Parser("train", exits, EXAMPLES, usage=usage, description=ABOUT)
    group = parser.add_argument_group("run")
    group.add_argument(
        "--out", required=True, metavar="DIR", help="the run's folder: new, or one to --resume"
    )
    group.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in --out")
    group.add_argument("--quiet", action="store_true", help="nothing on stderr but errors")
    groups: dict[str, Any] = {}
    for f in fields(Settings):
        title = f.metadata["group"]
        group = groups[title] = groups.get(title) or parser.add_argument_group(title)
        how = {"help": f.metadata["help"], **f.metadata["how"]}
        if "action" not in how:
            how["type"] = f.metadata["parse"]
        group.add_argument(flag_of(f.name), **how)
    return parser


def _value(args: argparse.Namespace, name: str) -> Any:
    value = getattr(args, name)
    return tuple(value) if isinstance(value, list) else value


def _may_resume(resume: bool, out: Path) -> bool:
    """Whether the folder holds a run to go on with; refuses what would write over something."""
    has_run = (out / RUN).is_file()
    if resume and has_run:
        return True
    if has_run:
        raise Failure(
            BAD_FLAGS, f"--out {out} holds a run already: go on with it by --resume, or name another folder"
        )
    if out.exists() and (not out.is_dir() or any(not p.name.startswith(UNFINISHED) for p in out.iterdir())):
        raise Failure(
            BAD_FLAGS, f"--out {out} holds something else: nothing is written over; name another folder"
        )
    return False


def _begun(out: Path, given: dict[str, Any]) -> tuple[Settings, dict[str, Any]]:
    settings, facts = run_settings.load(out)
    return settings.resumed(given), facts


def _check(settings: Settings) -> None:
    """Refuses what can be seen to be wrong without torch, which is slow to import."""
    if not settings.data:
        raise Failure(BAD_FLAGS, "--data FILE_OR_DIR is missing: what is to be learned?")
    if settings.logger is not None and find_spec("tensorboard") is None:
        raise Failure(
            BAD_FLAGS, "--logger tensorboard needs it installed: pip install 'minigpt[tensorboard]'"
        )


def _hush() -> None:
    from huggingface_hub.utils.tqdm import disable_progress_bars

    warnings.simplefilter("ignore")
    disable_progress_bars()  # ours are of the same kind


def _go(prepared: Callable[[], Run], begun: bool, tell: Tell) -> int:
    """The run, from its beginning or its newest checkpoint to its end or a stop.

    A function of its own, so that the run is gone when the processes part: DistributedDataParallel would
    otherwise be the last to hold gloo, and hang now and then, when it waits for gloo's thread, which waits
    for Python's lock (torch 2.13).
    """
    try:
        run = prepared()
    except OSError as error:
        raise Failure(NO_MODEL, error) from error
    except ValueError as error:
        raise Failure(BAD_FLAGS, error) from error
    if begun and not run.restore(tell):
        tell("no checkpoint yet: starting from the beginning")
    if run.finished:
        tell(f"{run.out} is finished, at step {run.progress.step}; to go on, give more --steps")
        return DONE
    return _run(run, tell)


def _run(run: Run, tell: Tell) -> int:
    from minigpt.training.run import Diverged

    try:
        finished = run.go()
    except Diverged as error:
        raise Failure(FAILED, error) from error
    except OSError as error:
        last = f"the checkpoint of step {run.saved} is good" if run.saved else "there is no checkpoint yet"
        raise Failure(FAILED, f"{error}; {last}: make room, then --resume") from error
    p = run.progress
    best = f", lowest validation loss {p.best:.4f}" if p.best < math.inf else ""
    tell(
        f"{'done' if finished else 'stopped'} at step {p.step}{best}; {run.out} holds the model"
        + ("" if finished else ", --resume goes on")
    )
    return DONE if finished else INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())

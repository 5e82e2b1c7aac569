"""The tables of the GPU benchmark, from what was measured."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

from pages import markdown

Times = dict[str, list[float]]  # seconds of each side, round by round

# pytorch-labs/gpt-fast, README.md at 0f925b5: tokens a second at batch size 1 with 7 billion weights, on an A100 of 80 GB
# limited to 330 W, and the gigabytes a second that they are; its authors found "about 1700 GB/s" there.
GPT_FAST = ((104.9, 1397.31, "16-bit"), (155.58, 1069.20, "8-bit"))
GPT_FAST_BANDWIDTH = 1700
REFERENCE = "transformers"


def report(measured: dict[str, Any]) -> str:
    """The section as Markdown, whatever parts there are."""
    parts = []
    if measured["decoding"]:
        parts += [decoding_table(measured), gpt_fast()]
    if any(measured["batches"].values()):
        parts.append(batch_table(measured))
    if measured["training"]:
        parts.append(training_table(measured))
    parts += [*not_measured(measured), caption(measured)]
    return "\n\n".join(parts) + "\n"


def decoding_table(measured: dict[str, Any]) -> str:
    """Tokens a second of one text, and the share of the bandwidth that reading all weights for each takes."""
    by_shape: dict[str, Times] = measured["decoding"]
    names = sides(by_shape)
    n_new = measured["sizes"]["new"]
    rows = []
    for shape, times in by_shape.items():
        cells = []
        for name in names:
            speed = n_new / statistics.median(times[name]) if name in times else None
            share = speed and speed * measured["needs"][shape]["bytes"] / measured["machine"]["bandwidth"]
            cells.append(f"{speed:,.0f} ({share:.0%})" if speed else "")
        rows.append([shape, *cells])
    return markdown(["one text, tokens/s (share of the bandwidth)", *names], rows)


def sides(measured: dict[str, Times]) -> list[str]:
    """All that were measured anywhere, minigpt first."""
    names = dict.fromkeys(name for times in measured.values() for name in times)
    return sorted(names, key=lambda name: name.startswith(REFERENCE))


def gpt_fast() -> str:
    """What gpt-fast has published of its own shares."""
    shares = ", ".join(
        f"{bandwidth / GPT_FAST_BANDWIDTH:.0%} with {kind} weights ({speed:g} tokens/s)"
        for speed, bandwidth, kind in GPT_FAST
    )
    return (
        f"For comparison, gpt-fast's published shares for Llama-2-7B, of the {GPT_FAST_BANDWIDTH} GB/s that its authors "
        f"measured on an A100: {shares} ([its README](https://github.com/pytorch-labs/gpt-fast#benchmarks)). The "
        "larger a model, the easier is a high share."
    )


def batch_table(measured: dict[str, Any]) -> str:
    """Tokens a second of all rows together."""
    by_rows: dict[str, Times] = measured["batches"]
    names = sides(by_rows)
    n_new = measured["sizes"]["batch_new"]
    rows = (
        [n, *(speed_and_ratio(times, name, int(n) * n_new) for name in names)] for n, times in by_rows.items()
    )
    return markdown(["gpt2, texts side by side, tokens/s (ratio to transformers, range)", *names], rows)


def training_table(measured: dict[str, Any]) -> str:
    """Tokens a second, and the share of what the GPU can multiply."""
    times: Times = measured["training"]
    machine, sizes = measured["machine"], measured["sizes"]
    tokens = sizes["steps"] * sizes["batch_size"] * sizes["context"]
    flops = measured["needs"]["gpt2"]["flops"]
    rows = []
    for name in times:
        rate = flops * tokens / statistics.median(times[name])
        mfu = f"{rate / machine['peak']:.1%}" if machine["peak"] else ""
        of_product = f"{rate / machine['product']:.1%}"
        rows.append([name, speed_and_ratio(times, name, tokens), mfu, of_product])
    head = ["gpt2, training", "tokens/s (ratio to transformers, range)", "MFU", "of the measured product"]
    return markdown(head, rows)


def speed_and_ratio(times: Times, name: str, tokens: int) -> str:
    """A cell; the ratio is the median of the rounds' ratios."""
    if name not in times:
        return ""
    cell = f"{tokens / statistics.median(times[name]):,.0f}"
    if name != REFERENCE and REFERENCE in times:
        found = sorted(b / a for a, b in zip(times[name], times[REFERENCE], strict=False))
        cell += f" (**{statistics.median(found):.2f}**, {found[0]:.2f} to {found[-1]:.2f})"
    return cell


def not_measured(measured: dict[str, Any]) -> Iterator[str]:
    missing: dict[str, str] = measured["missing"]
    if missing:
        by_reason: dict[str, list[str]] = {}
        for what, why in missing.items():
            by_reason.setdefault(why, []).append(what)
        reasons = (f"- {why}: {'; '.join(what)}" for why, what in by_reason.items())
        yield "Not measured, or not in every round:\n\n" + "\n".join(reasons)


def caption(measured: dict[str, Any]) -> str:
    """How and on what it was measured."""
    machine, sizes = measured["machine"], measured["sizes"]
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items() if number)
    peak = f", {machine['peak'] / 1e12:.0f} of which its maker promises" if machine["peak"] else ""
    driver = f", driver {machine['driver']}" if machine["driver"] else ""
    cuda = f", CUDA {machine['cuda']}" if machine["cuda"] else ""
    return (
        f"bfloat16, random weights; prompts of {sizes['prompt']} tokens and {sizes['new']} new ones for one text, "
        f"{sizes['batch_new']} side by side, greedy; training with AdamW under autocast, batches of "
        f"{sizes['batch_size']} x {sizes['context']} tokens, no dropout. Medians of {sizes['rounds']} rounds, all sides in "
        f"turn; {machine['device']}{driver}{cuda}, {machine['bandwidth'] / 1e9:,.0f} GB/s in a copy (read and written) and "
        f"{machine['product'] / 1e12:.0f} TFLOP/s in a product of 8,192 x 8,192{peak}; {versions}, Python "
        f"{machine['python']}; {machine['date']}, by `python scripts/bench_gpu.py`."
    )

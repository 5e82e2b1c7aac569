"""What a check found, as a row of a table for people and as a JSON object for programs."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

Verdict = Literal["ok", "failed", "not checked"]


@dataclass(frozen=True)
class Check:
    """One comparison: what with what, how far apart they are at most, how far they may be, and the verdict.

    `detail` says which layer, point, tensor or text differs first, or why nothing was checked.
    """

    name: str
    verdict: Verdict
    detail: str = ""
    difference: float | None = None
    bound: float | None = None


def passed(name: str, detail: str = "") -> Check:
    return Check(name, "ok", detail)


def failed(name: str, detail: str) -> Check:
    return Check(name, "failed", detail)


def not_checked(name: str, why: str) -> Check:
    return Check(name, "not checked", why)


def with_finite_numbers(check: Check) -> Check:
    """The check itself; failed where what was compared is NaN or infinite, which no bound allows.

    >>> with_finite_numbers(Check("logits", "ok", difference=math.inf, bound=math.inf)).verdict
    'failed'
    """
    figures = [figure for figure in (check.difference, check.bound) if figure is not None]
    if check.verdict != "ok" or all(map(math.isfinite, figures)):
        return check
    return replace(check, verdict="failed", detail="the numbers are not finite: is a weight NaN or infinite?")


def first_difference(a: Sequence[object], b: Sequence[object]) -> int | None:
    """The first place in which two sequences differ, or where the shorter one ends; None if they are the same.

    >>> first_difference([1, 2, 3], [1, 2, 4]), first_difference("king", "kings"), first_difference([], [])
    (2, 4, None)
    """
    shorter = min(len(a), len(b))
    place = next((i for i in range(shorter) if a[i] != b[i]), shorter)
    return None if place == len(a) == len(b) else place


def rows(checks: Sequence[Check]) -> list[list[str]]:
    """The table: a heading, and a row a check.

    >>> for row in rows([Check("logits", "ok", difference=2.5e-6, bound=1e-4), not_checked("hashes", "none known")]):
    ...     print(row)
    ['what was compared', 'largest difference', 'bound', 'verdict']
    ['logits', '2.5e-06', '1.0e-04', 'ok']
    ['hashes', '', '', 'not checked']
    """
    heading = ["what was compared", "largest difference", "bound", "verdict"]
    return [
        heading,
        *([one.name, _figure(one.difference), _figure(one.bound), one.verdict] for one in checks),
    ]


def remarks(checks: Sequence[Check]) -> list[str]:
    """A line for each check that failed or was not made, the failures first."""
    noted = [one for one in checks if one.verdict != "ok"]
    return [
        f"{one.verdict}: {one.name}: {one.detail}"
        for one in sorted(noted, key=lambda c: c.verdict != "failed")
    ]


def conclusion(model: str, checks: Sequence[Check]) -> str:
    """What the checks say of a model, in one line.

    >>> conclusion("bundled", [passed("logits"), not_checked("hashes", "none known")])
    'bundled computes what its files say: 1 ok, 1 not checked'
    """
    counts = {verdict: sum(one.verdict == verdict for one in checks) for verdict in get_args(Verdict)}
    says = "does not compute" if counts["failed"] else "computes"
    shown = ", ".join(f"{n} {verdict}" for verdict, n in counts.items() if n)
    return f"{model} {says} what its files say: {shown}"


def as_json(model: str, checks: Sequence[Check]) -> str:
    """One object; a difference that is infinite or NaN is null."""
    facts: list[dict[str, Any]] = []
    for one in checks:
        fields = asdict(one)
        if one.difference is not None and not math.isfinite(one.difference):
            fields["difference"] = None
        facts.append(fields)
    ok = all(one.verdict != "failed" for one in checks)
    return json.dumps({"model": model, "ok": ok, "checks": facts}, ensure_ascii=False) + "\n"


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}"

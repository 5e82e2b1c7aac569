"""What users read is in the field's standard terms: the worst of what had to be guessed at does not return."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import minigpt

PACKAGE = Path(minigpt.__file__).parent
ROOT = PACKAGE.parent
OURS = [  # what to write instead stands behind each
    r"\bdraws? lots\b",  # samples
    r"\bby lot\b",  # sampled
    r"\bof many minds\b",  # where entropy is high
    r"\bsurer of itself\b",  # lower temperature
    r"\blikings\b",  # log-probabilities
    r"\bcarried along\b",  # kept as hypotheses
    r"\bguess(es)? ahead\b",  # drafts
    r"\bso many times the work\b",  # N x compute
    r"\bwhat it cost\b",  # timing and memory
    r"\btold of\b",  # reported
    r"\bhalf a character\b",  # an incomplete character
    r"\bwrites? a tale\b",  # generates a sample
    r"\bis no number\b",  # is NaN or infinite
    r"\bwho may look at whom\b",  # causal mask
    r"\bwords? by lot\b",
    r"\bone voice\b",  # report the first failure
    r"\btext to learn\b(?! \()",  # training data
    r"\bagainst the grain\b",  # always picks the rank-N token
    r"\bwidth of (the|a) (beam|head)\b",  # num_beams, head dimension
    r"\bknows? (it|them|one) by heart\b",
    r"\bnothing is left to chance\b",  # decoding is deterministic
    r"\bgreat(est)? likeness\b",  # cosine similarity
    r"\bhang together\b",  # a beam refers to a parent that does not exist
    r"\bstands? behind is\b",  # may only continue
    r"\bof GPT-2's kind\b",  # GPT-2-style
    r"\bhis coefficient\b",
    r"\bdraws? freely\b",  # samples
    r"\bnot told apart\b",  # not significant
    r"\bwindows at once\b",  # sequences per batch
    r"\bthen a cosine\b",  # cosine decay
    r"\bup to the order of sums\b",  # floating-point summation order
    r"\btaking turns\b",  # interleaved
    r"\bwhole or not at all\b",  # atomically
    r"\btimes the work\b",  # compute
    r"\bprompts continued at once\b",  # prompts per batch
    r"\bgoes on where it stood\b",  # resumes
    r"\bbears no mark\b",  # is not watermarked
]
SOURCES = [
    path
    for folder in ("scripts", "tests")
    for path in (ROOT / folder).rglob("*.py")
    if path != Path(__file__)
]
FILES = [*PACKAGE.rglob("*.py"), *ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *SOURCES]


@pytest.mark.parametrize("phrase", OURS)
def test_nobody_has_to_translate(phrase: str) -> None:
    pattern = re.compile(phrase, re.IGNORECASE)
    found = [
        f"{file.relative_to(ROOT)}:{number}"
        for file in FILES
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1)
        if pattern.search(line)
    ]
    assert not found

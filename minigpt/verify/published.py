"""What others published for models whose weights are known by their hash."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from minigpt.hub import sha256
from minigpt.sampler import Greedy, generate
from minigpt.verify.files import KNOWN_WEIGHTS
from minigpt.verify.report import Check, failed, not_checked, passed

if TYPE_CHECKING:
    from minigpt.model import GPT2
    from minigpt.tokenizer import Tokenizer

# transformers' documentation of `compute_transition_scores`, which shows three digits
TODAY_IS = {262: -1.414, 1110: -2.609, 618: -2.010, 356: -1.859, 460: -2.508}
TURING = "Alan Turing theorized that computers would one day become"  # the README of picoGPT
TURING_GOES_ON = " the most powerful machines on the planet.\n\nThe computer is a machine that can perform complex calculations"
ROUNDED = 2e-3  # published to three digits, and computed in float32 by others


def check_published(model: GPT2, tokenizer: Tokenizer | None, weights: list[Path]) -> Iterator[Check]:
    """Greedy text and log-probabilities of the 124M model, if it is this one."""
    name = "published values"
    if {sha256(file) for file in weights} - set(KNOWN_WEIGHTS):
        yield not_checked(name, "there are none for weights with this hash")
    elif tokenizer is None:
        yield not_checked(name, "there is no tokenizer to read their prompts with")
    else:
        yield from _gpt2(model, tokenizer)


def _gpt2(model: GPT2, tokenizer: Tokenizer) -> Iterator[Check]:
    name = 'published log-probabilities after "Today is"'
    ((best,),) = generate(model, [tokenizer.encode("Today is")], Greedy(), max_new_tokens=len(TODAY_IS))
    if best.tokens != list(TODAY_IS):
        yield failed(name, f"the tokens are {best.tokens}, published {list(TODAY_IS)}")
    else:
        off = max(abs(a - b) for a, b in zip(best.logprobs, TODAY_IS.values(), strict=True))
        yield Check(name, "ok" if off <= ROUNDED else "failed", f"they are {best.logprobs}", off, ROUNDED)
    name = 'published greedy text after "Alan Turing theorized ..."'
    ((best,),) = generate(model, [tokenizer.encode(TURING)], Greedy(), max_new_tokens=40)
    text = tokenizer.decode(best.tokens)
    yield passed(name) if text.startswith(TURING_GOES_ON) else failed(name, f"it goes on {text!r}")

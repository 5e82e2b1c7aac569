"""Diverse beam search: groups of beams with a Hamming diversity penalty."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import zip_longest

from minigpt.errors import InvalidRequest
from minigpt.json_files import counted
from minigpt.lazy import Tensor, torch
from minigpt.options import option
from minigpt.sampler.engine.beam_search import Hypothesis, Search
from minigpt.sampler.events import Request
from minigpt.sampler.strategies.beam import Beam, num_beams_option, same_options
from minigpt.sampler.strategy import MOST_TEXTS

# Shapes below:  R live beams of one prompt, in all groups · B those of one group · V vocabulary · S tokens of a text


@dataclass(frozen=True, kw_only=True)
class DiverseBeam(Beam):
    """Beam search in groups that are penalized for equal tokens: texts that differ in more than their endings.

    The `num_beams` beams are shared among `num_beam_groups`, each a beam search of its own. At every step the
    groups go one after the other, and a token's log-probability loses `diversity_penalty` for each beam of
    the groups before that has just chosen it; then the other processors act. What was lost stays in the
    text's score. The result has the best text of every group before the second best of any.

    Source: Vijayakumar et al. 2018 (diverse beam search), section 4, with the Hamming diversity of section 5.1.
    """

    num_beams: int = num_beams_option(4)
    num_beam_groups: int = option(
        2, "number of groups of diverse beam search", group="beams", least=1, most=MOST_TEXTS
    )
    diversity_penalty: float = option(
        0.5, "diversity penalty per token, for each beam of earlier groups that chose it; 0.2 to 0.8 is usual",
        group="beams", least=0, most=1e6, metavar="F",
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_beams % self.num_beam_groups:
            raise InvalidRequest(
                f"num_beam_groups (--num-beam-groups) must divide num_beams (--num-beams): {self.num_beam_groups} groups"
                f" cannot share {counted(self.num_beams, 'beams')} evenly"
            )

    def new_search(self, prompt_index: int, request: Request) -> Search:
        each = self.num_beams // self.num_beam_groups
        group = replace(same_options(self, Beam), num_beams=each, num_return_sequences=1)
        groups = [Search(group, prompt_index, request, group=i) for i in range(self.num_beam_groups)]
        return GroupSearch(self, prompt_index, request, groups=groups, penalty=self.diversity_penalty)


@dataclass
class GroupSearch(Search):
    """The searches of one prompt's groups as one: their beams one group after the other, their texts pooled."""

    groups: list[Search] = field(kw_only=True)
    penalty: float = field(kw_only=True)
    rows: list[int] = field(default_factory=list)  # for each group's beams in turn, the row that they read
    chosen: list[int] = field(default_factory=list)  # the last tokens of the groups that went before

    def __post_init__(self) -> None:
        self.rows = [0] * len(self.groups)  # the prompt is read once for all
        for group in self.groups:
            group.first = (self.diversity,)

    def step(self, logits: Tensor) -> None:
        self.chosen = []
        self.live, self.ended, first = [], [], 0
        for group in self.groups:
            if not group.done:
                rows = self.rows[first : first + len(group.live)]
                first += len(rows)
                group.step(logits[rows])
                # A text that ended by itself has left its place to another, one at the limit has not.
                full = [
                    hypothesis
                    for hypothesis in group.ended
                    if hypothesis.finish_reason == self.request.limit_reason
                ]
                self.chosen += [hypothesis.tokens[-1] for hypothesis in (*group.live, *full)]
                self.live += [replace(beam, parent=rows[beam.parent]) for beam in group.live]
                self.ended += [
                    replace(hypothesis, parent=rows[hypothesis.parent]) for hypothesis in group.ended
                ]
        pooled = [hypothesis for group in self.groups for hypothesis in group.finished]
        self.finished = sorted(pooled, key=lambda hypothesis: -hypothesis.score)
        self.rows = list(range(len(self.live)))
        self.done = all(group.done for group in self.groups)

    def winners(self) -> list[Hypothesis]:
        """The best text of each group before a second of any, ordered by their scores."""
        places = zip_longest(*(group.finished for group in self.groups))
        rounds = [sorted(filter(None, place), key=lambda hypothesis: -hypothesis.score) for place in places]
        chosen = [hypothesis for place in rounds for hypothesis in place][: self.beam.num_return_sequences]
        return sorted(chosen, key=lambda hypothesis: -hypothesis.score)

    def diversity(self, logits: Tensor, tokens: Tensor) -> Tensor:
        """A processor: what the groups before have just chosen becomes less likely.

        Shapes: (B, V), (B, S)  ->  (B, V)
        """
        chosen = torch.tensor(self.chosen, dtype=torch.long, device=logits.device)
        times = chosen.bincount(minlength=logits.size(-1))  # (V,)
        return logits - self.penalty * times

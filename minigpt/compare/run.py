"""Running the methods one after the other; what is done stays, whatever happens to the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from minigpt.cli.progress import late_bar
from minigpt.compare.measuring import Measure
from minigpt.compare.methods import Method
from minigpt.compare.report import HUMAN, Row
from minigpt.compare.settings import CompareSettings
from minigpt.compare.writing import write
from minigpt.errors import InvalidRequest
from minigpt.sampler.strategy import Strategy
from minigpt.tokenizer import Tokenizer


@dataclass
class Comparison:
    """The methods at work: the rows that are done, and why a method has none."""

    settings: CompareSettings
    tokenizer: Tokenizer
    measure: Measure
    rows: list[Row] = field(default_factory=list)
    failures: dict[str, InvalidRequest] = field(default_factory=dict)
    interrupted: bool = False

    def run(self, methods: Sequence[tuple[Method, Strategy]]) -> None:
        """Runs and measures one method after the other, or until Ctrl-C."""
        n_texts = len(self.measure.prompts) * len(methods)
        try:
            with late_bar(total=n_texts, unit="text") as bar:
                self._add_human()
                for method, strategy in methods:
                    bar.set_description(method.name)
                    self._add(method, strategy, bar.update)
        except KeyboardInterrupt:
            self.interrupted = True

    def _add(self, method: Method, strategy: Strategy, report: Callable[[int], object]) -> None:
        sizes = (self.settings.max_new_tokens, self.settings.batch_size)
        try:
            output = write(self.measure.model, self.measure.prompts, strategy, *sizes, report)
            metrics = self.measure.metrics(output.tokens) | self.measure.likeness(output.tokens) | output.cost
        except InvalidRequest as error:  # the options rule out every token, or the judge lacks a character
            self.failures[method.name] = error
            return
        self.rows.append(
            Row(method.name, method.flags, method.strategy_name, metrics, self._texts(output.tokens))
        )

    def _add_human(self) -> None:
        if humans := self.measure.humans:
            self.rows.append(Row(HUMAN, None, None, self.measure.metrics(humans), self._texts(humans)))

    def _texts(self, texts: list[list[int]]) -> list[str]:
        return [self.tokenizer.decode(self.measure.body(text)) for text in texts]

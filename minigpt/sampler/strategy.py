"""What every decoding strategy is, and the options that all of them share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import Field, dataclass, fields
from typing import TYPE_CHECKING, Any, Self

from minigpt.errors import UnknownArgument
from minigpt.json_files import shown
from minigpt.options import Option, arguments, check_options, option, options_of
from minigpt.right_names import meant_by, nearest
from minigpt.sampler.engine.random_stream import RandomStream
from minigpt.sampler.events import Event, LanguageModel, Request
from minigpt.sampler.processors.order import CommonOptions, SamplingOptions, chain
from minigpt.sampler.processors.processor import Processor, Stage, TextContext

if TYPE_CHECKING:
    from minigpt.sampler.engine.reader import RowReader

MOST_TEXTS = 65_536  # of one prompt, beams or samples

ARGUMENTS = ("end_tokens", "max_new_tokens", "overflow", "stop", "stride", "top_logprobs")  # of `generate`
# What to write for options that a strategy does not have.
ADVICE = {
    **dict.fromkeys(
        ("num_beams", "length_penalty", "early_stopping"), "it is an option of beam search: of Beam, for one"
    ),
    "num_return_sequences": "it is an option of Sample and of Beam",
    "do_sample": "Sample samples, Greedy does not",
    "heal": "it is an argument of minigpt.complete",
}


def num_return_sequences_option() -> Any:
    """The option of every strategy that may give several texts for a prompt."""
    help_text = "number of texts for each prompt; without --num-beams they are sampled"
    in_python = "number of texts for each prompt"
    return option(1, help_text, in_python=in_python, group="beams", least=1, most=MOST_TEXTS)


@dataclass(frozen=True)
class SecondModel:
    """A model that a strategy uses beside the one that it decodes.

    `optional` is one that changes no text: what it cannot read is decoded without it.
    """

    option: str  # the name of the option that holds it
    model: LanguageModel
    optional: bool = False


@dataclass(frozen=True, kw_only=True, repr=False)
class Strategy(CommonOptions, ABC):
    """A way of decoding. Its fields are its options, `decode` is the whole method.

    A new strategy is one new file in `strategies/`, with one subclass of this; the file's name is its name
    on the command line, the first line of its docstring is its help.
    """

    def __init_subclass__(cls) -> None:
        """Lets `help()` show the options, and the repr only what differs from the defaults."""
        super().__init_subclass__()
        own: dict[str, Option] = {
            name: value.metadata["option"]
            for name, value in vars(cls).items()
            if isinstance(value, Field) and "option" in value.metadata
        }
        inherited = [options_of(base) for base in cls.__bases__ if hasattr(base, "__dataclass_fields__")]
        merged = {name: option for options in (own, *inherited) for name, option in options.items()}
        cls.__doc__ = f"{cls.__doc__ or ''}\n{arguments({**merged, **own})}"
        if "__repr__" not in vars(cls):
            cls.__repr__ = Strategy.__repr__  # type: ignore[method-assign]  # before @dataclass makes one

    def __new__(cls, *unnamed: Any, **options: Any) -> Self:
        """Answers options that it does not have, or that have no name, with those that may be meant."""
        if unnamed:
            raise UnknownArgument(
                f"{cls.__name__} takes its options by name, got {shown(unnamed[0])}: write name=value; help({cls.__name__})"
                " lists the names"
            )
        for name in options.keys() - {field.name for field in fields(cls)}:
            raise UnknownArgument(f"{cls.__name__} has no option {name}: {_advice(cls, name)}")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        check_options(self)
        # Processors of its own check their parameters.
        chain(self, Request((0,), max_new_tokens=1, end_tokens=frozenset([0])))

    def __repr__(self) -> str:
        changed = (
            f"{field.name}={getattr(self, field.name)!r}"
            for field in fields(self)
            if getattr(self, field.name) != _default(field)
        )
        return f"{type(self).__name__}({', '.join(changed)})"

    def own_processors(self, context: TextContext) -> Iterable[tuple[type[Stage], Processor]]:
        """Processors that this strategy brings along, each with the step of the order before which it acts.

        They take part in everything that processors do. `(Temperature, mine)` acts after all penalties,
        whether or not there is a temperature; see `minigpt.sampler.processors.order`.
        """
        return ()

    def random_stream(self, request: Request, index: int) -> RandomStream | None:
        """The random numbers that text `index` of a prompt is sampled by; None takes the most likely tokens."""
        return None

    def models(self) -> Sequence[SecondModel]:
        """The models that it uses beside the one that it decodes, for `run` to check and to put into inference."""
        return ()

    @property
    def n_texts(self) -> int:
        """How many texts it returns for each prompt."""
        n: int = getattr(self, "num_return_sequences", 1)
        return n

    @property
    def seed_in_use(self) -> int | None:
        """Its random seed, given or taken at random; None if it is a strategy that has none."""
        seed: int | None = getattr(self, "seed", None)
        return seed

    def row_reader(self, model: LanguageModel) -> RowReader | None:
        """What reads many prompts, whose rows are replaced one by one; None decodes them in plain batches.

        It is for strategies that do no more than choose one token after another from what is read.
        """
        return None

    @abstractmethod
    def decode(self, model: LanguageModel, requests: Sequence[Request]) -> Iterator[Event]:
        """Yields tokens as soon as they are final, and each prompt's texts when they are finished."""


def _default(field: Field[Any]) -> Any:
    return field.default_factory() if callable(field.default_factory) else field.default


def _advice(kind: type[Strategy], name: str) -> str:
    known = [field.name for field in fields(kind)]
    meant = (
        name
        if name in ADVICE
        else meant_by(name, [*known, *ARGUMENTS, *ADVICE, *options_of(SamplingOptions)]) or name
    )
    if meant in known:
        return f"it is called {meant}"
    if meant in ARGUMENTS:
        return f"it is an argument of complete and generate{f': {meant}' * (meant != name)}"
    if meant in ADVICE:
        return ADVICE[meant]
    if meant in options_of(SamplingOptions):
        return f"it is an option of strategies that sample: Sample({meant}=...), or BeamSample({meant}=...)"
    near = nearest(name, known)
    return f"did you mean {near}?" if near else f"help({kind.__name__}) lists what there is"

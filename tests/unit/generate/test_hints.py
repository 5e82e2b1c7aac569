"""Remarks on what is probably not meant."""

from __future__ import annotations

import minigpt
from minigpt.generate.hints import same_texts
from minigpt.generate.session import Result
from minigpt.sampler import Completion
from minigpt.sampler.text import with_text


def test_texts_that_read_the_same_in_other_tokens() -> None:
    tokenizer = minigpt.Tokenizer.from_pretrained()
    whole, in_parts = tokenizer.encode(" there"), [*tokenizer.encode(" the"), *tokenizer.encode("re")]
    other = tokenizer.encode(" now")
    assert whole != in_parts

    def remarks(*texts: tuple[int, list[int]], stop: tuple[str, ...] = ()) -> list[str]:
        completions = [Completion(tokens, [0.0] * len(tokens), 0.0, "length") for _, tokens in texts]
        results = [
            Result(prompt, place, with_text(completion, tokenizer, tokenizer.stop_strings(*stop)))
            for place, ((prompt, _), completion) in enumerate(zip(texts, completions, strict=True))
        ]
        return list(same_texts(results))

    assert remarks((0, whole), (0, other), (0, in_parts)) == [
        "text 2 of prompt 0 is text 0 again, in other tokens: ask for more texts if there are too few"
    ]
    assert remarks((0, whole), (1, in_parts)) == []  # of different prompts
    assert remarks((0, whole), (0, whole)) == []  # as sampling may find it
    assert len(remarks((0, [*whole, *other]), (0, [*in_parts, *other]), stop=(" now",))) == 1

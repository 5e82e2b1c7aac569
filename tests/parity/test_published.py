"""The published models: at their real shapes with random weights (slow), and the real ones (hub)."""

import gc

import pytest
import torch
from reference import reference
from transformers import GPT2LMHeadModel

import minigpt
from minigpt import GPT2
from minigpt.config import PUBLISHED
from minigpt.sampler import Beam, generate


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_logits_at_the_published_shapes(name, tmp_path):
    config = PUBLISHED[name]
    shape = {"n_embd": config.n_embd, "n_layer": config.n_layer, "n_head": config.n_head}
    theirs = reference(spread=0.02, vocab_size=50257, n_positions=1024, **shape)
    tokens = torch.randint(50257, (2, 64))
    with torch.no_grad():
        expected = theirs(tokens).logits
    theirs.save_pretrained(tmp_path)
    del theirs
    gc.collect()  # gpt2-xl twice would not fit a small machine
    ours = GPT2.from_pretrained(tmp_path)
    with torch.no_grad():
        assert float((ours(tokens) - expected).abs().max()) <= 1e-4


@pytest.fixture(scope="module")
def gpt2():
    return minigpt.load("openai-community/gpt2")


def text_after(gpt2, prompt: str, **limits) -> str:
    model, tokenizer = gpt2
    ((best,),) = generate(model, [tokenizer.encode(prompt)], **limits)
    return tokenizer.decode(best.tokens)


@pytest.mark.hub
def test_real_logits_are_those_of_transformers(gpt2):
    model, tokenizer = gpt2
    tokens = torch.tensor([tokenizer.encode("Data visualization empowers users to")])
    assert tokens.tolist() == [[6601, 32704, 795, 30132, 2985, 284]]
    theirs = GPT2LMHeadModel.from_pretrained("openai-community/gpt2", attn_implementation="eager").eval()
    with torch.no_grad():
        assert float((model(tokens) - theirs(tokens).logits).abs().max()) <= 1e-3


@pytest.mark.hub
def test_a_land_far_away(gpt2):
    text = text_after(gpt2, "Once upon a time in a land far away,", max_new_tokens=50)
    assert text.startswith(
        " the sun was shining, and the moon was shining. The sun was shining, and the moon was"
    )


@pytest.mark.hub
def test_the_computers_of_alan_turing(gpt2):
    prompt = "Alan Turing theorized that computers would one day become"
    expected = (
        " the most powerful machines on the planet.\n\nThe computer is a machine that can perform complex"
    )
    assert text_after(gpt2, prompt, max_new_tokens=40).startswith(expected)


@pytest.mark.hub
def test_the_dog(gpt2):
    model, _ = gpt2
    ((best,),) = generate(model, [[464, 3290]], max_new_tokens=18)
    expected = "373 1043 287 257 2214 1474 262 16246 286 2688 290 2688 27262 13 198 198 464 3290"
    assert best.tokens == [int(token) for token in expected.split()]


@pytest.mark.hub
def test_today_is(gpt2):
    model, tokenizer = gpt2
    ((best,),) = generate(model, [tokenizer.encode("Today is")], max_new_tokens=5)
    assert best.tokens == [262, 1110, 618, 356, 460]
    assert best.logprobs == pytest.approx([-1.414, -2.609, -2.010, -1.859, -2.508], abs=2e-3)


@pytest.mark.hub
def test_space_travel_by_beams(gpt2):
    model, tokenizer = gpt2
    prompt = tokenizer.encode("Space travel is all about human ingenuity to reach vast lengths")
    beams = Beam(num_beams=5, num_return_sequences=3, early_stopping=True)
    (texts,) = generate(model, [prompt], beams, max_new_tokens=60 - len(prompt))
    best, *others = (tokenizer.decode(completion.tokens) for completion in texts)
    expected = (
        " of space.\n\nIn the past few years, we've learned a lot about space travel. We've learned a lot about how"
        " it works. And we've learned a lot about how it's possible.\n\nWe've learned a lot"
    )
    assert best == expected
    assert all(other[:100] == best[:100] and other != best for other in others)

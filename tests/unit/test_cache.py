"""Split = whole, cached = uncached, and a cache that survives what goes wrong."""

import pytest
import torch

from minigpt import GPT2, GPT2Config

CONFIG = GPT2Config(vocab_size=61, n_positions=48, n_embd=32, n_layer=3, n_head=4)
PADS = torch.tensor([0, 3])


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = GPT2(CONFIG).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def tokens(rows=2, length=20):
    return torch.randint(61, (rows, length), generator=torch.Generator().manual_seed(1))


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


SPLITS = [(20,), (1,) * 20, (7, 13), (5, 1, 9, 5), (19, 1), (1, 19)]


@pytest.mark.parametrize("split", SPLITS)
def test_any_split_through_the_cache_gives_the_whole_pass(model, split):
    cache = model.new_cache(20, rows=2)
    parts = [model.unembed(model.hidden_states(part, cache)) for part in tokens().split(split, 1)]
    close(torch.cat(parts, 1), model(tokens()))


@pytest.mark.parametrize("split", SPLITS)
def test_any_split_of_padded_rows_gives_the_whole_pass(model, split):
    cache = model.new_cache(20, rows=2, pad=PADS)
    parts = [model.unembed(model.hidden_states(part, cache)) for part in tokens().split(split, 1)]
    whole = model(tokens(), pad=PADS)
    close(torch.cat(parts, 1)[0], whole[0])
    close(torch.cat(parts, 1)[1, 3:], whole[1, 3:])


def test_next_logits_is_the_whole_pass_at_its_end(model):
    close(model.next_logits(tokens(), model.new_cache(20, rows=2)), model(tokens())[:, -1])


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_a_pass_that_fails_half_way_leaves_the_cache_usable(model, failing):
    cache = model.new_cache(20, rows=2)
    model.next_logits(tokens()[:, :11], cache)

    def fail(*_):
        raise RuntimeError("on purpose")

    hook = model.blocks[failing].attn.sdpa.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="on purpose"):
        model.next_logits(torch.zeros(2, 4, dtype=torch.long), cache)
    hook.remove()
    assert cache.length == 11
    close(model.next_logits(tokens()[:, 11:], cache), model(tokens())[:, -1])


def test_rewound_tokens_are_forgotten(model):
    cache = model.new_cache(20, rows=2)
    model.next_logits(torch.cat([tokens()[:, :11], torch.zeros(2, 5, dtype=torch.long)], 1), cache)
    cache.rewind(11)
    close(model.next_logits(tokens()[:, 11:], cache), model(tokens())[:, -1])
    with pytest.raises(ValueError, match="cannot rewind to 21: the cache holds 20 tokens"):
        cache.rewind(21)


@pytest.mark.parametrize("rows", [[0, 1, 2], [2, 0, 1], [1, 1, 1], [2], [0, 2], [0, 0, 1, 1, 2, 2]])
def test_selected_rows_go_on_as_copies_of_the_old(model, rows):
    batch, pads = tokens(3), torch.tensor([0, 3, 1])
    cache = model.new_cache(20, rows=3, pad=pads)
    model.next_logits(batch[:, :11], cache)
    cache.select(rows)
    assert cache.rows == len(rows)
    going_on = model.next_logits(batch[rows, 11:], cache)
    close(going_on, model(batch, pad=pads)[rows, -1])


def test_rows_that_fork_again_and_again_hold_what_whole_copies_would():
    """As beams do; what else happens to a cache in between leaves less of two rows alike."""
    chance = torch.Generator().manual_seed(0)
    cache = GPT2(CONFIG).new_cache(60, rows=4)
    expected = torch.empty(3, 2, 4, 4, 0, 8)  # (layer, key | value, B, H, S, K)
    for step in range(120):
        new = torch.randn(3, 2, 4, 4, 1, 8, generator=chance)
        expected = torch.cat([expected, new], -2)
        held = torch.stack(
            [torch.stack(layer.extend(kv)) for layer, kv in zip(cache.layers, new, strict=True)]
        )
        pads = [0] * 4 if cache.pad is None else cache.pad.tolist()
        for row, pad in enumerate(pads):
            assert torch.equal(held[:, :, row, :, pad:], expected[:, :, row, :, pad:])
        cache.advance(1)
        if step % 10 == 9:
            cache.rewind(step // 3)
            expected = expected[..., : step // 3, :]
        if step == 60:
            cache.align([0, 2, 1, 0], cache.length)
            for row in (1, 2):
                expected[:, :, row] = expected[:, :, row].roll(3 - row, -2)
        rows = torch.randint(4, (4,), generator=chance).tolist()
        cache.select(rows)
        expected = expected[:, :, rows]


@pytest.mark.parametrize(
    ("pads", "kept", "together"),
    [
        ([0, 3, 1], [11, 8, 10], 11),  # nothing moves
        ([0, 3, 1], [9, 6, 8], 9),  # all forget equally many: a rewind
        ([0, 3, 1], [4, 8, 9], 9),  # two end further right, one further left
        ([0, 3, 1], [1, 2, 8], 8),
        ([0, 3, 1], [11, 0, 3], 11),  # nothing is left of a row
        ([0, 0, 0], [7, 11, 2], 11),  # without padding so far
        ([5, 3, 1], [6, 6, 6], 6),  # and without from now on
    ],
)
def test_aligned_rows_go_on_from_what_they_kept(model, pads, kept, together):
    batch, old = tokens(3), torch.tensor(pads)
    cache = model.new_cache(20, rows=3, pad=old if any(pads) else None)
    model.next_logits(batch[:, :11], cache)
    new = [together - n for n in kept]
    cache.align(new, together)
    assert cache.length == together
    assert (cache.pad is None) == (not any(new))
    going_on = model.unembed(model.hidden_states(batch[:, 11:16], cache))
    for i, (pad, n) in enumerate(zip(pads, kept, strict=True)):
        anew = torch.cat([batch[i, pad : pad + n], batch[i, 11:16]])[None]
        close(going_on[i], model(anew)[0, n:])


def test_alignment_keeps_no_more_than_there_is(model):
    cache = model.new_cache(20, rows=2, pad=PADS)
    model.next_logits(tokens()[:, :11], cache)
    with pytest.raises(ValueError, match="cannot keep 9 tokens of row 1: it holds 8"):
        cache.align([1, 2], 11)
    with pytest.raises(ValueError, match="cannot rewind to 12: the cache holds 11 tokens"):
        cache.align([1, 5], 12)
    close(model.next_logits(tokens()[:, 11:], cache), model(tokens(), pad=PADS)[:, -1])  # as it was


def test_two_generations_interleave(model):
    a, b = model.new_cache(20, rows=2), model.new_cache(20, rows=2)
    other = tokens().flip(1)
    for start in range(0, 20, 5):
        mine = model.next_logits(tokens()[:, start : start + 5], a)
        theirs = model.next_logits(other[:, start : start + 5], b)
    close(mine, model(tokens())[:, -1])
    close(theirs, model(other)[:, -1])


def test_a_full_cache_and_a_full_window_say_so(model):
    cache = model.new_cache(4)
    with pytest.raises(ValueError, match="token 5 does not fit a cache reserved for 4"):
        model.next_logits(tokens(1, 5), cache)
    with pytest.raises(ValueError, match="49 tokens do not fit the context length of 48"):
        model(torch.zeros(1, 49, dtype=torch.long))
    model(torch.zeros(1, 50, dtype=torch.long), pad=torch.tensor([2]))  # 48 tokens: the rest is padding


def test_rows_that_do_not_fit_are_refused(model):
    cache = model.new_cache(8, rows=2)
    with pytest.raises(ValueError, match="the tokens have 1 row, but the cache or its padding has 2"):
        model.next_logits(tokens(1, 4), cache)  # torch would stretch the row over both
    with pytest.raises(ValueError, match="pad must be 2 whole numbers, one for each row"):
        model(tokens(), pad=torch.tensor([0, 1, 2]))
    with pytest.raises(ValueError, match=r"tokens have shape \(4,\); they must be \(rows, tokens\)"):
        model(torch.zeros(4, dtype=torch.long))


def test_a_head_that_fails_leaves_the_cache_usable(model, monkeypatch):
    cache = model.new_cache(20, rows=2)
    model.next_logits(tokens()[:, :11], cache)
    with monkeypatch.context() as patch:
        patch.setattr(model, "unembed", lambda x: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model.next_logits(tokens()[:, 11:], cache)
    close(model.next_logits(tokens()[:, 11:], cache), model(tokens())[:, -1])


def test_next_logits_builds_no_graph():
    model = GPT2(CONFIG)
    assert not model.next_logits(tokens(), model.new_cache(20, rows=2)).requires_grad


# ------------------------------------------------------------------------------ rows that are replaced one by one


@pytest.fixture
def _nothing_is_zero(monkeypatch):
    """Memory that is reserved holds NaN, as it may."""
    for home, name in ((torch, "empty"), (torch.Tensor, "new_empty")):
        monkeypatch.setattr(home, name, _filled(getattr(home, name)))


def _filled(usual):
    return lambda *args, **how: usual(*args, **how).fill_(float("nan"))


def read(model, texts, room=None):
    """A cache that holds these texts, padded on the left; and the logits of what follows each."""
    longest = max(map(len, texts))
    pad = torch.tensor([longest - len(text) for text in texts])
    cache = model.new_cache(room or longest, rows=len(texts), pad=pad)
    batch = torch.stack([torch.nn.functional.pad(text, (longest - len(text), 0)) for text in texts])
    return cache, model.next_logits(batch, cache)


@pytest.mark.usefixtures("_nothing_is_zero")
@pytest.mark.parametrize(
    ("lengths", "rows", "new"),
    [
        ([5, 9, 7], [1], [4]),  # shorter than the longest
        ([5, 9, 7], [0], [12]),  # longer: the others move
        ([5, 9, 7], [2, 0], [3, 14]),
        ([5, 9, 7], [1, 0, 2], [2, 2, 1]),  # all of them
        ([1], [0], [1]),
    ],
)
def test_rows_that_are_replaced_go_on_as_if_alone(model, lengths, rows, new):
    texts = [tokens(1, n)[0] for n in lengths]
    cache, _ = read(model, texts, room=16)
    fresh = [tokens(1, 2 * n)[0, n:] for n in new]
    cache.replace_rows(rows, read(model, fresh)[0])
    for row, text in zip(rows, fresh, strict=True):
        texts[row] = text
    for step in range(12):  # beyond the room, where texts are short: slots are used again
        if max(map(len, texts)) == 16:
            return
        cache.make_room()
        assert cache.length == max(map(len, texts))
        more = torch.tensor([[(7 * step + row) % 61] for row in range(len(texts))])
        texts = [torch.cat([text, token]) for text, token in zip(texts, more, strict=True)]
        logits = model.next_logits(more, cache)
        for text, row in zip(texts, logits, strict=True):
            close(row, model(text[None])[0, -1])


@pytest.mark.usefixtures("_nothing_is_zero")
def test_short_texts_follow_each_other_without_end(model):
    """Slots and rows are used again and again, and then there is room for a long text."""
    cache = model.new_cache(12, rows=2)
    chance = torch.Generator().manual_seed(0)
    texts = [torch.randint(61, (n,), generator=chance) for n in (3, 2)]
    cache.replace_rows([0, 1], read(model, texts)[0])
    for step in range(60):
        row = step % 2
        if step % 3 == 0 or len(texts[row]) > 6:
            n = int(torch.randint(1, 7, (), generator=chance))
            texts[row] = torch.randint(61, (n,), generator=chance)
            cache.replace_rows([row], read(model, [texts[row]])[0])
        if step == 40:
            cache.grow(30)
            texts[1] = torch.randint(61, (28,), generator=chance)
            cache.replace_rows([1], read(model, [texts[1]])[0])
        cache.make_room()
        more = torch.randint(61, (2, 1), generator=chance)
        texts = [torch.cat([text, token]) for text, token in zip(texts, more, strict=True)]
        for text, logits in zip(texts, model.next_logits(more, cache), strict=True):
            close(logits, model(text[None])[0, -1])


def test_making_room_while_padding_is_read_takes_no_slot_that_is_not_there(model):
    text = tokens(1, 4)[0]
    cache = model.new_cache(30, 2, torch.tensor([6, 8]))
    model.next_logits(tokens(2, 5), cache)  # padding, all of it
    cache.make_room()
    assert cache.length == 0
    assert cache.pads() == [1, 3]
    rows = torch.stack([torch.cat([text[:1], text]), torch.cat([text[:3], text[:2]])])
    logits = model.next_logits(rows, cache)
    close(logits[0], model(text[None])[0, -1])
    close(logits[1], model(text[None, :2])[0, -1])


def test_a_text_of_no_numbers_leaves_nothing_behind(model):
    cache, _ = read(model, [tokens(1, 9)[0], tokens(1, 7)[0]], room=12)
    for layer in cache.layers:
        layer.extend(torch.zeros(2, 2, 4, 1, 8))[0][1].fill_(float("nan"))
    text = tokens(1, 3)[0]
    cache.replace_rows([1], read(model, [text])[0])
    close(model.next_logits(torch.tensor([[1], [2]]), cache)[1], model(torch.tensor([[*text, 2]]))[0, -1])


@pytest.mark.usefixtures("_nothing_is_zero")
def test_texts_that_begin_alike_share_what_was_read(model):
    old = [tokens(1, 9)[0], tokens(2, 12)[1]]
    cache, _ = read(model, old)
    new = [
        torch.cat([old[0][:6], tokens(1, 4)[0]]),
        torch.cat([old[1][:8], tokens(1, 4)[0]]),
        tokens(1, 3)[0],
    ]
    pad = torch.tensor([2, 0, 9])
    fresh = model.new_cache(12, rows=3, pad=pad)
    fresh.begin_with(cache, [0, 1, 0], 8)
    assert fresh.length == 8
    rest = torch.stack([torch.nn.functional.pad(text, (12 - len(text), 0))[8:] for text in new])
    for text, logits in zip(new, model.next_logits(rest, fresh), strict=True):
        close(logits, model(text[None])[0, -1])


def test_what_is_reserved_is_known(model):
    assert model.new_cache(5, rows=3).nbytes == 3 * 5 * model.new_cache(1).nbytes == 3 * 5 * 3 * 2 * 32 * 4

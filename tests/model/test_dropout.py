"""A dropout mask is a function of (seed, step, lane, site), and behaves as if it were drawn."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.masks import lane_masks_by_hand, mask_by_hand, word_mask_by_hand

from pipeline.model import dropout
from pipeline.model.dropout import lane_dropout, lane_keys, weight_dropout, word_dropout


def keys_of(*, seed=1, step=0, lanes=range(4), num_sites=1):
    return torch.from_numpy(lane_keys(seed=seed, step=step, lanes=lanes, num_sites=num_sites))


def mask_of(keys_L, *, p=0.5, num_steps=7, width=11):
    """Which activations are kept."""
    return lane_dropout(torch.ones(num_steps, len(keys_L), width), keys_L, p=p) != 0


def assert_unrelated(one, other):
    """The correlation of two masks of n draws has a spread of 1/sqrt(n); five of them do not happen."""
    pair = torch.stack([one.flatten(), other.flatten()]).double()
    assert abs(float(torch.corrcoef(pair)[0, 1])) < 5 / math.sqrt(one.numel())


# --- keys


def test_golden_keys():
    """A change of this arithmetic changes the result of every run with dropout."""
    found = lane_keys(seed=1, step=0, lanes=[0, 1, 5], num_sites=2)
    assert found.tolist() == [[129774079, -762039808, -861781190], [-167734309, -1554577794, 444630068]]
    assert found.dtype == np.int32
    assert lane_keys(seed=7, step=123456, lanes=[3], num_sites=3).tolist() == [
        [2130793434],
        [-634219154],
        [2135942567],
    ]


def test_golden_mask():
    kept = lane_dropout(torch.ones(2, 2, 9), keys_of(lanes=[0, 1])[0], p=0.5)
    assert kept.int().tolist() == [
        [[2, 0, 0, 2, 2, 2, 2, 2, 0], [0, 2, 0, 0, 0, 2, 2, 0, 2]],
        [[2, 2, 2, 2, 2, 0, 2, 0, 2], [0, 0, 0, 0, 2, 2, 2, 0, 0]],
    ]


def test_golden_mask_of_an_even_width():
    kept = lane_dropout(torch.ones(3, 1, 4), keys_of(lanes=[0])[0], p=0.5)
    assert kept[:, 0].int().tolist() == [[2, 0, 0, 2], [2, 2, 2, 2], [0, 2, 2, 2]]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("width", [8, 9])
def test_a_lane_draws_the_same_mask_on_any_device(width):
    keys_L = keys_of()[0]
    for p in (0.01, 0.35, 0.5, 0.9):
        on_device = lane_dropout(torch.ones(5, 4, width, device="cuda"), keys_L.cuda(), p=p)
        assert torch.equal(on_device.cpu(), lane_dropout(torch.ones(5, 4, width), keys_L, p=p))


def test_the_mixers_are_the_published_ones():
    """SplitMix64 from state 0, and lowbias32."""
    assert int(dropout._mix64(np.array([0], dtype=np.uint64))[0]) == 0xE220A8397B1DCDAF
    assert dropout._mix32(torch.tensor([0, 1, -1, 12345], dtype=torch.int32)).tolist() == [
        0,
        1753845952,
        1734902346,
        -1859191561,
    ]


@settings(deadline=None)
@given(st.integers(0, 2**63), st.integers(0, 2**40), st.lists(st.integers(0, 10**6), min_size=1, max_size=6))
def test_a_key_hangs_on_its_own_lane_and_site_only(seed, step, lanes):
    together = lane_keys(seed=seed, step=step, lanes=lanes, num_sites=3)
    assert together.shape == (3, len(lanes))
    for column, lane in enumerate(lanes):
        alone = lane_keys(seed=seed, step=step, lanes=[lane], num_sites=2)
        assert alone[:, 0].tolist() == together[:2, column].tolist()


def test_keys_of_neighbouring_numbers_all_differ():
    """2^15 draws of 2^32 have 0.125 pairs in common on average; this fixed set has none."""
    keys = [lane_keys(seed=seed, step=step, lanes=range(16), num_sites=8) for seed in range(16) for step in range(16)]
    assert len(np.unique(np.stack(keys))) == 16 * 16 * 16 * 8


def test_the_parts_of_a_key_do_not_change_places():
    assert lane_keys(seed=1, step=2, lanes=[3], num_sites=1) != lane_keys(seed=2, step=1, lanes=[3], num_sites=1)
    assert lane_keys(seed=1, step=2, lanes=[3], num_sites=1) != lane_keys(seed=3, step=0, lanes=[3], num_sites=1)
    assert lane_keys(seed=1, step=2, lanes=[3], num_sites=1) != lane_keys(seed=1, step=3, lanes=[2], num_sites=1)
    keys_SL = lane_keys(seed=1, step=2, lanes=[0, 1], num_sites=2)
    assert keys_SL[0, 1] != keys_SL[1, 0]


# --- masks


def test_the_same_keys_give_the_same_mask_and_the_global_generator_is_not_touched():
    before = torch.get_rng_state()
    assert torch.equal(mask_of(keys_of()[0]), mask_of(keys_of()[0]))
    assert torch.equal(torch.get_rng_state(), before)


@settings(deadline=None)
@given(st.lists(st.integers(0, 7), min_size=1, max_size=8), st.integers(0, 100))
def test_some_lanes_have_the_masks_that_they_have_among_all(lanes, step):
    whole = mask_of(keys_of(step=step, lanes=range(8))[0])
    assert torch.equal(mask_of(keys_of(step=step, lanes=lanes)[0]), whole[:, lanes])


@pytest.mark.parametrize("width", [1, 2, 7, 8])
def test_a_shorter_window_has_the_mask_of_the_longer_ones_beginning(width):
    keys_L = keys_of()[0]
    assert torch.equal(mask_of(keys_L, num_steps=3, width=width), mask_of(keys_L, num_steps=9, width=width)[:3])


@pytest.mark.parametrize("p", [0.2, 0.5, 0.65])
def test_masks_of_lanes_steps_sites_and_seeds_are_unrelated(p):
    size = {"p": p, "num_steps": 100, "width": 101}
    base = mask_of(keys_of(num_sites=2)[0], **size)
    others = {
        "lane": mask_of(keys_of(lanes=range(1, 5))[0], **size),
        "step": mask_of(keys_of(step=1)[0], **size),
        "site": mask_of(keys_of(num_sites=2)[1], **size),
        "seed": mask_of(keys_of(seed=2)[0], **size),
        "time": base.roll(1, 0),
        "unit": base.roll(1, 2),
        "two units": base.roll(2, 2),
    }
    for other in others.values():
        assert_unrelated(base, other)


@pytest.mark.parametrize("p", [1 / 65536, 0.01, 0.1, 0.35, 0.5, 0.65, 0.9, 0.999])
@pytest.mark.parametrize("width", [200, 201])
def test_the_share_dropped_is_p(p, width):
    mask = mask_of(keys_of(lanes=range(10))[0], p=p, num_steps=100, width=width)
    spread = math.sqrt(p * (1 - p) / mask.numel())
    assert abs(float((~mask).double().mean()) - p) < 5 * spread


def test_every_place_is_dropped_in_about_half_of_the_steps():
    """No unit and no time step is favoured."""
    masks = torch.stack([mask_of(keys_of(step=step, lanes=range(8))[0], num_steps=5, width=9) for step in range(400)])
    share_TH = masks.double().mean(dim=(0, 2))
    assert (share_TH - 0.5).abs().max() < 5 * 0.5 / math.sqrt(400 * 8)


@pytest.mark.parametrize(("p", "dropped"), [(0.5, 32768), (0.2, 13107), (0.65, 42598), (1 / 65536, 1), (0.9999, 65529)])
def test_the_scale_is_exact_for_the_rounded_share(p, dropped):
    kept = lane_dropout(torch.ones(9, 4, 101, dtype=torch.float64), keys_of()[0], p=p)
    assert set(kept.unique().tolist()) <= {0.0, 65536 / (65536 - dropped)}


@pytest.mark.parametrize("p", [1 - 1e-9, 1 - 2**-53])
def test_a_share_next_to_one_drops_all_but_one_draw(p):
    kept = lane_dropout(torch.ones(50, 4, 100, dtype=torch.float64), keys_of()[0], p=p)
    assert set(kept.unique().tolist()) <= {0.0, 65536.0}


def test_the_boundary_of_a_draw_is_exact(monkeypatch):
    """Of the 65,536 draws exactly the lowest `dropped` are dropped."""
    draws = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int16)
    monkeypatch.setattr(dropout, "_mix32", lambda x: draws.view(torch.int32).reshape(1, 1, -1))
    for dropped in (1, 2, 32767, 32768, 32769, 65534, 65535):
        kept = lane_dropout(torch.ones(1, 1, 1 << 16), torch.zeros(1, dtype=torch.int32), p=dropped / 65536)
        assert int((kept == 0).sum()) == dropped


@pytest.mark.parametrize("p", [0.0, 1 / 65536 / 2.01])
def test_no_share_returns_the_input_itself(p):
    input_TLH = torch.randn(3, 4, 5)
    assert lane_dropout(input_TLH, keys_of()[0], p=p) is input_TLH


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("width", [1, 2, 5])
def test_type_and_shape_stay(dtype, width):
    found = lane_dropout(torch.ones(3, 4, width, dtype=dtype), keys_of()[0], p=0.5)
    assert (found.dtype, found.shape) == (dtype, (3, 4, width))


def test_the_gradient_is_masked_and_scaled_as_the_value_is():
    keys_L = keys_of()[0]
    input_TLH = torch.randn(6, 4, 9, generator=torch.Generator().manual_seed(0)).requires_grad_()
    lane_dropout(input_TLH, keys_L, p=0.25).sum().backward()
    torch.testing.assert_close(input_TLH.grad, mask_of(keys_L, p=0.25, num_steps=6, width=9) / 0.75)


def test_a_first_use_in_inference_mode_leaves_training_unharmed():
    dropout._places.cache_clear()
    keys_L = keys_of()[0]
    with torch.inference_mode():
        lane_dropout(torch.ones(2, 4, 3), keys_L, p=0.5)
    input_TLH = torch.ones(2, 4, 3, requires_grad=True)
    lane_dropout(input_TLH, keys_L, p=0.5).sum().backward()
    assert torch.equal(input_TLH.grad != 0, mask_of(keys_L, num_steps=2, width=3))


@pytest.mark.parametrize("width", [1, 6, 7])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.65])
def test_a_mask_is_the_one_worked_out_by_hand(p, width):
    keys_L = keys_of(step=3)[0]
    input_TLH = torch.randn(5, 4, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for locked in (False, True):
        expected = input_TLH * lane_masks_by_hand(keys_L, 5, width, p=p, locked=locked)
        torch.testing.assert_close(lane_dropout(input_TLH, keys_L, p=p, locked=locked), expected)


# --- locked masks


def test_a_locked_mask_is_that_of_the_first_time_step_in_all():
    keys_L, ones = keys_of()[0], torch.ones(7, 4, 11)
    locked = lane_dropout(ones, keys_L, p=0.5, locked=True)
    assert torch.equal(locked, lane_dropout(ones[:1], keys_L, p=0.5).expand(7, -1, -1))
    assert locked.shape == ones.shape
    assert len({tuple(each) for each in locked[0].tolist()}) == 4  # each lane has its own


def test_locked_masks_of_lanes_and_steps_are_unrelated_and_drop_the_share():
    masks = [mask_of(keys_of(step=step, lanes=range(8))[0], num_steps=1, width=900, p=0.3) for step in range(20)]
    mask_KLH = torch.cat(masks)
    spread = math.sqrt(0.3 * 0.7 / mask_KLH.numel())
    assert abs(float((~mask_KLH).double().mean()) - 0.3) < 5 * spread
    assert_unrelated(mask_KLH, mask_KLH.roll(1, 0))
    assert_unrelated(mask_KLH, mask_KLH.roll(1, 1))


# --- what all lanes drop alike


def test_golden_shared_keys():
    keys_SL = lane_keys(seed=1, step=0, lanes=[0, 1, 5], num_sites=2, num_shared_sites=2)
    assert keys_SL[:2].tolist() == [[129774079, -762039808, -861781190], [-167734309, -1554577794, 444630068]]
    assert keys_SL[2:].tolist() == [[-2042296919] * 3, [-1962155215] * 3]  # SplitMix64 of Python's own integers
    assert keys_SL.dtype == np.int32


@settings(deadline=None)
@given(st.integers(0, 2**40), st.lists(st.integers(0, 10**6), min_size=1, max_size=6))
def test_shared_keys_are_those_of_every_lane_and_rank(step, lanes):
    keys_SL = lane_keys(seed=3, step=step, lanes=lanes, num_sites=1, num_shared_sites=3)
    alone = lane_keys(seed=3, step=step, lanes=[0], num_sites=0, num_shared_sites=3)
    assert (keys_SL[1:] == alone).all()
    assert len({*alone[:, 0].tolist()}) == 3
    assert keys_SL[0].tolist() == lane_keys(seed=3, step=step, lanes=lanes, num_sites=1)[0].tolist()


def test_shared_keys_differ_from_step_to_step_and_from_those_of_lanes():
    of = {"lanes": range(64), "num_sites": 4, "num_shared_sites": 4}
    keys = [lane_keys(seed=seed, step=step, **of) for seed in range(8) for step in range(8)]
    own, shared = np.stack(keys)[:, :4], np.stack(keys)[:, 4:, 0]
    assert len({*own.flatten().tolist(), *shared.flatten().tolist()}) == 8 * 8 * 4 * (64 + 1)


def shared_key(*, seed=1, step=0, num_lanes=3):
    keys = lane_keys(seed=seed, step=step, lanes=range(num_lanes), num_sites=0, num_shared_sites=1)
    return torch.from_numpy(keys)[0]


def test_a_dropped_word_is_dropped_wherever_it_stands():
    words_TL = torch.tensor([[5, 0, 5], [7, 5, 2], [0, 7, 33_277]])
    vectors = torch.randn(3, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for step in range(4):
        keys_L = shared_key(step=step)
        mask_V = word_mask_by_hand(int(keys_L[0]) & 0xFFFFFFFF, 33_278, p=0.5)
        found = word_dropout(vectors, words_TL, keys_L, p=0.5)
        torch.testing.assert_close(found, vectors * mask_V[words_TL][:, :, None])


def test_the_share_of_words_dropped_is_p_and_steps_are_unrelated():
    words_TL = torch.arange(30_000)[:, None]
    masks = [word_dropout(torch.ones(30_000, 1, 1), words_TL, shared_key(step=step), p=0.1) != 0 for step in range(9)]
    mask_KV = torch.stack(masks)
    spread = math.sqrt(0.1 * 0.9 / mask_KV.numel())
    assert abs(float((~mask_KV).double().mean()) - 0.1) < 5 * spread
    assert_unrelated(mask_KV, mask_KV.roll(1, 0))
    assert_unrelated(mask_KV, mask_KV.roll(1, 1))


@pytest.mark.parametrize("shape", [(8, 2), (12, 3)])
def test_dropped_weights_are_those_worked_out_by_hand_and_their_gradient_too(shape):
    weight_GH = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    keys_L = shared_key(step=5)
    mask_GH = mask_by_hand(int(keys_L[0]) & 0xFFFFFFFF, *shape, p=0.5)
    found = weight_dropout(weight_GH, keys_L, p=0.5)
    torch.testing.assert_close(found, weight_GH.detach() * mask_GH)
    found.sum().backward()
    torch.testing.assert_close(weight_GH.grad, mask_GH)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_share_of_words_or_weights_returns_them_as_they_are(dtype):
    vectors, weight = torch.randn(2, 3, 4).to(dtype), torch.randn(8, 2).to(dtype)
    words_TL = torch.zeros(2, 3, dtype=torch.int64)
    assert word_dropout(vectors, words_TL, shared_key(), p=0.0) is vectors
    assert torch.equal(weight_dropout(weight, shared_key(), p=0.0), weight)
    assert word_dropout(vectors, words_TL, shared_key(), p=0.5).dtype == dtype
    assert weight_dropout(weight, shared_key(), p=0.5).dtype == dtype


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_words_and_weights_are_dropped_alike_on_any_device():
    words_TL, keys_L = torch.arange(12).view(4, 3), shared_key()
    for drop, arguments in ((word_dropout, (torch.ones(4, 3, 5), words_TL)), (weight_dropout, (torch.ones(8, 3),))):
        on_device = drop(*(each.cuda() for each in arguments), keys_L.cuda(), p=0.5)
        assert torch.equal(on_device.cpu(), drop(*arguments, keys_L, p=0.5))

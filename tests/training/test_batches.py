"""Batches are windows, split and keyed; the global batch is the same for every world size."""

from contextlib import nullcontext
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.sequences import Ids

from pipeline.corpus.lanes import LanePlan, rank_lanes
from pipeline.corpus.order import Order
from pipeline.corpus.stream import read_windows
from pipeline.model.adaptive_softmax import split_targets
from pipeline.model.dropout import lane_keys
from pipeline.training import worker
from pipeline.training.data import KEY_STEPS, StepLoader, on_device, read_batches, sent_ahead

CUTOFFS = (3, 7)


def drawn_ids(num_tokens, *, seed=0):
    return Ids(np.random.default_rng(seed).integers(0, 10, num_tokens))


def batches_of(tokens, plan, *, start=0, stop, lanes, seed=5, cutoffs=CUTOFFS):
    prepare = partial(split_targets, cutoffs=cutoffs)
    return list(
        read_batches(tokens, plan, start=start, stop=stop, lanes=lanes, seed=seed, prepare_targets=prepare, num_sites=3)
    )


def words_of(split, *, cutoffs):
    """The targets that a split stands for."""
    words_N = split[0].clone()
    for rows_n, tail_n, first in zip(split[1::2], split[2::2], cutoffs, strict=True):
        words_N[rows_n] = tail_n + first
    return words_N


def placed_targets(batch):
    """The targets where they stand; -1 where a lane lacks one."""
    targets_TL = torch.full(batch.inputs_TL.shape, -1)
    flat = targets_TL.view(-1)
    words_N = words_of(batch.targets, cutoffs=CUTOFFS)
    flat[slice(None) if batch.rows_N is None else batch.rows_N] = words_N
    return targets_TL


@pytest.mark.parametrize("cutoffs", [(), CUTOFFS])
@pytest.mark.parametrize("lanes", [range(4), range(1, 3), [3]])
def test_a_batch_is_a_window_its_split_and_its_keys(cutoffs, lanes):
    plan, tokens = LanePlan(num_targets=47, num_lanes=4, bptt=5), drawn_ids(47)
    batches = batches_of(tokens, plan, start=1, stop=7, lanes=lanes, cutoffs=cutoffs)
    windows = list(read_windows(tokens, plan, start=1, stop=7, lanes=lanes))
    assert len(batches) == 6
    for step, batch, window in zip(range(1, 7), batches, windows, strict=True):
        assert batch.inputs_TL.tolist() == window.inputs_TL.tolist()
        split = split_targets(window.targets_N, cutoffs=cutoffs)
        assert [each.tolist() for each in batch.targets] == [each.tolist() for each in split]
        assert words_of(batch.targets, cutoffs=cutoffs).tolist() == window.targets_N.tolist()
        for found, expected in ((batch.rows_N, window.rows_N), (batch.short_L, window.short_L)):
            assert (found is None) == (expected is None)
            assert found is None or found.tolist() == expected.tolist()
        assert batch.keys_SL.tolist() == lane_keys(seed=5, step=step, lanes=lanes, num_sites=3).tolist()
        assert (batch.num_targets, batch.starts_epoch) == (window.num_targets, window.starts_epoch)
    assert {batch.inputs_TL.dtype for batch in batches} == {torch.int64}
    assert {batch.keys_SL.dtype for batch in batches} == {torch.int32}
    assert {batch.short_L.dtype for batch in batches if batch.short_L is not None} <= {torch.bool}
    assert {batch.rows_N.dtype for batch in batches if batch.rows_N is not None} <= {torch.int64}


@settings(deadline=None)
@given(
    st.sampled_from([(1, 6), (2, 6), (3, 6), (6, 6), (2, 4), (4, 4)]),
    st.integers(0, 60),
    st.integers(1, 9),
    st.none() | st.integers(0, 9),
)
def test_the_global_batch_does_not_hang_on_the_world_size(ranks_and_lanes, more, bptt, window_seed):
    world_size, num_lanes = ranks_and_lanes
    plan = LanePlan(num_targets=num_lanes + more, num_lanes=num_lanes, bptt=bptt, window_seed=window_seed)
    tokens = drawn_ids(plan.num_targets)
    stop = 2 * plan.num_windows + 1
    whole = batches_of(tokens, plan, stop=stop, lanes=range(num_lanes))
    ranks = [
        batches_of(tokens, plan, stop=stop, lanes=rank_lanes(num_lanes, world_size=world_size, rank=rank))
        for rank in range(world_size)
    ]
    for batch, *parts in zip(whole, *ranks, strict=True):
        assert torch.equal(torch.cat([part.inputs_TL for part in parts], dim=1), batch.inputs_TL)
        assert torch.equal(torch.cat([part.keys_SL for part in parts], dim=1), batch.keys_SL)
        assert torch.equal(torch.cat([placed_targets(part) for part in parts], dim=1), placed_targets(batch))
        assert {part.num_targets for part in parts} == {len(batch.targets[0])}
        assert sum(len(part.targets[0]) for part in parts) == batch.num_targets
        assert {part.starts_epoch for part in parts} == {batch.starts_epoch}


def test_the_masks_of_a_step_differ_from_epoch_to_epoch():
    plan = LanePlan(num_targets=20, num_lanes=2, bptt=5)
    first, _, again = batches_of(drawn_ids(20), plan, stop=3, lanes=range(2))
    assert first.inputs_TL.tolist() == again.inputs_TL.tolist()
    assert first.keys_SL.tolist() != again.keys_SL.tolist()


@pytest.mark.parametrize("start", [0, 5, 31])
def test_keys_that_are_drawn_together_are_those_of_each_step(start):
    plan = LanePlan(num_targets=20, num_lanes=2, bptt=5)
    batches = batches_of(drawn_ids(20), plan, start=start, stop=start + 2 * KEY_STEPS + 3, lanes=[1])
    assert len(batches) == 2 * KEY_STEPS + 3
    for step, batch in enumerate(batches, start):
        assert batch.keys_SL.tolist() == lane_keys(seed=5, step=step, lanes=[1], num_sites=3).tolist()


def test_batches_of_an_order_are_those_of_its_windows():
    plan, tokens = LanePlan(num_targets=47, num_lanes=3, bptt=5), drawn_ids(47)
    order = Order(num_tokens=47, block_tokens=6, seed=2)
    prepare = partial(split_targets, cutoffs=CUTOFFS)
    given = {"start": 0, "stop": 9, "lanes": range(3), "order": order}
    batches = read_batches(tokens, plan, **given, seed=5, prepare_targets=prepare, num_sites=3)
    for batch, window in zip(batches, read_windows(tokens, plan, **given), strict=True):
        assert batch.inputs_TL.tolist() == window.inputs_TL.tolist()
        assert words_of(batch.targets, cutoffs=CUTOFFS).tolist() == window.targets_N.tolist()


def test_what_the_output_layer_draws_for_a_step_stands_behind_the_targets():
    tokens, plan, asked = drawn_ids(26), LanePlan(num_targets=26, num_lanes=2, bptt=5), []

    def sample(step, targets_N):
        asked.append((step, targets_N.tolist()))
        return (torch.tensor([step]),)

    given = {"start": 1, "stop": 5, "lanes": [1]}
    batches = read_batches(
        tokens, plan, **given, seed=5, prepare_targets=partial(split_targets, cutoffs=()), num_sites=3, sample=sample
    )
    for step, batch, window in zip(range(1, 5), batches, read_windows(tokens, plan, **given), strict=True):
        targets_N, drawn = batch.targets
        assert (targets_N.tolist(), drawn.tolist()) == (window.targets_N.tolist(), [step])
        assert asked[-1] == (step, window.targets_N.tolist())


# --- the way to the device


def test_a_batch_is_given_out_once_the_next_is_on_its_way():
    plan, told = LanePlan(num_targets=26, num_lanes=2, bptt=5), []  # the third window is short
    expected = batches_of(drawn_ids(26), plan, stop=4, lanes=range(2))

    def noted(what):
        def move(tensor):
            told.append((what, len(taken)))
            return tensor.clone()

        return move

    taken = []
    for batch in sent_ahead(iter(expected), pin=noted("pin"), send=noted("send")):
        taken.append(batch)
        sent = sum(what == "send" for what, _ in told)
        pinned = sum(what == "pin" for what, _ in told)
        batches_sent = min(len(taken) + 1, 4)
        assert sent == pinned == sum(map(num_tensors, expected[:batches_sent]))
    assert len(taken) == 4
    for found, wanted in zip(taken, expected, strict=True):
        assert found.num_targets == wanted.num_targets
        assert found.starts_epoch == wanted.starts_epoch
        for one, other in zip(tensors_of(found), tensors_of(wanted), strict=True):
            assert (one is None) == (other is None)
            assert one is None or (torch.equal(one, other) and one.dtype == other.dtype and one is not other)
    assert list(sent_ahead(iter(()), pin=noted("pin"), send=noted("send"))) == []
    assert len(list(sent_ahead(iter(expected[:1]), pin=noted("pin"), send=noted("send")))) == 1


def tensors_of(batch):
    return [batch.inputs_TL, *batch.targets, batch.rows_N, batch.short_L, batch.keys_SL]


def num_tensors(batch):
    return sum(each is not None for each in tensors_of(batch))


def test_each_batch_is_pinned_before_it_is_sent():
    plan = LanePlan(num_targets=26, num_lanes=2, bptt=5)
    pinned = []

    def pin(tensor):
        pinned.append(tensor.clone())
        return pinned[-1]

    def send(tensor):
        assert any(tensor is each for each in pinned)
        return tensor.to("meta")

    batches = list(sent_ahead(iter(batches_of(drawn_ids(26), plan, stop=3, lanes=range(2))), pin=pin, send=send))
    assert {each.device.type for batch in batches for each in tensors_of(batch) if each is not None} == {"meta"}


def test_the_cpu_gets_its_batches_as_they_are():
    batches = iter(batches_of(drawn_ids(26), LanePlan(num_targets=26, num_lanes=2, bptt=5), stop=3, lanes=range(2)))
    assert on_device(batches, torch.device("cpu")) is batches


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_gets_the_same_batches():
    plan = LanePlan(num_targets=26, num_lanes=2, bptt=5)
    expected = batches_of(drawn_ids(26), plan, stop=4, lanes=range(2))
    for found, wanted in zip(on_device(iter(expected), torch.device("cuda")), expected, strict=True):
        for one, other in zip(tensors_of(found), tensors_of(wanted), strict=True):
            assert (one is None) == (other is None)
            assert one is None or (one.is_cuda and torch.equal(one.cpu(), other))


# --- the loader


def test_the_loader_reads_the_step_when_its_first_batch_is_wanted():
    step, asked = 0, []

    def read(start):
        asked.append(start)
        return iter(range(start, 5))

    loader = StepLoader(read, current_step=lambda: step, total_steps=5)
    batches = iter(loader)
    assert asked == []
    step = 3  # a checkpoint is restored
    assert list(batches) == [3, 4]
    assert asked == [3]
    assert list(loader) == [3, 4]


def test_the_loader_is_as_long_as_the_run_and_has_no_state():
    loader = StepLoader(lambda start: iter(()), current_step=lambda: 0, total_steps=17)
    assert len(loader) == 17
    assert loader.state_dict() == {}
    loader.load_state_dict({})


# --- what a worker reads besides


def test_what_is_rehearsed_is_the_first_step_or_before_it_and_as_full_as_step_0():
    plan = LanePlan(num_targets=26, num_lanes=2, bptt=5)  # windows of 10, 10 and 6
    assert [worker._rehearsed(plan, step)[0] for step in range(7)] == [0, 1, 1, 3, 4, 4, 6]
    assert worker._rehearsed(plan, 4) == (4, 5)
    short = LanePlan(num_targets=5, num_lanes=2, bptt=5)
    assert worker._rehearsed(short, 0) == (0, 1)
    assert worker._rehearsed(short, 3)[0] in (2, 3)


def test_a_validation_leaves_no_shard_open(monkeypatch):
    class Split(Ids):
        closed = False

        def close(self):
            self.closed = True

    for fails in (False, True):
        split = Split(np.arange(5))

        def score(model, tokens, fails=fails, split=split):
            assert not split.closed
            if fails:
                raise RuntimeError

        monkeypatch.setattr(worker, "score_tokens", score)
        with pytest.raises(RuntimeError) if fails else nullcontext():
            worker._score(None, split)
        assert split.closed

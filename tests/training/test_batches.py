"""Batches are windows, split and keyed; the global batch is the same for every world size."""

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.sequences import Ids

from pipeline.corpus.lanes import LanePlan, rank_lanes
from pipeline.corpus.stream import read_windows
from pipeline.model.adaptive_softmax import split_targets
from pipeline.model.dropout import lane_keys
from pipeline.training.data import StepLoader, read_batches

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
@given(st.sampled_from([(1, 6), (2, 6), (3, 6), (6, 6), (2, 4), (4, 4)]), st.integers(0, 60), st.integers(1, 9))
def test_the_global_batch_does_not_hang_on_the_world_size(ranks_and_lanes, more, bptt):
    world_size, num_lanes = ranks_and_lanes
    plan = LanePlan(num_targets=num_lanes + more, num_lanes=num_lanes, bptt=bptt)
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

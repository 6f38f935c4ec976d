"""What a run carries from step to step, to a checkpoint and back."""

import torch

from pipeline.training.state import TrainState


def test_a_state_comes_back_with_the_lanes_of_a_rank_and_what_is_to_be_skipped_besides() -> None:
    state = TrainState(carried=(torch.arange(12.0).reshape(2, 3, 2), torch.arange(3).reshape(1, 3)), skipped={2, 9})
    state.validations[7] = 1.5
    state.loss_history = [3.0, 2.0]
    state.add(5.0, 2)
    state.add(1.0, 4)
    state.add_clusters((3.0, 2.0), (1, 1))
    state.add_clusters((1.0, 0.0), (4, 0))
    for value in (1.0, 4.0, 7.0):
        state.average([("weight", torch.full((2,), value))])
    kept = state.state_dict(["hidden", "count"], step=8, lanes_of_all=lambda part: part.clone())
    assert kept["skipped"] == [2], "what is skipped later is no part of the updates made so far"
    assert state.end_interval() == (6.0, 6)
    assert state.end_interval() == (0.0, 0)
    other = TrainState(skipped={11})
    other.load_state_dict(kept, ["hidden", "count"], lanes=range(1, 3))
    assert other.carried is not None and state.carried is not None
    for mine, whole in zip(other.carried, state.carried, strict=True):
        assert torch.equal(mine, whole[:, 1:3])
    assert (other.validations, other.loss_history, other.skipped) == ({7: 1.5}, [3.0, 2.0], {2, 11})
    assert (other.num_averaged, other.averaged["weight"].tolist()) == (3, [4.0, 4.0])
    assert other.end_interval() == (6.0, 6)
    assert other.end_cluster_interval() == [(4.0, 5), (2.0, 1)]
    assert other.end_cluster_interval() == []
    before = {key: value for key, value in kept.items() if not key.startswith(("cluster_", "averaged", "num_"))}
    other.load_state_dict(before, ["hidden", "count"], lanes=range(1, 3))
    assert (other.averaged, other.num_averaged) == ({}, 0)
    other.add_clusters((0.5, 0.5), (1, 2))
    assert other.end_cluster_interval() == [(0.5, 1), (0.5, 2)], "of an earlier version's checkpoint, the steps since"

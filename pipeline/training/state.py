"""What a run carries from step to step beside its weights and its optimizer.

Every part of the training that has something to carry writes it here, and nowhere else; a checkpoint holds all of it.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from torch import Tensor

from pipeline.model.recurrence import State
from pipeline.run.checkpoint import AVERAGED, NUM_AVERAGED

Number = TypeVar("Number", int, float)
CARRIED = "state_names"  # under which the names of the carried tensors stand


@dataclass
class TrainState:
    """The state of a training.

    Attributes:
        carried: of the recurrence, for the lanes of this rank; None: before the first step.
        validations: nats per token of each validation so far, by step.
        interval_nats, interval_targets: of the steps since the last logged one, over all ranks.
        cluster_nats, cluster_targets: the same for each cluster of the output layer; empty before the first step.
        loss_history: losses by which the next ones are judged.
        skipped: steps whose windows are passed over, counted from 0: no update, and no lane's state moves.
        averaged: the mean of each weight over some updates, by the model's names; empty before the first of them.
        num_averaged: how many updates these are.
    """

    carried: State | None = None
    validations: dict[int, float] = field(default_factory=dict)
    interval_nats: float = 0.0
    interval_targets: int = 0
    cluster_nats: list[float] = field(default_factory=list)
    cluster_targets: list[int] = field(default_factory=list)
    loss_history: list[float] = field(default_factory=list)
    skipped: set[int] = field(default_factory=set)
    averaged: dict[str, Tensor] = field(default_factory=dict)
    num_averaged: int = 0

    def add(self, nats: float, num_targets: int) -> None:
        """Takes a step into the interval's sums."""
        self.interval_nats += nats
        self.interval_targets += num_targets

    def end_interval(self) -> tuple[float, int]:
        """The interval's (nats, targets); another one begins."""
        found = self.interval_nats, self.interval_targets
        self.interval_nats, self.interval_targets = 0.0, 0
        return found

    def add_clusters(self, nats: Sequence[float], num_targets: Sequence[int]) -> None:
        """Takes what a step's targets cost in each cluster into the interval's sums."""
        self.cluster_nats = _added(self.cluster_nats, nats)
        self.cluster_targets = _added(self.cluster_targets, num_targets)

    def end_cluster_interval(self) -> list[tuple[float, int]]:
        """The interval's (nats, targets) of each cluster; another one begins."""
        found = list(zip(self.cluster_nats, self.cluster_targets, strict=True))
        self.cluster_nats, self.cluster_targets = [], []
        return found

    def average(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Takes the weights after an update into their mean, by name."""
        self.num_averaged += 1
        for name, weight in weights:
            if self.num_averaged == 1:
                self.averaged[name] = weight.detach().clone()
            else:
                self.averaged[name].lerp_(weight.detach(), 1 / self.num_averaged)

    def state_dict(
        self, names: Sequence[str], *, step: int, lanes_of_all: Callable[[Tensor], Tensor | None]
    ) -> dict[str, Any]:
        """Plain values and tensors, for a checkpoint.

        Args:
            names: of the carried tensors.
            step: updates made; what was skipped later is not part of it.
            lanes_of_all: brings a carried tensor of all ranks together; None on all but the first.
        """
        assert self.carried is not None, "a checkpoint before the first step"
        own = {
            CARRIED: list(names),
            "validations": dict(self.validations),
            "interval_nats": self.interval_nats,
            "interval_targets": self.interval_targets,
            "cluster_nats": list(self.cluster_nats),
            "cluster_targets": list(self.cluster_targets),
            "loss_history": list(self.loss_history),
            "skipped": sorted(each for each in self.skipped if each < step),
            AVERAGED: dict(self.averaged),
            NUM_AVERAGED: self.num_averaged,
        }
        carried = {name: lanes_of_all(part) for name, part in zip(names, self.carried, strict=True)}
        assert not own.keys() & carried.keys(), "a tensor of the carried state has the name of another entry"
        return own | carried

    def load_state_dict(self, found: dict[str, Any], names: Sequence[str], *, lanes: range) -> None:
        """Takes up what a checkpoint holds, however many ranks wrote it; what is to be skipped besides stays so.

        Args:
            found: as `state_dict` made it.
            names: of the carried tensors.
            lanes: those of this rank.
        """
        self.carried = tuple(found[name][:, lanes.start : lanes.stop].clone() for name in names)
        self.validations = found["validations"]
        self.interval_nats, self.interval_targets = found["interval_nats"], found["interval_targets"]
        # a checkpoint of an earlier version has no such sums: the first record then tells of the steps since
        self.cluster_nats, self.cluster_targets = found.get("cluster_nats", []), found.get("cluster_targets", [])
        self.loss_history = found["loss_history"]
        self.skipped |= set(found["skipped"])
        self.averaged, self.num_averaged = found.get(AVERAGED, {}), found.get(NUM_AVERAGED, 0)


def _added(sums: Sequence[Number], values: Sequence[Number]) -> list[Number]:
    """Place by place; no sums yet count as zeros."""
    return [total + value for total, value in zip(sums, values, strict=True)] if sums else list(values)

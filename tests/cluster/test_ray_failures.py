"""Which rank Ray Train's words are taken to blame, without a Ray."""

import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed
from ray.exceptions import ActorDiedError, ActorUnavailableError

from pipeline.cluster.ray_train import WorkerError, _in_exchange, failure_of
from pipeline.run.job import WorkerFailure

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # of Ray Train's, about names of its own

NEIGHBOUR = WorkerError("RuntimeError: Connection closed by peer [127.0.0.1]:31746", "Traceback ...", in_exchange=True)


class CarryingError(Exception):
    """As Ray Train hands on what it found by asking: an error of Ray's in one of its own."""

    def __init__(self, error: Exception, text: str = "found by asking") -> None:
        super().__init__(text)
        self.error = error


def test_a_rank_that_is_gone_is_named_and_not_those_whose_exchange_failed() -> None:
    failure = failure_of({0: NEIGHBOUR, 1: CarryingError(ActorDiedError()), 2: NEIGHBOUR})
    assert (failure.rank, failure.kind, failure.stack) == (1, "worker", None)
    assert failure.cause.startswith("ActorDiedError: ")


def test_a_rank_that_raised_something_of_its_own_is_named_with_its_stack() -> None:
    own = WorkerError("ZeroDivisionError: by zero", "Traceback of its own", in_exchange=False)
    assert failure_of({0: NEIGHBOUR, 1: NEIGHBOUR, 2: own}) == WorkerFailure(
        rank=2, cause="ZeroDivisionError: by zero", stack="Traceback of its own"
    )
    assert vars(pickle.loads(pickle.dumps(own))) == vars(own)  # it comes through Ray


def test_the_first_of_several_that_are_alike_is_named() -> None:
    assert failure_of({2: NEIGHBOUR, 1: NEIGHBOUR}).rank == 1
    own = WorkerError("ValueError: x", "", in_exchange=False)
    assert failure_of({1: CarryingError(ActorUnavailableError("not now", None)), 0: own}).rank == 1


def test_a_machine_that_was_taken_away_is_a_preemption() -> None:
    error = ActorDiedError()
    error._preempted = True  # what Ray's own flag for it reads
    failure = failure_of({0: NEIGHBOUR, 1: CarryingError(error)})
    assert failure == WorkerFailure(rank=1, cause="the machine of rank 1 was taken away", kind="preemption")


def test_a_rank_that_does_not_answer_hangs() -> None:
    class HealthCheckTimeoutError(Exception):
        """Ray Train's own word."""

    failure = failure_of({0: NEIGHBOUR, 1: HealthCheckTimeoutError("after 30 s")})
    assert failure == WorkerFailure(rank=1, cause="rank 1 does not answer", kind="hang")


def test_an_error_of_an_exchange_is_known_by_where_it_was_raised() -> None:
    def caught(act: Callable[[], object]) -> Exception:
        with pytest.raises(Exception) as found:
            act()
        return found.value

    def in_backward() -> None:
        class Failing(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
                return x.clone()

            @staticmethod
            def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
                return torch.zeros(3, 5)

        Failing.apply(torch.zeros(2, requires_grad=True)).sum().backward()  # type: ignore[no-untyped-call]

    assert _in_exchange(caught(lambda: torch.distributed.all_reduce(torch.zeros(1))))
    assert _in_exchange(caught(in_backward))
    assert not _in_exchange(caught(lambda: torch.zeros(2, 3) @ torch.zeros(2, 3)))
    assert not _in_exchange(caught(lambda: 1 / 0))

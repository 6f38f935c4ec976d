"""What the command makes of signals and of what Ray Train's controller finds, without a Ray."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.cluster import ray_controller
from pipeline.cluster.group import Launch, Loss
from pipeline.cluster.ray_controller import Ended, Watch
from pipeline.config import Config, load
from pipeline.errors import CheckpointError, ConfigError

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # of Ray Train's, about names of its own


class Worker:
    """A worker as Ray Train has them, that remembers what it was asked to do."""

    def __init__(self, node: str) -> None:
        self.metadata = SimpleNamespace(node_id=node)
        self.actor = SimpleNamespace(mark_preempt=SimpleNamespace(remote=self._note))
        self.asked: list[Any] = []

    def _note(self, info: Any) -> None:
        self.asked.append(info)

    def execute_async(self, function: Any, cause: str) -> None:
        self.asked.append((function.__name__, cause))


@pytest.fixture
def told() -> list[Loss]:
    return []


@pytest.fixture
def launch(told: list[Loss], tmp_path: Any) -> Launch:
    return Launch(
        cluster=load(Config, ["cluster=ray", "cluster.grace_seconds=1000"]).cluster,
        use_gpu=False,
        timeout_seconds=1.0,
        hang_seconds=None,
        name="attempt-1",
        folder=str(tmp_path),
        set_up=lambda _: None,
        on_loss=told.append,
    )


@pytest.fixture
def workers() -> list[Worker]:
    return [Worker("a"), Worker("b"), Worker("b")]


@pytest.fixture
def watch(launch: Launch, workers: list[Worker]) -> Watch:
    """Of a group that trains."""
    watch = Watch(launch, watch_lack=lambda: None)
    watch.begin(workers)
    watch.going = True
    return watch


def found(*results: Any) -> Any:
    """By rank: an error, or what `train` gave; None: it goes on."""
    errors = {rank: result for rank, result in enumerate(results) if isinstance(result, Exception)}
    refusals = {rank: result for rank, result in errors.items() if isinstance(result, ConfigError)}
    statuses = {
        rank: SimpleNamespace(error=errors.get(rank), return_value=refusals.get(rank)) for rank in range(len(results))
    }
    return SimpleNamespace(
        worker_statuses=statuses, errors={rank: error for rank, error in errors.items() if rank not in refusals}
    )


def test_a_signal_is_passed_on_once_to_the_first_rank(watch: Watch, workers: list[Worker]) -> None:
    watch.pass_on()
    assert workers[0].asked == []
    watch.hear("SIGTERM")
    for _ in range(2):
        watch.heed()
        watch.pass_on()
    assert workers[0].asked == [("ask_to_stop", "SIGTERM")]
    assert workers[1].asked == []


def test_a_signal_ends_the_wait_where_nobody_trains(launch: Launch) -> None:
    watch = Watch(launch, watch_lack=lambda: None)
    with pytest.raises(KeyboardInterrupt):
        watch.hear("SIGTERM")
    with pytest.raises(KeyboardInterrupt):  # again, where Ray had swallowed that
        watch.heed()
    assert (watch.wish, watch.dropped) == ("SIGTERM", False)


def test_a_group_that_is_lost_with_a_signal_under_way_is_not_replaced(watch: Watch) -> None:
    watch.hear("SIGTERM")
    watch.going = False
    with pytest.raises(KeyboardInterrupt):
        watch.heed()


def test_a_second_ctrl_c_ends_the_wait(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.cluster.group.SAME_WISH_SECONDS", -1.0)
    watch.hear("SIGINT")
    with pytest.raises(KeyboardInterrupt):
        watch.hear("SIGINT")
    assert watch.dropped


def test_workers_that_do_not_stop_in_time_are_not_waited_for(launch: Launch, workers: list[Worker]) -> None:
    watch = Watch(
        replace(launch, cluster=load(Config, ["cluster.grace_seconds=1e-9"]).cluster), watch_lack=lambda: None
    )
    watch.begin(workers)
    watch.going = True
    with pytest.raises(KeyboardInterrupt):
        for _ in range(1000):
            watch.hear("SIGTERM")


def test_the_rank_that_failed_is_named_not_those_that_noticed(watch: Watch, told: list[Loss]) -> None:
    exchange = RuntimeError("Connection closed by peer")
    watch.look_at(found(exchange, ValueError("a bug"), exchange))
    watch.look_at(found(exchange, ValueError("another"), None))  # of the same group
    assert told == [Loss(rank=1, cause="ValueError: a bug")]
    assert (watch.losses, watch.loss) == (1, told[0])


def test_what_a_worker_died_of_is_told_where_ray_knows_it_of_any(watch: Watch, told: list[Loss]) -> None:
    from ray.core.generated.common_pb2 import ActorDiedErrorContext
    from ray.exceptions import ActorDiedError, ActorUnavailableError

    died = ActorDiedErrorContext(error_message="The actor died because its node has died.", actor_id=bytes(16))
    watch.look_at(found(ActorUnavailableError("no answer", bytes(16)), None, ActorDiedError(died)))
    assert told == [Loss(rank=2, cause="was lost with its machine")]


def test_a_rank_that_cannot_be_reached_is_named_before_those_whose_exchange_failed(
    watch: Watch, told: list[Loss], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.exceptions import ActorUnavailableError

    asked: list[set[int]] = []
    monkeypatch.setattr(ray_controller, "_silent", lambda workers, *, heard: asked.append(set(heard)) or {})
    unavailable = ActorUnavailableError("The actor is unavailable", bytes(16))
    watch.look_at(found(RuntimeError("gloo"), unavailable, RuntimeError("Broken pipe")))
    assert told == [Loss(rank=1, cause="cannot be reached")]
    assert asked == [{0, 2}]


def test_where_nobody_failed_nothing_is_told(watch: Watch, told: list[Loss]) -> None:
    watch.look_at(found(None, None, None))
    assert (told, watch.losses) == ([], 0)


def test_the_first_of_several_that_failed_is_named(watch: Watch, told: list[Loss]) -> None:
    watch.look_at(found(None, ValueError("one"), ValueError("two")))
    assert told == [Loss(rank=1, cause="ValueError: one")]


def test_a_rank_that_was_lost_before_a_signal_is_told_of(watch: Watch, told: list[Loss]) -> None:
    from ray.exceptions import ActorDiedError

    watch.hear("SIGINT")
    watch.heed()
    watch.look_at(found(RuntimeError("gloo"), ActorDiedError()))
    assert [loss.rank for loss in told] == [1]
    watch.going = False
    with pytest.raises(KeyboardInterrupt):
        watch.heed()
    assert watch.wish == "SIGINT"


def test_each_group_is_told_of_and_those_taken_away_are_not_counted(watch: Watch, told: list[Loss]) -> None:
    watch.lose(Loss(rank=0, cause="one"))
    watch.lose(Loss(rank=0, cause="one, seen otherwise"))
    watch.begin([])
    watch.lose(Loss(rank=1, cause="two", kind="preemption"))
    assert ([loss.cause for loss in told], watch.losses) == (["one", "two"], 1)


def test_a_refusal_of_any_rank_is_the_outcome(watch: Watch, told: list[Loss]) -> None:
    refusal = ConfigError("not the same folder")
    with pytest.raises(Ended) as end:
        watch.look_at(found(RuntimeError("gloo"), None, refusal))
    assert end.value.outcome is refusal
    assert told == []


def test_a_store_that_fails_does_not_end_the_run(
    launch: Launch, workers: list[Worker], caplog: pytest.LogCaptureFixture
) -> None:
    def fail(loss: Loss) -> None:
        raise CheckpointError("gone")

    watch = Watch(replace(launch, on_loss=fail), watch_lack=lambda: None)
    watch.begin(workers)
    watch.lose(Loss(rank=0, cause="one"))
    assert watch.losses == 1
    assert "not told of in the run folder: gone" in caplog.text


def test_all_workers_are_told_once_of_machines_to_be_taken_away(
    watch: Watch, workers: list[Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray._private.state import state

    draining: dict[str, int] = {"elsewhere": 5}
    monkeypatch.setattr(state, "get_draining_nodes", lambda: draining)
    watch.give_notice()
    assert workers[0].asked == []
    draining["b"] = 0  # without a deadline
    watch.give_notice()
    watch.give_notice()
    for worker in workers:
        (info,) = worker.asked
        assert (info.preempted_ranks, info.deadline_ms) == ([1, 2], None)
    draining["a"] = 7
    watch.give_notice()
    assert (workers[0].asked[-1].preempted_ranks, workers[0].asked[-1].deadline_ms) == ([0, 1, 2], 7)
    del draining["b"]
    watch.give_notice()
    draining["b"] = 9
    watch.give_notice()
    assert (workers[0].asked[-1].preempted_ranks, workers[0].asked[-1].deadline_ms) == ([0, 1, 2], 7)  # the first

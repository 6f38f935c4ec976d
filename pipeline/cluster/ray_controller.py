"""Ray Train's controller in the command's process: what it hears of the workers, and what the user wishes of them.

Ray Train tells too little of why a group was lost, drops what a group did since its last checkpoint when it resizes,
and starts processes that we have no use for. What mends that leans on its internals, which is why `pyproject.toml`
bounds ray from above.
"""

import asyncio
import logging
import os
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from pipeline import storage
from pipeline.cluster.group import Launch, Loss, Wishes, cause_of
from pipeline.cluster.outcome import one_line
from pipeline.cluster.ray_session import ray_api
from pipeline.cluster.ray_worker import ask_to_stop
from pipeline.config import ClusterConfig
from pipeline.errors import PipelineError

log = logging.getLogger(__name__)

SILENT_SECONDS = 30.0  # for Ray to give a machine up
PAUSE_SECONDS = 0.2  # between two looks at a cluster that lacks machines
# states of Ray Train's controller
WAITING = ("InitializingState", "SchedulingState", "ReschedulingState", "RestartingState", "ResizingState")
EXCHANGES = ("gloo", "NCCL", "Connection", "Broken pipe")  # in what the ranks that are left raise
DEATHS = {  # what Ray says of a worker that is gone, and in the user's terms
    "low on memory": "was ended by Ray: its machine ran low on memory",
    "node has died": "was lost with its machine",
    "is unavailable": "cannot be reached",
    "worker process has died": "died: killed, out of memory, or crashed",
}


class Ended(BaseException):
    """The training is over, whatever the controller would do next: not an `Exception`, for which it would try again.

    Attributes:
        outcome: what `train` gave.
    """

    def __init__(self, outcome: Any) -> None:  # noqa: ANN401
        super().__init__()
        self.outcome = outcome


class Watch:
    """What the controller hears of the workers, and the signals by which the user wants them to stop.

    Args:
        launch: how they are started.
        watch_lack: called again and again while there are too few machines.

    Attributes:
        going: whether a group has been started and is not lost.
        losses: groups lost, but for those whose machines were taken away with notice.
        loss: the last of them.
        dropped: whether a second Ctrl-C asked for an end without a checkpoint.
        wish: the name of the last signal; None: there was none.
    """

    def __init__(self, launch: Launch, *, watch_lack: Callable[[], None]) -> None:
        self.going = False
        self.losses = 0
        self.loss: Loss | None = None
        self.dropped = False
        self.watch_lack = watch_lack
        self._launch = launch
        self._wishes = Wishes(grace_seconds=launch.cluster.grace_seconds)
        self._workers: list[Any] = []
        self._taken: dict[str, list[int]] = {}
        self._asked: str | None = None
        self._told = True

    @property
    def wish(self) -> str | None:
        return self._wishes.last

    def hear(self, name: str) -> None:
        """Of a signal; may be called at any time.

        Raises:
            KeyboardInterrupt: nothing is to be waited for. (Ray lets no other error than this one out of its waiting.)
        """
        if self._wishes.add(name):
            self.dropped = True
        self.heed()

    def heed(self) -> None:
        """Ends the controller if the signals heard so far call for that: what `hear` raises is lost in some places."""
        if self.dropped or self._wishes.late or (self.wish is not None and not self.going):
            raise KeyboardInterrupt

    def begin(self, workers: list[Any]) -> None:
        """A group has been started."""
        self._workers, self._taken, self._told, self._asked = workers, {}, False, None

    def pass_on(self) -> None:
        """Has the workers save their state and stop, if a signal asked for that."""
        if self.wish != self._asked:
            self._asked = self.wish
            self._workers[0].execute_async(ask_to_stop, self.wish)

    def give_notice(self) -> None:
        """Tells all workers if machines of theirs are about to be taken away, and Ray Train through them."""
        from ray._private.state import state
        from ray.exceptions import RayError
        from ray.train import PreemptionInfo

        deadlines: dict[str, int] = {}  # Unix milliseconds, 0: unknown
        with suppress(RayError):
            deadlines = state.get_draining_nodes()
        taken: dict[str, list[int]] = {}
        for rank, worker in enumerate(self._workers):
            if worker.metadata.node_id in deadlines:
                taken.setdefault(worker.metadata.node_id, []).append(rank)
        if taken and taken != self._taken:
            self._taken = taken
            deadline = min(filter(None, (deadlines[node] for node in taken)), default=None)
            info = PreemptionInfo(deadline_ms=deadline, preempted_node_to_ranks=taken)
            for worker in self._workers:
                worker.actor.mark_preempt.remote(info)

    def stop_to_resize(self) -> None:
        """Has the workers save their state and stop, and waits for that."""
        self._workers[0].execute_async(ask_to_stop, "resize")
        _parted(self._workers, within_seconds=self._launch.cluster.grace_seconds)

    def look_at(self, found: Any) -> None:  # noqa: ANN401
        """What Ray Train knows of the workers, after it has asked them.

        Raises:
            Ended: one met with a user's error; the others may be waiting for that one.
        """
        for status in found.worker_statuses.values():
            if isinstance(status.return_value, PipelineError):
                raise Ended(status.return_value)
        errors = {rank: _bare(error) for rank, error in found.errors.items()}
        if errors and not self._told:
            heard = {rank: error for rank, error in errors.items() if not _unavailable(error)}
            if all(_of_exchange(error) for error in heard.values()):
                errors |= _silent(self._workers, heard=heard)
            rank = min(errors, key=lambda each: (_of_exchange(errors[each]), _unavailable(errors[each]), each))
            self.lose(_loss(rank, errors[rank]), stack=_stack(found.worker_statuses[rank].error))

    def lose(self, loss: Loss, *, stack: str | None = None) -> None:
        """The group is lost: told once for each."""
        if self._told:
            return
        self._told = True
        self.losses += loss.kind != "preemption"
        try:
            if stack is not None:
                place = storage.join(self._launch.folder, f"{self._launch.name}-loss-{self.losses}.txt")
                storage.publish_bytes(place, stack.encode())
                loss = replace(loss, cause=f"{loss.cause}; its stack is in {place}")
            self._launch.on_loss(loss)
        except PipelineError as error:  # a store that does not serve; Ray Train would end for it
            log.warning("a lost worker group is not told of in the run folder: %s", error)
        self.loss = loss


def overseen_trainer(watch: Watch, launch: Launch) -> type[Any]:
    """Ray's TorchTrainer whose `fit` runs the controller here, under our eyes.

    It does without the processes that do nothing for us. Each wakes 150 times a second, for which training on all
    cores waits, and takes a second or more of a core to start: the controller's own, one in which workers that report
    to Ray Train wait for each other, one that looks out for machines to be taken away (the watch does), one that hands
    out Ray data sets, one that frees what a lost controller had reserved (Ray does that by itself), and on a machine of
    our own one that asks for more machines.
    """
    from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
    from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
    from ray.train.v2._internal.execution.controller import TrainController
    from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
    from ray.train.v2._internal.execution.worker_group import WorkerGroup, state, worker_group
    from ray.train.v2.torch.torch_trainer import TorchTrainer

    class Group(WorkerGroup):
        def _create_placement_group(self, scaling_config: Any, worker_group_context: Any) -> Any:  # noqa: ANN401
            handle = super()._create_placement_group(scaling_config, worker_group_context)
            ready = handle.wait

            def wait(timeout_seconds: float = 30) -> bool:
                deadline = time.monotonic() + timeout_seconds
                while not (found := ready(1)) and time.monotonic() < deadline:  # Ray hears no signal in it
                    watch.heed()
                    watch.watch_lack()
                return found

            handle.wait = wait  # type: ignore[method-assign]
            return handle

        def _init_train_context_on_workers(
            self,
            workers: list[Any],
            sync_actor: Any,  # noqa: ANN401
            train_context_args: dict[str, list[Any]],
        ) -> None:
            told = [
                worker.actor.init_train_context.remote(
                    train_run_context=self._train_run_context,
                    distributed_context=worker.distributed_context,
                    synchronization_actor=None,
                    storage_context=self._storage_context,
                    worker_callbacks=self._worker_callbacks_to_propagate,
                    controller_actor=None,
                    **{name: values[i] for name, values in train_context_args.items()},
                )
                for i, worker in enumerate(workers)
            ]
            ray_api().get(told)

    class Controller(TrainController):
        worker_group_cls = Group

    class OfFixedSize(FixedScalingPolicy):
        def after_controller_start(self, train_run_context: Any) -> None:  # noqa: ANN401
            pass

        def _maybe_send_resource_request(self) -> None:
            pass

    class Trainer(TorchTrainer):
        def _create_default_callbacks(self) -> list[Any]:
            idle = DatasetsCallback | PlacementGroupCleanerCallback
            found = [callback for callback in super()._create_default_callbacks() if not isinstance(callback, idle)]
            return [*found, _overseer(watch, launch.cluster)]

        def _initialize_and_run_controller(self, **parts: Any) -> Any:  # noqa: ANN401
            if launch.cluster.kind == "local" and launch.cluster.min_workers is None:
                parts["scaling_policy"] = OfFixedSize(parts["scaling_policy"].scaling_config)
            controller = Controller(**parts)
            asyncio.run(controller.run())  # type: ignore[no-untyped-call]
            return controller.get_result()

    worker_group.SynchronizationActor = _Nobody()  # type: ignore[assignment,attr-defined]
    state._shutdown_sync_actor = _Nobody.leave  # type: ignore[assignment]
    return Trainer


class _Nobody:
    """In the place of an actor that Ray Train would start."""

    def options(self, **how: Any) -> "_Nobody":  # noqa: ANN401
        return self

    def remote(self, **arguments: Any) -> "_Nobody":  # noqa: ANN401
        return self

    def leave(self) -> None:
        pass


def _overseer(watch: Watch, cluster: ClusterConfig) -> Any:  # noqa: ANN401
    """A callback of Ray Train that tells the watch what goes on."""
    from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import (
        get_or_create_autoscaling_coordinator,
    )
    from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback
    from ray.train.v2.api.exceptions import PreemptionError

    class Overseer(ControllerCallback, WorkerGroupCallback):
        def __init__(self) -> None:
            self._resizing = False

        def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:  # noqa: ANN401
            name = type(current_state).__name__
            waiting = name in WAITING
            watch.going = not waiting
            self._resizing = name == "ResizingState" or (self._resizing and waiting)
            error = vars(current_state).get("training_failed_error")
            if isinstance(error, PreemptionError):
                watch.lose(_taken_away(error.preemption_info.preempted_ranks[0]))
            watch.heed()
            if waiting and cluster.min_workers is not None:
                # what elastic Ray Train knows of the machines is up to 20 s old, unless someone has it look again
                coordinator: Any = get_or_create_autoscaling_coordinator()  # type: ignore[no-untyped-call]
                coordinator.get_reserved_resources.remote("", recompute=True)
            if waiting and current_state is previous_state:  # it would look again at once, and again
                watch.watch_lack()
                time.sleep(PAUSE_SECONDS)

        def before_controller_execute_resize_decision(self, resize_decision: Any) -> None:  # noqa: ANN401
            if self._resizing:  # Ray Train would lose what the group did since its last checkpoint
                watch.stop_to_resize()

        def after_worker_group_start(self, worker_group: Any) -> None:  # noqa: ANN401
            watch.begin(worker_group.get_workers())

        def after_worker_group_poll_status(self, worker_group_status: Any) -> None:  # noqa: ANN401
            watch.heed()
            watch.look_at(worker_group_status)
            watch.pass_on()
            if cluster.kind == "ray":  # nobody takes our own machine away
                watch.give_notice()

    return Overseer()


def _parted(workers: Sequence[Any], *, within_seconds: float) -> None:
    """Returns once no worker trains any more, or one is lost, or the time is over."""
    from ray.exceptions import RayError

    deadline = time.monotonic() + within_seconds
    with suppress(RayError):
        while time.monotonic() < deadline:
            asked = [worker.actor.poll_status.remote() for worker in workers]
            if not any(each.running for each in ray_api().get(asked, timeout=within_seconds)):
                return
            time.sleep(0.2)


def _silent(workers: Sequence[Any], *, heard: Collection[int]) -> dict[int, Exception]:
    """The ranks that are gone. The others tell, often before Ray knows it, that an exchange with someone failed."""
    import ray
    from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayActorError

    gone: dict[int, Exception] = {}
    deadline = time.monotonic() + SILENT_SECONDS
    for rank, worker in enumerate(workers):
        while rank not in heard:
            try:
                ray.get(worker.execute_async(os.getpid), timeout=max(deadline - time.monotonic(), 0.1))
                break
            except ActorUnavailableError as error:  # dead, once Ray has given its machine up
                gone[rank] = error
                if time.monotonic() > deadline:
                    break
                time.sleep(0.5)
            except (RayActorError, GetTimeoutError) as error:
                gone[rank] = error
                break
    return gone


def _bare(error: Exception) -> Exception:
    """Without Ray Train's word that it was found by asking."""
    from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

    return error.health_check_failure if isinstance(error, WorkerHealthCheckFailedError) else error


def _stack(error: Exception | None) -> str | None:
    """Of an error that a worker raised by itself."""
    from ray.train.v2._internal.exceptions import UserExceptionWithTraceback

    return str(error) if isinstance(error, UserExceptionWithTraceback) else None


def _unavailable(error: Exception) -> bool:
    """Whether Ray does not know yet what a worker died of."""
    from ray.exceptions import ActorUnavailableError

    return isinstance(error, ActorUnavailableError)


def _of_exchange(error: Exception) -> bool:
    """Whether an error tells that another rank is gone."""
    return isinstance(error, RuntimeError) and any(name in str(error) for name in EXCHANGES)


def _loss(rank: int, error: Exception) -> Loss:
    """A loss in the user's terms."""
    from ray.exceptions import GetTimeoutError, RayActorError
    from ray.train.v2._internal.exceptions import WorkerHealthCheckTimeoutError

    if isinstance(error, WorkerHealthCheckTimeoutError | GetTimeoutError):
        return Loss(rank=rank, cause=f"rank {rank} does not answer", kind="hang")
    if not isinstance(error, RayActorError):
        return Loss(rank=rank, cause=f"{type(error).__name__}: {one_line(error)}")
    if error.preempted:
        return _taken_away(rank)
    causes = [cause for sign, cause in DEATHS.items() if sign in str(error)]
    return Loss(rank=rank, cause=causes[0] if causes else cause_of(error))


def _taken_away(rank: int) -> Loss:
    return Loss(rank=rank, cause=f"the machine of rank {rank} was taken away", kind="preemption")

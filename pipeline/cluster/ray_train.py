"""Training workers by Ray Train: a controller starts them, and with more or fewer as machines come and go.

Ray Train tells too little of why a group was lost, drops what a group did since its last checkpoint when it resizes,
and starts actors that we have no use for. `_overseer` and `_frugal_trainer` mend that and lean on its internals, which
is why `pyproject.toml` bounds ray from above.
"""

import logging
import os
import secrets
import signal
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from tempfile import TemporaryDirectory
from typing import Any, Literal

from pipeline import storage
from pipeline.cluster.group import (
    Launch,
    Loss,
    Train,
    Wishes,
    Worker,
    cause_of,
    given_up,
    signals_to,
    threads_of_each,
)
from pipeline.cluster.outcome import one_line, outcome_of, unwrapped
from pipeline.cluster.ray_session import ray_api, ray_session
from pipeline.config import ClusterConfig
from pipeline.errors import ClusterError, PipelineError

log = logging.getLogger(__name__)

ANSWER_SECONDS = 10.0  # for Ray's head to, before something else is tried
PATIENCE_SECONDS = 60.0  # for it to, where nothing else can be: by then Ray gives it up too
SILENT_SECONDS = 30.0  # for Ray to give a machine up
LACK_SECONDS = 15.0  # without workers before it is told what they wait for
LACK_AGAIN_SECONDS = 300.0  # before it is told again
# states of Ray Train's controller
WAITING = ("InitializingState", "SchedulingState", "ReschedulingState", "RestartingState", "ResizingState")
EXCHANGES = ("gloo", "NCCL", "Connection", "Broken pipe")  # in what the ranks that are left raise
DEATHS = {  # what Ray says of a worker that is gone, and in the user's terms
    "low on memory": "was ended by Ray: its machine ran low on memory",
    "node has died": "was lost with its machine",
    "is unavailable": "cannot be reached",
    "worker process has died": "died: killed, out of memory, or crashed",
}


def train_by_ray(train: Train, job: Any, launch: Launch) -> Any:  # noqa: ANN401
    """Ray Train: a controller starts the workers, again if one is lost, and with more or fewer as machines come and go.

    It keeps no checkpoints of ours: each group looks for the newest one in the run folder. What it notes for itself,
    its controller alone reads, on the command's machine, and it goes when the command ends.
    """
    cluster = launch.cluster
    num_cpus = max((cluster.num_workers or 1) * (cluster.cpus_per_worker or 1), len(os.sched_getaffinity(0)))
    try:
        with (
            ray_session(cluster, num_cpus=num_cpus, environment=_environment(launch), keeps_idle=False),
            TemporaryDirectory(prefix="ray-train-") as notes,
        ):
            use_gpu, board = _uses_gpu(launch), _Board()
            trainer = _trainer(train, job, launch, board=board, use_gpu=use_gpu, notes=notes)
            try:
                return unwrapped(_awaited(trainer, board, cluster, needs=_needs(cluster, use_gpu=use_gpu)))
            finally:
                board.clear()
    except SystemExit:  # while Ray starts, it takes SIGTERM in its own way
        return signal.SIGTERM.name


def _environment(launch: Launch) -> dict[str, str]:
    """Ray Train waits less long than it would for those that are lost and machines that are gone, and runs less."""
    seconds = {"TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": 5.0}  # of 30; the processes are ended then anyway
    if launch.cluster.min_workers is not None:  # of 60; then it looks again for how many there is room
        seconds["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = 15.0
    if launch.hang_seconds is not None:  # of 600; the ranks name the one that hangs sooner, unless it has no others
        seconds["RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"] = launch.hang_seconds + 15.0
    environment = {name: f"{value:g}" for name, value in seconds.items()}
    if launch.cluster.kind == "local":  # nobody gives notice of our own machine, for which an actor would watch
        environment["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"
    return environment


def _uses_gpu(launch: Launch) -> bool:
    """Whether each worker gets a GPU: as asked for, or if the cluster has any. The command's machine needs none.

    Raises:
        ClusterError: the cluster is this machine, and it has too few.
    """
    num_gpus, num_workers = int(ray_api().cluster_resources().get("GPU", 0)), launch.cluster.num_workers or 1
    use_gpu = num_gpus > 0 if launch.use_gpu is None else launch.use_gpu
    if use_gpu and launch.cluster.kind == "local" and num_workers > num_gpus:
        raise ClusterError(
            f"cluster.num_workers={num_workers} needs a GPU for each and this machine has {num_gpus};"
            f" use {f'cluster.num_workers={num_gpus} or ' if num_gpus else ''}accelerator=cpu"
        )
    return use_gpu


def _needs(cluster: ClusterConfig, *, use_gpu: bool) -> dict[str, float]:
    """What Ray sets aside for each worker."""
    return {"CPU": float(cluster.cpus_per_worker or 1)} | ({"GPU": 1.0} if use_gpu else {})


def _trainer(
    train: Train,
    job: Any,  # noqa: ANN401
    launch: Launch,
    *,
    board: "_Board",
    use_gpu: bool,
    notes: str,
) -> Any:  # noqa: ANN401
    from ray.train import RunConfig
    from ray.train.torch import TorchConfig
    from ray.train.v2.api.config import FailureConfig, ScalingConfig  # what ray.train names, with its types

    cluster = launch.cluster
    num_workers = cluster.num_workers or 1
    return _frugal_trainer(cluster)(
        _in_ray_worker,
        train_loop_config={"train": train, "job": job, "launch": launch, "board": board, "use_gpu": use_gpu},
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo", timeout_s=int(launch.timeout_seconds)),
        scaling_config=ScalingConfig(
            num_workers=num_workers if cluster.min_workers is None else (cluster.min_workers, num_workers),
            use_gpu=use_gpu,
            resources_per_worker=_needs(cluster, use_gpu=use_gpu),
            elastic_resize_monitor_interval_s=cluster.resize_seconds,
        ),
        run_config=RunConfig(
            name=launch.name,
            storage_path=notes,
            failure_config=FailureConfig(max_failures=cluster.max_failures, max_preemption_failures=-1),
            callbacks=[_overseer(launch, board)],
        ),
    )


def _frugal_trainer(cluster: ClusterConfig) -> type[Any]:
    """Ray's TorchTrainer without the actors that do nothing for us.

    Each is a process of some 150 wakes a second, for which training on all cores waits, and a second or more of a core
    to start: one that hands out Ray data sets, one that frees what a lost controller had reserved (Ray does that by
    itself), and on a machine of our own one that asks for more machines.
    """
    from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
    from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
    from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
    from ray.train.v2.torch.torch_trainer import TorchTrainer

    class OfFixedSize(FixedScalingPolicy):
        def after_controller_start(self, train_run_context: Any) -> None:  # noqa: ANN401
            pass

        def _maybe_send_resource_request(self) -> None:
            pass

    class FrugalTrainer(TorchTrainer):
        def _create_default_callbacks(self) -> list[Any]:
            idle = DatasetsCallback | PlacementGroupCleanerCallback
            return [callback for callback in super()._create_default_callbacks() if not isinstance(callback, idle)]

        def _initialize_and_run_controller(self, **parts: Any) -> Any:  # noqa: ANN401
            if cluster.kind == "local" and cluster.min_workers is None:
                parts["scaling_policy"] = OfFixedSize(parts["scaling_policy"].scaling_config)
            return super()._initialize_and_run_controller(**parts)

    return FrugalTrainer


@dataclass(frozen=True, kw_only=True)
class _News:
    """What the command is to know of the workers that Ray starts for it.

    Attributes:
        phase: a group waits for machines, is being started, or is there.
        losses: groups lost, but for those whose machines were taken away with notice.
        loss: the last of them.
        refusal: a user's error that a worker met with; the others may be waiting for that one.
        controller: Ray Train's.
    """

    phase: Literal["unknown", "waiting", "starting", "going"] = "unknown"
    losses: int = 0
    loss: Loss | None = None
    refusal: PipelineError | None = None
    controller: Any = None


class _Board:
    """What the command and its workers tell each other, in the table of keys that Ray's head keeps.

    It may be pickled. Every method asks the head, and raises `RayError` if it does not answer.
    """

    def __init__(self) -> None:
        self._namespace = f"wordlanes-{secrets.token_hex(8)}".encode()

    def wish(self, name: str) -> None:
        """Of the command: that the workers stop, by a signal's name."""
        self._put(wish=name)

    def resize(self, wished: bool) -> None:
        """Of the controller: that they stop, and others go on."""
        self._put(resize=wished)

    def wished(self) -> str | None:
        """Why the workers are to stop."""
        found = self._get("wish", "resize")
        return found.get("wish") or ("resize" if found.get("resize") else None)

    def tell(self, **news: Any) -> None:  # noqa: ANN401
        """Fields of the news."""
        self._put(**news)

    def news(self) -> _News:
        """All that was told."""
        return _News(**self._get(*(each.name for each in fields(_News))))

    def clear(self) -> None:
        """Takes all away; that a head that is gone keeps nothing is fine."""
        from ray.exceptions import RayError

        with suppress(RayError):
            self._table().internal_kv_del(b"", True, self._namespace, timeout=ANSWER_SECONDS)

    def _put(self, **values: Any) -> None:  # noqa: ANN401
        pickled = {name.encode(): ray_api().cloudpickle.dumps(value) for name, value in values.items()}
        for name, value in pickled.items():
            self._table().internal_kv_put(name, value, True, self._namespace, timeout=PATIENCE_SECONDS)

    def _get(self, *names: str) -> dict[str, Any]:
        found = self._table().internal_kv_multi_get(
            [name.encode() for name in names], self._namespace, timeout=ANSWER_SECONDS
        )
        return {name.decode(): ray_api().cloudpickle.loads(value) for name, value in found.items() if value is not None}

    @staticmethod
    def _table() -> Any:  # noqa: ANN401
        from ray.experimental import internal_kv

        client: Any = internal_kv.internal_kv_get_gcs_client()  # type: ignore[no-untyped-call]
        return client


def _awaited(trainer: Any, board: _Board, cluster: ClusterConfig, *, needs: Mapping[str, float]) -> Any:  # noqa: ANN401
    """The first rank's result, a worker's refusal, or the signal by whose wish all ended.

    A signal is a wish to stop. It is passed on to the workers, who have time for it; where there are none, that is the
    end. A second Ctrl-C, not right after, ends the wait.
    """
    import ray
    from ray.exceptions import RayError

    fitted: dict[str, Any] = {}
    ended = threading.Event()  # a thread's join that is interrupted takes the thread to have ended (Python 3.11)
    wishes = Wishes(grace_seconds=cluster.grace_seconds)

    def fit() -> None:
        try:
            fitted["outcome"] = trainer.fit().return_value
        except Exception as error:  # noqa: BLE001 it is raised in the main thread
            fitted["error"] = error
        ended.set()

    def pass_on(name: str) -> None:
        if wishes.add(name):
            raise KeyboardInterrupt

    def latest(news: _News) -> _News:
        with suppress(RayError):  # the thread is told too of what is wrong with Ray
            if wishes.last is not None:
                board.wish(wishes.last)
            news = board.news()
        return news

    news, lack = _News(), _Lack(cluster, needs)
    with signals_to(pass_on):
        # not in the main thread, where Ray Train takes Ctrl-C for a wish to drop everything
        threading.Thread(target=fit, name="ray train", daemon=True).start()
        try:
            while not ended.wait(0.5):
                news = latest(news)
                if news.refusal is not None:
                    return news.refusal
                if wishes.last is not None and (wishes.late or news.phase in ("waiting", "starting")):
                    return wishes.last
                lack.watch(news)
        finally:
            if not ended.is_set() and news.controller is not None:
                ray.kill(news.controller)
                ended.wait(ANSWER_SECONDS)  # the thread must not call a Ray that is shut down: that ends the process
    if "error" in fitted:
        raise _failure(fitted["error"], latest(news), cluster) from fitted["error"]
    return fitted["outcome"]


class _Lack:
    """Tells what the workers wait for, if they wait for long."""

    def __init__(self, cluster: ClusterConfig, needs: Mapping[str, float]) -> None:
        self._cluster = cluster
        self._needs = needs
        self._due: float | None = None

    def watch(self, news: _News) -> None:
        """To be called again and again."""
        now = time.monotonic()
        if news.phase != "waiting":
            self._due = None
        elif self._due is None:
            self._due = now + LACK_SECONDS
        elif now > self._due:
            self._due = now + LACK_AGAIN_SECONDS
            log.warning("%s", self._told())

    def _told(self) -> str:
        there, free = ray_api().cluster_resources(), ray_api().available_resources()
        least = self._cluster.min_workers
        number = f"{self._cluster.num_workers or 1}" if least is None else f"{least} at least"
        each = " and ".join(f"{count:g} {name}" for name, count in self._needs.items())
        has = " and ".join(f"{there.get(name, 0):g} {name} ({free.get(name, 0):g} free)" for name in self._needs)
        return f"no workers yet: {number} with {each} each are needed, and the cluster has {has}; waiting for more"


def _failure(error: Exception, news: _News, cluster: ClusterConfig) -> Exception:
    """Why Ray Train gave up, in the user's terms; an error that is not of its making stays what it is."""
    from ray.exceptions import RayError
    from ray.train import ControllerError, TrainingFailedError, WorkerGroupError

    if isinstance(error, WorkerGroupError) and news.loss is not None:
        return given_up(news.losses, news.loss, cluster)
    cause = error.controller_failure if isinstance(error, ControllerError) else error
    if isinstance(error, TrainingFailedError | RayError):
        return ClusterError(f"Ray cannot go on ({type(cause).__name__}: {one_line(cause)}); the same command goes on")
    return error


def _overseer(launch: Launch, board: _Board) -> Any:  # noqa: ANN401
    """A callback of Ray Train, in its controller: tells how far the workers are, and of each group that is lost."""
    import ray
    from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import (
        get_or_create_autoscaling_coordinator,
    )
    from ray.exceptions import ActorUnavailableError
    from ray.train.v2._internal.exceptions import UserExceptionWithTraceback
    from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback
    from ray.train.v2.api.exceptions import PreemptionError

    class Overseer(ControllerCallback, WorkerGroupCallback):
        def __init__(self) -> None:
            self._workers: list[Any] = []
            self._resizing = False
            self._losses = 0
            self._told = True

        def after_controller_start(self, train_run_context: Any) -> None:  # noqa: ANN401
            board.tell(controller=ray.get_runtime_context().current_actor, phase="waiting")

        def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:  # noqa: ANN401
            name = type(current_state).__name__
            waiting = name in WAITING
            board.tell(phase="waiting" if waiting else "going")
            self._resizing = name == "ResizingState" or (self._resizing and waiting)
            error = vars(current_state).get("training_failed_error")
            if isinstance(error, PreemptionError):
                self._tell(_taken_away(error.preemption_info.preempted_ranks[0]))
            if waiting and launch.cluster.min_workers is not None:
                # what elastic Ray Train knows of the machines is up to 20 s old, unless someone has it look again
                coordinator: Any = get_or_create_autoscaling_coordinator()  # type: ignore[no-untyped-call]
                coordinator.get_reserved_resources.remote("", recompute=True)

        def before_controller_execute_resize_decision(self, resize_decision: Any) -> None:  # noqa: ANN401
            if self._resizing:  # Ray Train would lose what the group did since its last checkpoint
                board.resize(True)
                _parted(self._workers, within_seconds=launch.cluster.grace_seconds)
                board.resize(False)

        def before_init_train_context(self, workers: list[Any]) -> dict[str, list[Any]]:
            board.tell(phase="starting")
            return {"dataset_shard_provider": [None] * len(workers)}  # there is none

        def after_worker_group_start(self, worker_group: Any) -> None:  # noqa: ANN401
            self._workers, self._told = worker_group.get_workers(), False

        def after_worker_group_poll_status(self, worker_group_status: Any) -> None:  # noqa: ANN401
            errors = {rank: _bare(error) for rank, error in worker_group_status.errors.items()}
            if not errors or self._told:
                return
            heard = {rank: error for rank, error in errors.items() if not isinstance(error, ActorUnavailableError)}
            if all(_of_exchange(error) for error in heard.values()):
                errors |= _silent(self._workers, heard=heard)
            rank = min(errors, key=lambda each: (_of_exchange(errors[each]), each))
            raised = worker_group_status.worker_statuses[rank].error
            stack = str(raised) if isinstance(raised, UserExceptionWithTraceback) else None
            self._tell(_loss(rank, errors[rank]), stack=stack)

        def _tell(self, loss: Loss, *, stack: str | None = None) -> None:
            """Once for each group."""
            if self._told:
                return
            self._told = True
            self._losses += loss.kind != "preemption"
            try:
                if stack is not None:
                    place = storage.join(launch.folder, f"{launch.name}-loss-{self._losses}.txt")
                    storage.publish_bytes(place, stack.encode())
                    loss = replace(loss, cause=f"{loss.cause}; its stack is in {place}")
                launch.on_loss(loss)
            except PipelineError as error:  # a store that does not serve; Ray Train would end for it
                log.warning("a lost worker group is not told of in the run folder: %s", error)
            board.tell(loss=loss, losses=self._losses)

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


def _in_ray_worker(place: dict[str, Any]) -> Any:  # noqa: ANN401
    import ray
    import ray.train
    from ray.train.lightning import RayDDPStrategy, RayLightningEnvironment

    launch, board, use_gpu = place["launch"], place["board"], place["use_gpu"]
    context = ray.train.get_context()
    launch.set_up(context.get_world_rank())
    local = launch.cluster.kind == "local"  # the machine is ours
    num_threads = threads_of_each(launch.cluster, context.get_local_world_size()) if local else None
    alone = context.get_world_size() == 1  # DDP would cost some 5% and exchange nothing
    worker = Worker(
        devices="auto" if use_gpu and not alone else 1,
        num_nodes=1,
        distributed=not alone,
        accelerator="cuda" if use_gpu else "cpu",
        strategy=None if alone else RayDDPStrategy,
        environment=None if alone else RayLightningEnvironment(),  # type: ignore[no-untyped-call]
        num_threads=num_threads or launch.cluster.cpus_per_worker or 1,
        stop_request=lambda: _wished(board),
        preempted=bool if local else lambda: ray.train.get_preemption_info() is not None,
    )
    outcome = outcome_of(lambda job: place["train"](worker, job), place["job"])
    if isinstance(outcome, PipelineError):
        board.tell(refusal=outcome)
    return outcome


def _wished(board: _Board) -> str | None:
    """The command's wish, if it can be asked; if it is gone for good, Ray ends its workers."""
    from ray.exceptions import RayError

    wish: str | None = None
    with suppress(RayError):
        wish = board.wished()
    return wish

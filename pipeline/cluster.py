"""The machines: tasks run over items, and workers that train together. The only home of ray.

In: `ClusterConfig`; for tasks a function of one argument and its items, for workers a function of its place and a job.
All of it can be pickled. Out: the tasks' (index, result) in the order in which they are done; the first worker's
result. Refuses: a task whose worker died `1 + MAX_RETRIES` times, and a group of workers lost more than `max_failures`
times.

`kind: none` runs tasks in this process, and workers as plain processes of this machine, or as those that torchrun or
srun started; it never imports ray. `kind: local` starts Ray on this machine until the context ends, `kind: ray` joins a
running cluster. Each task counts for one core, and it is run again if its worker dies. A `PipelineError` is the user's:
it reaches the caller as it was raised, and is not tried again.
"""

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from types import FrameType
from typing import Any, Protocol, TypeVar

from pipeline.config import ClusterConfig
from pipeline.errors import ClusterError, PipelineError

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")

MAX_RETRIES = 3  # of a task whose worker died
TASKS_PER_CPU = 2  # submitted at a time: one runs, one waits at the door
LOST_GRACE_SECONDS = 1.0  # for the other workers when one is lost, before and after they are asked to end
OBJECT_STORE_BYTES = 80 << 20  # receipts are small; /dev/shm of a container is too


class RunTasks(Protocol):
    """Runs a function over items and gives (index of the item, result) in the order in which they are done."""

    def __call__(
        self, function: Callable[[Item], Result], items: Sequence[Item]
    ) -> Iterator[tuple[int, Result]]: ...  # pragma: no cover


@contextmanager
def task_runner(cluster: ClusterConfig) -> Iterator[RunTasks]:
    """What runs tasks on the machine that is asked for, until the context ends.

    Args:
        cluster: `kind`, and for `local` the number of tasks at a time (null: one for each core).

    Yields:
        a `RunTasks`. Its iterator raises the `PipelineError` of a task, or `ClusterError` if workers die of it.
    """
    if cluster.kind == "none":
        yield run_here
        return
    num_cpus = cluster.num_cpus or len(os.sched_getaffinity(0))
    with _ray(cluster, num_cpus=num_cpus):

        def run_tasks(function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[tuple[int, Result]]:
            return _run_by_ray(function, items, num_cpus=num_cpus)

        yield run_tasks


@contextmanager
def _ray(cluster: ClusterConfig, *, num_cpus: int) -> Iterator[None]:
    """Ray, started on this machine or joined."""
    import ray

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if cluster.kind == "local":
        ray.init(
            address="local",
            num_cpus=num_cpus,
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            **quiet,
        )
    else:
        try:
            ray.init(address=cluster.address or "auto", **quiet)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ClusterError(
                f"cluster.address={cluster.address or 'null'} reaches no Ray cluster ({_one_line(error)});"
                " start one with `ray start --head`, or use cluster=local"
            ) from error
    try:
        yield
    finally:
        ray.shutdown()


def run_here(function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[tuple[int, Result]]:
    """Runs the items one after the other in this process."""
    for index, item in enumerate(items):
        yield index, function(item)


def _run_by_ray(
    function: Callable[[Item], Result], items: Sequence[Item], *, num_cpus: int
) -> Iterator[tuple[int, Result]]:
    """Runs the items as tasks, with a bounded number of them submitted at a time."""
    import ray

    remote: Any = ray.remote(_outcome).options(num_cpus=1, max_retries=MAX_RETRIES)
    waiting = list(range(len(items)))[::-1]
    running: dict[Any, int] = {}
    try:
        while waiting or running:
            while waiting and len(running) < TASKS_PER_CPU * num_cpus:
                index = waiting.pop()
                running[remote.remote(function, items[index])] = index
            done, _ = ray.wait(list(running), num_returns=1)
            for reference in done:
                index = running.pop(reference)
                yield index, _result(reference, item=items[index])
    finally:
        for reference in running:
            ray.cancel(reference, force=True)


def _outcome(function: Callable[[Item], Result], item: Item) -> Result | PipelineError:
    """Runs in a worker. A user's error comes back as a value: raised, Ray would wrap it and print its stack."""
    try:
        return function(item)
    except PipelineError as error:
        return error.with_traceback(None)


def _result(reference: Any, *, item: object) -> Any:  # noqa: ANN401  (ray is typed by its values)
    import ray

    try:
        outcome = ray.get(reference)
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError, ray.exceptions.OutOfMemoryError) as error:
        raise ClusterError(
            f"the worker of {item} died {1 + MAX_RETRIES} times ({_one_line(error)});"
            " if memory is short, use a smaller cluster.num_cpus"
        ) from error
    if isinstance(outcome, PipelineError):
        raise outcome
    return outcome


def _one_line(error: object) -> str:
    return " ".join(str(error).split())[:200]


@dataclass(frozen=True, kw_only=True)
class Worker:
    """The place of one training worker: what Lightning's Trainer needs to know of it, and what it may ask its cluster.

    Attributes:
        devices, num_nodes: as the Trainer takes them.
        distributed: whether there are others.
        strategy: the class of the Trainer's strategy; None: Lightning's own.
        environment: Lightning's plugin for this cluster; None: the one that Lightning finds.
        num_threads: of torch on the CPU; None: as many as torch likes.
        stop_request: a wish of whoever started the workers that they stop, as a signal's name; for the first rank.
        preempted: whether a machine of the group is about to be taken away; a collective.
    """

    devices: int | str
    num_nodes: int
    distributed: bool
    strategy: type[Any] | None = None
    environment: Any = None
    num_threads: int | None = None
    stop_request: Callable[[], str | None] = lambda: None
    preempted: Callable[[], bool] = bool


@dataclass(frozen=True, kw_only=True)
class Loss:
    """A worker group that was lost: the rank that went first and the cause, as far as they are known."""

    rank: int | None
    cause: str


# What a worker does with its place and the job: it trains with the others, and gives what the caller is to know.
Train = Callable[[Worker, Any], Any]


@dataclass(frozen=True, kw_only=True)
class Launch:
    """How workers are started.

    Attributes:
        cluster: the section.
        use_gpu: one GPU for each worker; else they exchange over gloo on CPUs.
        timeout_seconds: of an exchange of gradients.
        name, folder: of this attempt, and where Ray Train may keep notes on it; reached from every machine.
        set_up: called first in each worker that is a process of its own, with its rank: logging and the like.
        on_loss: told of each worker group that is lost; called wherever that is noticed.
    """

    cluster: ClusterConfig
    use_gpu: bool
    timeout_seconds: float
    name: str
    folder: str
    set_up: Callable[[int], None]
    on_loss: Callable[[Loss], None]


def launched_ranks() -> tuple[int, int] | None:
    """(rank, world size) if torchrun or srun started this process as one of several; None if it stands alone."""
    environment = _launcher()
    return (environment.global_rank(), environment.world_size()) if environment is not None else None


def _launcher() -> Any:  # noqa: ANN401  (one of Lightning's plugins)
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
    from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

    for environment in (TorchElasticEnvironment, SLURMEnvironment):
        if environment.detect():
            plugin = environment() if environment is TorchElasticEnvironment else SLURMEnvironment(auto_requeue=False)
            if plugin.world_size() > 1:
                return plugin
    return None


def run_workers(train: Train, job: Any, launch: Launch) -> Any:  # noqa: ANN401  (what train gives)
    """Runs `train` on every worker, again if a group is lost, and gives the first rank's result.

    Raises:
        ClusterError: more groups were lost than `max_failures`, or there is no such cluster.
        PipelineError: whatever a worker raised of these; it is not tried again.
    """
    cluster = launch.cluster
    if cluster.kind != "none":
        return _train_by_ray(train, job, launch)
    if (launcher := _launcher()) is not None:
        return _train_launched(launcher, train, job, launch)
    if (cluster.num_workers or 1) > 1:
        return _train_in_processes(train, job, launch)
    return train(Worker(devices=1, num_nodes=1, distributed=False, num_threads=cluster.cpus_per_worker), job)


def _threads(cluster: ClusterConfig, workers_here: int) -> int:
    """Threads of each worker: two that share a core wait for each other more than they compute."""
    return cluster.cpus_per_worker or max(1, len(os.sched_getaffinity(0)) // workers_here)


def _train_launched(launcher: Any, train: Train, job: Any, launch: Launch) -> Any:  # noqa: ANN401
    """In one of the processes that torchrun or srun started."""
    world_size = launcher.world_size()
    workers_here = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("SLURM_NTASKS_PER_NODE") or world_size)
    launch.set_up(launcher.global_rank())
    worker = Worker(
        devices=workers_here,
        num_nodes=world_size // workers_here,
        distributed=True,
        environment=launcher,
        num_threads=_threads(launch.cluster, workers_here),
    )
    return train(worker, job)


def _train_in_processes(train: Train, job: Any, launch: Launch) -> Any:  # noqa: ANN401
    """Processes of this machine. If one is lost all are ended, for they wait for it, and started again."""
    losses = 0
    while True:
        ended = _Group(train, job, launch).outcome()
        if not isinstance(ended, Loss):
            return _unwrapped(ended)
        losses += 1
        _give_up_after(losses, ended, launch)


class _Group:
    """Worker processes under torch's supervision, with signals passed on to them."""

    def __init__(self, train: Train, job: Any, launch: Launch) -> None:
        from torch.multiprocessing.spawn import start_processes

        logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)  # told by us, in a line
        self._grace_seconds = launch.cluster.grace_seconds
        self._stop: str | None = None
        self._deadline = float("inf")
        self._outcome: Any = get_context("spawn").SimpleQueue()
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        num_workers = launch.cluster.num_workers or 1
        self._processes: Any = start_processes(  # type: ignore[no-untyped-call]
            _in_process, (num_workers, port, train, job, launch, self._outcome), nprocs=num_workers, join=False
        )

    def outcome(self) -> Any:  # noqa: ANN401
        """The first rank's result, the signal by whose wish all ended, or a `Loss`."""
        from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

        with _signals_to(self._pass_on):
            try:
                while not self._processes.join(timeout=0.2, grace_period=LOST_GRACE_SECONDS):
                    if time.monotonic() > self._deadline:
                        self._end(signal.SIGKILL)
            except ProcessExitedException as error:
                cause = f"was killed by {error.signal_name}" if error.signal_name else f"ended with {error.exit_code}"
                return self._stop or Loss(rank=error.error_index, cause=cause)
            except ProcessRaisedException as error:
                log.warning("%s", error.msg.strip())
                return Loss(rank=error.error_index, cause=_cause(error))
        return self._outcome.get() if not self._outcome.empty() else self._stop

    def _pass_on(self, name: str) -> None:
        """The first signal is a wish to stop, and all are given time for it; the second one ends them."""
        if self._stop is not None:
            self._end(signal.SIGKILL)
            raise KeyboardInterrupt
        self._stop = name
        self._deadline = time.monotonic() + self._grace_seconds
        self._end(signal.SIGTERM)

    def _end(self, number: int) -> None:
        for process in self._processes.processes:
            if process.is_alive():
                os.kill(process.pid, number)


def _in_process(
    rank: int,
    num_workers: int,
    port: int,
    train: Train,
    job: Any,  # noqa: ANN401
    launch: Launch,
    outcome: Any,  # noqa: ANN401
) -> None:
    from lightning.fabric.plugins.environments.lightning import LightningEnvironment

    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": str(rank)}
    launch.set_up(rank)
    worker = Worker(
        devices=num_workers,
        num_nodes=1,
        distributed=True,
        environment=LightningEnvironment(),
        num_threads=_threads(launch.cluster, num_workers),
    )
    ended = _outcome(lambda worker_job: train(worker, worker_job), job)
    if rank == 0:
        outcome.put(ended)


@contextmanager
def _signals_to(tell: Callable[[str], None]) -> Iterator[None]:
    """Has SIGTERM and Ctrl-C told by name instead of acted on."""

    def told(number: int, frame: FrameType | None) -> None:
        tell(signal.Signals(number).name)

    before = {number: signal.signal(number, told) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _give_up_after(losses: int, loss: Loss, launch: Launch) -> None:
    launch.on_loss(loss)
    if losses > launch.cluster.max_failures:
        raise ClusterError(
            f"{losses} worker groups were lost, the last by rank {loss.rank} ({loss.cause});"
            f" cluster.max_failures={launch.cluster.max_failures} allows no more; the same command goes on"
        )


def _unwrapped(outcome: Any) -> Any:  # noqa: ANN401
    if isinstance(outcome, PipelineError):
        raise outcome
    return outcome


def _train_by_ray(train: Train, job: Any, launch: Launch) -> Any:  # noqa: ANN401
    """Ray Train: a controller starts the workers, again if one is lost, and with more or fewer as machines come and go.

    It keeps no checkpoints of ours: each group looks for the newest one in the run folder.
    """
    num_cpus = max(launch.cluster.num_workers or 1, len(os.sched_getaffinity(0)))
    with _ray(launch.cluster, num_cpus=num_cpus):
        import ray
        from ray.train import RunConfig
        from ray.train.torch import TorchConfig, TorchTrainer
        from ray.train.v2.api.config import FailureConfig, ScalingConfig  # what ray.train names, with its types

        cluster = launch.cluster
        num_workers = cluster.num_workers or 1
        stop: Any = ray.remote(num_cpus=0)(_StopFlag).remote()
        trainer = TorchTrainer(
            _in_ray_worker,
            train_loop_config={"train": train, "job": job, "launch": launch, "stop": stop},
            torch_config=TorchConfig(
                backend="nccl" if launch.use_gpu else "gloo", timeout_s=int(launch.timeout_seconds)
            ),
            scaling_config=ScalingConfig(
                num_workers=num_workers if cluster.min_workers is None else (cluster.min_workers, num_workers),
                use_gpu=launch.use_gpu,
                resources_per_worker={"CPU": cluster.cpus_per_worker or 1} | ({"GPU": 1} if launch.use_gpu else {}),
                elastic_resize_monitor_interval_s=cluster.resize_seconds,
            ),
            run_config=RunConfig(
                name=launch.name,
                storage_path=launch.folder,
                failure_config=FailureConfig(max_failures=cluster.max_failures, max_preemption_failures=-1),
                callbacks=[_loss_callback(launch.on_loss)],
            ),
        )
        return _unwrapped(_awaited(trainer, stop))


def _awaited(trainer: Any, stop: Any) -> Any:  # noqa: ANN401
    """The result of the first rank. SIGTERM and the first Ctrl-C are passed on to it; a second Ctrl-C ends the wait."""
    from ray.train import TrainingFailedError

    ended: dict[str, Any] = {}

    def fit() -> None:
        try:
            ended["outcome"] = trainer.fit().return_value
        except TrainingFailedError as error:
            ended["error"] = error

    def pass_on(name: str) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(name)
        stop.ask.remote(name)

    asked: list[str] = []
    thread = threading.Thread(target=fit, name="ray train", daemon=True)
    with _signals_to(pass_on):
        thread.start()  # not in the main thread, where Ray Train takes Ctrl-C for a wish to drop everything
        while thread.is_alive():
            thread.join(timeout=0.5)
    if "error" in ended:
        raise ClusterError(f"training was given up: {_failure(ended['error'])}; the same command goes on")
    return ended["outcome"]


def _failure(error: Any) -> str:  # noqa: ANN401
    """What a group's loss comes down to, in one line."""
    failures = getattr(error, "worker_failures", None) or {}
    if failures:
        return "; ".join(f"rank {rank}: {_cause(each)}" for rank, each in sorted(failures.items()))
    return _one_line(error)


def _cause(error: BaseException) -> str:
    """The last line of an error's text that says something: below it stands the stack."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return _one_line(lines[-1] if lines else type(error).__name__)


class _StopFlag:
    """An actor: the wish to stop, of the command that started the workers."""

    def __init__(self) -> None:
        self.name: str | None = None

    def ask(self, name: str) -> None:
        self.name = name

    def asked(self) -> str | None:
        return self.name


def _loss_callback(on_loss: Callable[[Loss], None]) -> Any:  # noqa: ANN401
    """Ray Train's way to tell of workers that failed; it runs where the controller does."""
    from ray.train import UserCallback

    class TellOfLoss(UserCallback):
        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:  # noqa: ANN401
            rank, error = min(worker_exceptions.items())
            on_loss(Loss(rank=rank, cause=_cause(error)))

    return TellOfLoss()


def _in_ray_worker(place: dict[str, Any]) -> Any:  # noqa: ANN401
    import ray
    import ray.train
    from ray.train.lightning import RayDDPStrategy, RayLightningEnvironment

    launch: Launch = place["launch"]
    context = ray.train.get_context()
    workers_here = context.get_local_world_size()
    launch.set_up(context.get_world_rank())
    local = launch.cluster.kind == "local"
    worker = Worker(
        devices="auto" if launch.use_gpu else 1,
        num_nodes=1,
        distributed=True,
        strategy=RayDDPStrategy,
        environment=RayLightningEnvironment(),  # type: ignore[no-untyped-call]
        num_threads=_threads(launch.cluster, workers_here) if local else launch.cluster.cpus_per_worker or 1,
        stop_request=lambda: ray.get(place["stop"].asked.remote()),
        preempted=lambda: ray.train.get_preemption_info() is not None,
    )
    return _outcome(lambda job: place["train"](worker, job), place["job"])

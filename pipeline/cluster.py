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
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any, Literal, Protocol, TypeVar

from pipeline import storage
from pipeline.config import ClusterConfig
from pipeline.errors import ClusterError, PipelineError

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")

MAX_RETRIES = 3  # of a task whose worker died
TASKS_PER_CPU = 2  # submitted at a time: one runs, one waits at the door
LOST_GRACE_SECONDS = 1.0  # for the other workers when one is lost, before and after they are asked to end
SAME_WISH_SECONDS = 1.0  # a terminal and a supervisor may both pass on one Ctrl-C
OBJECT_STORE_BYTES = 80 << 20  # receipts are small; /dev/shm of a container is too
REACH_SECONDS = 5.0  # for the machine of a Ray cluster to answer
ANSWER_SECONDS = 10.0  # for the command's own actor to
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


def _ray_api() -> Any:  # noqa: ANN401
    """Ray, some of whose functions have no types."""
    import ray

    return ray


@contextmanager
def _ray(cluster: ClusterConfig, *, num_cpus: int, environment: Mapping[str, str] | None = None) -> Iterator[None]:
    """Ray, started on this machine or joined; `environment` is that of the processes it starts for us."""
    import ray

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if environment:
        quiet["runtime_env"] = {"env_vars": dict(environment)}
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
            _knock(cluster.address or "auto")
            ray.init(address=cluster.address or "auto", **quiet)
        except (OSError, RuntimeError, ValueError) as error:
            raise ClusterError(
                f"cluster.address={cluster.address or 'null'} reaches no Ray cluster ({_one_line(error)}); give its"
                " HOST:PORT, on one of its machines, with RAY_AUTH_MODE=token if it asks for a token; or start one"
                " with `ray start --head`, or use cluster=local"
            ) from error
    ray._private.worker._worker_logs_enabled = False  # it prints to the standard output what we tell in a line
    try:
        yield
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Raises OSError or ValueError where nobody answers; Ray itself would try for minutes."""
    from ray._private.services import canonicalize_bootstrap_address

    if "://" in address:
        raise ValueError("that is no HOST:PORT")
    host, _, port = str(canonicalize_bootstrap_address(address)).rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_SECONDS).close()


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
        accelerator: `cpu` or `cuda`, where the cluster decides it; None: as configured.
    """

    devices: int | str
    num_nodes: int
    distributed: bool
    accelerator: str | None = None
    strategy: type[Any] | None = None
    environment: Any = None
    num_threads: int | None = None
    stop_request: Callable[[], str | None] = lambda: None
    preempted: Callable[[], bool] = bool


@dataclass(frozen=True, kw_only=True)
class Loss:
    """A worker group that was lost: the rank that went first and the cause, as far as they are known.

    Attributes:
        kind: `worker`, `hang`, or `preemption` if its machine was taken away with notice.
    """

    rank: int | None
    cause: str
    kind: str = "worker"


# What a worker does with its place and the job: it trains with the others, and gives what the caller is to know.
Train = Callable[[Worker, Any], Any]


@dataclass(frozen=True, kw_only=True)
class Launch:
    """How workers are started.

    Attributes:
        cluster: the section.
        use_gpu: one GPU for each worker; else they exchange over gloo on CPUs. None: if Ray has any.
        timeout_seconds: of an exchange of gradients.
        hang_seconds: without word of a worker before it is taken to hang; None: nobody watches.
        name: of this attempt.
        folder: for the stacks of workers that raised.
        set_up: called first in each worker that is a process of its own, with its rank: logging and the like.
        on_loss: told of each worker group that is lost; called wherever that is noticed.
    """

    cluster: ClusterConfig
    use_gpu: bool | None
    timeout_seconds: float
    hang_seconds: float | None
    name: str
    folder: str
    set_up: Callable[[int], None]
    on_loss: Callable[[Loss], None]


def launched_ranks() -> tuple[int, int] | None:
    """(rank, world size) if torchrun or srun started this process as one of several; None if it stands alone.

    Raises:
        ClusterError: torchrun is to restart ranks and cannot.
    """
    environment = _launcher()
    return (environment.global_rank(), environment.world_size()) if environment is not None else None


def _launcher() -> Any:  # noqa: ANN401  (one of Lightning's plugins)
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
    from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

    for environment in (TorchElasticEnvironment, SLURMEnvironment):
        if environment.detect():
            plugin = environment() if environment is TorchElasticEnvironment else SLURMEnvironment(auto_requeue=False)
            if plugin.world_size() > 1:
                _refuse_torn_restarts()
                return plugin
    return None


def _refuse_torn_restarts() -> None:
    """What torchrun starts again finds in its store where the ranks before could be reached, and fails for it."""
    restarts = os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")
    if restarts != "0" and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == str(True):
        raise ClusterError(
            f"torchrun's --max-restarts={restarts} cannot restart ranks that share its store (pytorch/pytorch#135712);"
            " set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in its environment, or leave --max-restarts out"
        )


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
    outcome = train(worker, job)
    _part()
    return outcome


def _train_in_processes(train: Train, job: Any, launch: Launch) -> Any:  # noqa: ANN401
    """Processes of this machine. If one is lost all are ended, for they wait for it, and started again."""
    group, losses = _Group(train, job, launch), 0
    with _signals_to(group.pass_on):
        while True:
            ended = group.outcome()
            if not isinstance(ended, Loss):
                return _unwrapped(ended)
            losses += 1
            _give_up_after(losses, ended, launch)


class _Group:
    """Worker processes under torch's supervision, one set after another, with signals passed on to them."""

    def __init__(self, train: Train, job: Any, launch: Launch) -> None:  # noqa: ANN401
        logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)  # told by us, in a line
        self._what = train, job, launch
        self._stop: str | None = None
        self._since = 0.0
        self._deadline = float("inf")
        self._processes: Any = None
        self._outcome: Any = None
        self._killed: Loss | None = None

    def outcome(self) -> Any:  # noqa: ANN401
        """Of a new set: the first rank's result, the signal by whose wish all ended, or a `Loss`."""
        from torch.multiprocessing.spawn import ProcessException

        if self._stop is not None:
            return self._stop
        self._start()
        loss = None
        try:
            while not self._joined():
                if time.monotonic() > self._deadline:
                    self._end(signal.SIGKILL)
        except ProcessException as error:
            loss = self._loss(error)
        told = None if self._outcome.empty() else self._outcome.get()
        if loss is None or isinstance(told, PipelineError):
            return told or self._stop
        return self._stop or loss

    def pass_on(self, name: str) -> None:
        """A signal is a wish to stop, and all are given time for it; a second Ctrl-C, not right after, ends them."""
        again = self._stop == name == "SIGINT" and time.monotonic() - self._since > SAME_WISH_SECONDS
        self._stop, self._since = name, time.monotonic()
        self._deadline = min(self._deadline, self._since + self._what[2].cluster.grace_seconds)
        self._end(signal.SIGKILL if again else signal.Signals[name])
        if again:
            raise KeyboardInterrupt

    def _start(self) -> None:
        from torch.multiprocessing.spawn import start_processes

        train, job, launch = self._what
        num_workers = launch.cluster.num_workers or 1
        self._killed, self._outcome = None, get_context("spawn").SimpleQueue()
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # a Ctrl-C waits for them to know what to do with it
        try:
            self._processes = start_processes(  # type: ignore[no-untyped-call]
                _in_process, (num_workers, port, train, job, launch, self._outcome), nprocs=num_workers, join=False
            )
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        if self._stop is not None:  # meanwhile
            self._end(signal.Signals[self._stop])

    def _joined(self) -> bool:
        """Whether all have ended well; torch's error if one has not.

        When a rank is killed the others fail, and torch names the first that it finds: so we look before it does.
        """
        wait([process.sentinel for process in self._processes.processes if process.is_alive()], timeout=0.2)
        for rank, process in enumerate(self._processes.processes):
            if self._killed is None and (process.exitcode or 0) < 0:
                self._killed = Loss(rank=rank, cause=f"was killed by {signal.Signals(-process.exitcode).name}")
        return bool(self._processes.join(timeout=0, grace_period=LOST_GRACE_SECONDS))

    def _loss(self, error: Any) -> Loss:  # noqa: ANN401
        """Which rank was lost first, as far as anybody knows."""
        from torch.multiprocessing.spawn import ProcessRaisedException

        if self._killed is not None:
            return self._killed
        if isinstance(error, ProcessRaisedException):
            if self._stop is None:
                log.warning("%s", error.msg.strip())
            return Loss(rank=error.error_index, cause=_cause(error))
        return Loss(rank=error.error_index, cause=f"ended with {error.exit_code}")

    def _end(self, number: int) -> None:
        for process in self._processes.processes if self._processes is not None else []:
            if process.is_alive():
                os.kill(process.pid, number)


def _in_process(  # noqa: PLR0917 torch hands them over by place
    rank: int,
    num_workers: int,
    port: int,
    train: Train,
    job: Any,  # noqa: ANN401
    launch: Launch,
    outcome: Any,  # noqa: ANN401
) -> None:
    from lightning.fabric.plugins.environments.lightning import LightningEnvironment

    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    command = parent_process()
    if command is None or not command.is_alive():  # killed while this process began; from here on torch tells it
        return
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
    _part()


def _part() -> None:
    """Ends what the ranks have between them, before one of them is gone and the others wonder."""
    from torch import distributed

    if distributed.is_initialized():
        distributed.destroy_process_group()


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
        raise _given_up(losses, loss, launch.cluster)


def _given_up(losses: int, loss: Loss, cluster: ClusterConfig) -> ClusterError:
    groups = "a worker group was lost" if losses == 1 else f"{losses} worker groups were lost, the last"
    return ClusterError(
        f"{groups} by rank {loss.rank} ({loss.cause}); cluster.max_failures={cluster.max_failures} allows no more;"
        " the same command goes on"
    )


def _unwrapped(outcome: Any) -> Any:  # noqa: ANN401
    if isinstance(outcome, PipelineError):
        raise outcome
    return outcome


def _train_by_ray(train: Train, job: Any, launch: Launch) -> Any:  # noqa: ANN401
    """Ray Train: a controller starts the workers, again if one is lost, and with more or fewer as machines come and go.

    It keeps no checkpoints of ours: each group looks for the newest one in the run folder. What it notes for itself,
    its controller alone reads, on the command's machine, and it goes when the command ends.
    """
    cluster = launch.cluster
    num_cpus = max((cluster.num_workers or 1) * (cluster.cpus_per_worker or 1), len(os.sched_getaffinity(0)))
    try:
        with (
            _ray(cluster, num_cpus=num_cpus, environment=_patience(launch)),
            TemporaryDirectory(prefix="ray-train-") as notes,
        ):
            use_gpu, board = _uses_gpu(launch), _started_board()
            trainer = _trainer(train, job, launch, board=board, use_gpu=use_gpu, notes=notes)
            return _unwrapped(_awaited(trainer, board, cluster, needs=_needs(cluster, use_gpu=use_gpu)))
    except SystemExit:  # while Ray starts, it takes SIGTERM in its own way
        return signal.SIGTERM.name


def _patience(launch: Launch) -> dict[str, str]:
    """For what Ray Train waits less long than it would: for those that are lost, and for machines that are gone."""
    seconds = {"TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": 5.0}  # of 30; the processes are ended then anyway
    if launch.cluster.min_workers is not None:  # of 60; then it looks again for how many there is room
        seconds["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = 15.0
    if launch.hang_seconds is not None:  # of 600; the ranks name the one that hangs sooner, unless it has no others
        seconds["RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"] = launch.hang_seconds + 15.0
    return {name: f"{value:g}" for name, value in seconds.items()}


def _uses_gpu(launch: Launch) -> bool:
    """Whether each worker gets a GPU: as asked for, or if the cluster has any. The command's machine needs none.

    Raises:
        ClusterError: the cluster is this machine, and it has too few.
    """
    num_gpus, num_workers = int(_ray_api().cluster_resources().get("GPU", 0)), launch.cluster.num_workers or 1
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


def _trainer(train: Train, job: Any, launch: Launch, *, board: Any, use_gpu: bool, notes: str) -> Any:  # noqa: ANN401
    from ray.train import RunConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.config import FailureConfig, ScalingConfig  # what ray.train names, with its types

    cluster = launch.cluster
    num_workers = cluster.num_workers or 1
    return TorchTrainer(
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
    """An actor beside the command: wishes to stop go to the workers by it, and news of them comes back."""

    def __init__(self) -> None:
        self._wish: str | None = None
        self._resize = False
        self._news = _News()

    def wish(self, name: str) -> None:
        self._wish = name

    def resize(self, wished: bool) -> None:
        self._resize = wished

    def wished(self) -> str | None:
        return self._wish or ("resize" if self._resize else None)

    def tell(self, **news: Any) -> None:  # noqa: ANN401
        self._news = replace(self._news, **news)

    def news(self) -> _News:
        return self._news


def _started_board() -> Any:  # noqa: ANN401
    """On the command's machine, so that it is not lost with another one."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return _ray_api().remote(num_cpus=0, scheduling_strategy=here)(_Board).remote()


def _awaited(trainer: Any, board: Any, cluster: ClusterConfig, *, needs: Mapping[str, float]) -> Any:  # noqa: ANN401
    """The first rank's result, a worker's refusal, or the signal by whose wish all ended.

    A signal is a wish to stop. It is passed on to the workers, who have time for it; where there are none, that is the
    end. A second Ctrl-C, not right after, ends the wait.
    """
    import ray
    from ray.exceptions import RayError

    fitted: dict[str, Any] = {}
    ended = threading.Event()  # a thread's join that is interrupted takes the thread to have ended (Python 3.11)
    wishes: list[tuple[str, float]] = []

    def fit() -> None:
        try:
            fitted["outcome"] = trainer.fit().return_value
        except Exception as error:  # noqa: BLE001 it is raised in the main thread
            fitted["error"] = error
        ended.set()

    def pass_on(name: str) -> None:
        again = (
            bool(wishes) and wishes[-1][0] == name == "SIGINT" and time.monotonic() - wishes[-1][1] > SAME_WISH_SECONDS
        )
        wishes.append((name, time.monotonic()))
        if again:
            raise KeyboardInterrupt
        board.wish.remote(name)

    def latest(news: _News) -> _News:
        with suppress(RayError):  # the thread is told too of what is wrong with Ray
            news = ray.get(board.news.remote(), timeout=ANSWER_SECONDS)
        return news

    news, lack = _News(), _Lack(cluster, needs)
    with _signals_to(pass_on):
        # not in the main thread, where Ray Train takes Ctrl-C for a wish to drop everything
        threading.Thread(target=fit, name="ray train", daemon=True).start()
        try:
            while not ended.wait(0.5):
                news = latest(news)
                if news.refusal is not None:
                    return news.refusal
                late = bool(wishes) and time.monotonic() > wishes[0][1] + cluster.grace_seconds
                if wishes and (late or news.phase in ("waiting", "starting")):
                    return wishes[-1][0]
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
        there, free = _ray_api().cluster_resources(), _ray_api().available_resources()
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
        return _given_up(news.losses, news.loss, cluster)
    cause = error.controller_failure if isinstance(error, ControllerError) else error
    if isinstance(error, TrainingFailedError | RayError):
        return ClusterError(f"Ray cannot go on ({type(cause).__name__}: {_one_line(cause)}); the same command goes on")
    return error


def _cause(error: BaseException) -> str:
    """The last line of an error's text that says something: below it stands the stack."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return _one_line(lines[-1] if lines else type(error).__name__)


def _overseer(launch: Launch, board: Any) -> Any:  # noqa: ANN401
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
            board.tell.remote(controller=ray.get_runtime_context().current_actor, phase="waiting")

        def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:  # noqa: ANN401
            name = type(current_state).__name__
            waiting = name in WAITING
            board.tell.remote(phase="waiting" if waiting else "going")
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
                board.resize.remote(True)
                _parted(self._workers, within_seconds=launch.cluster.grace_seconds)
                board.resize.remote(False)

        def before_init_train_context(self, workers: list[Any]) -> dict[str, list[Any]]:
            board.tell.remote(phase="starting")
            return {}

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
            board.tell.remote(losses=self._losses, loss=loss)

    return Overseer()


def _parted(workers: Sequence[Any], *, within_seconds: float) -> None:
    """Returns once no worker trains any more, or one is lost, or the time is over."""
    from ray.exceptions import RayError

    deadline = time.monotonic() + within_seconds
    with suppress(RayError):
        while time.monotonic() < deadline:
            asked = [worker.actor.poll_status.remote() for worker in workers]
            if not any(each.running for each in _ray_api().get(asked, timeout=within_seconds)):
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
        return Loss(rank=rank, cause=f"{type(error).__name__}: {_one_line(error)}")
    if error.preempted:
        return _taken_away(rank)
    causes = [cause for sign, cause in DEATHS.items() if sign in str(error)]
    return Loss(rank=rank, cause=causes[0] if causes else _cause(error))


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
    num_threads = _threads(launch.cluster, context.get_local_world_size()) if local else None
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
        preempted=lambda: ray.train.get_preemption_info() is not None,
    )
    outcome = _outcome(lambda job: place["train"](worker, job), place["job"])
    if isinstance(outcome, PipelineError):
        ray.get(board.tell.remote(refusal=outcome))
    return outcome


def _wished(board: Any) -> str | None:  # noqa: ANN401
    """The command's wish, if it can be asked; if it is gone for good, Ray ends its workers."""
    import ray
    from ray.exceptions import RayError

    wish: str | None = None
    with suppress(RayError):
        wish = ray.get(board.wished.remote(), timeout=ANSWER_SECONDS)
    return wish

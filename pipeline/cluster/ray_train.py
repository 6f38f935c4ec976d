"""Training workers by Ray Train, started again if one is lost, and with more or fewer as machines come and go.

Ray keeps no checkpoints of ours: each group of workers looks for the newest one in the run folder. What Ray Train notes
for itself lies there too, and goes when the command ends. Public interfaces of Ray only.
"""

import logging
import os
import shutil
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline import console, storage
from pipeline.cluster.launchers import Rank
from pipeline.cluster.ray_gauges import RayGauges
from pipeline.cluster.ray_session import ray_api, ray_session
from pipeline.cluster.returns import one_line
from pipeline.config import ClusterConfig
from pipeline.errors import ClusterError, PipelineError
from pipeline.run.display import following
from pipeline.run.job import Job, Place, Result, Work, WorkerFailure, given_up, report_failure, threads_of_each
from pipeline.run.ledger import read_events
from pipeline.run.meeting import INTERFACES
from pipeline.run.stop import RequestWatch, StopSignals

log = logging.getLogger(__name__)

NOTES = ".ray-train"  # folder of a run
LOOK_SECONDS = 0.2  # between two looks at signals
LACK_SECONDS = 15.0  # without workers, and without what they need, before it is said what they wait for
START_SECONDS = 60.0  # without workers though what they need is there: it may be theirs already
LACK_AGAIN_SECONDS = 300.0  # before it is said again
BLAME_SECONDS = 3.0  # for Ray to notice that a worker is gone, whose exchange failed in the others


class WorkerError(Exception):
    """What a worker raised, with what would be lost on its way through Ray.

    Args:
        cause: its type and text.
        stack: where it was raised.
        in_exchange: whether ranks exchanged something there, for which another one may be to blame.
    """

    def __init__(self, cause: str, stack: str, in_exchange: bool) -> None:
        super().__init__(cause, stack, in_exchange)
        self.cause, self.stack, self.in_exchange = cause, stack, in_exchange


def prepare(*, modules: list[str]) -> None:
    """Nothing: Ray's workers start with Ray."""


def run(work: Work, job: Job, rank: Rank | None) -> Result:
    """Runs the workers, by Ray.

    Args:
        work: the worker's part.
        job: what each worker is given.
        rank: the place of this process, if a launcher started it as one of several.
    """
    cluster = job.config.cluster
    num_cpus = max((cluster.num_workers or 1) * (cluster.cpus_per_worker or 1), len(os.sched_getaffinity(0)))
    with (
        StopSignals(grace_seconds=cluster.grace_seconds) as signals,
        following(job) as follower,
        _muted_ray(),
        _environment(job),
        ray_session(cluster, num_cpus=num_cpus),
        _notes(job) as notes,
    ):
        use_gpu = _uses_gpu(job)
        fit = _Fit(_trainer(work, job, use_gpu=use_gpu, notes=notes))
        lack = _Lack(cluster, _needs(cluster, use_gpu=use_gpu))
        requests = RequestWatch(job.run, attempt=job.attempt)
        while not fit.ended(within_seconds=LOOK_SECONDS):
            stop = signals.cause or (None if follower.working else requests.cause())
            if stop is not None and (signals.late or not follower.working):
                return Result(step=0, stop=stop)
            signals.leave_request(job.run, attempt=job.attempt)
            lack.watch(waiting=not follower.working)
        try:
            return fit.result()
        except Exception as error:
            if signals.cause is not None and not isinstance(error, PipelineError):
                return Result(step=0, stop=signals.cause)
            raise _given_up(error, job) from error


class _Fit:
    """Ray Train in a thread of its own: in the main one it would take Ctrl-C for itself."""

    def __init__(self, trainer: Any) -> None:  # noqa: ANN401  (a TorchTrainer)
        self._trainer = trainer
        self._result: Any = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="ray-train", daemon=True)
        self._thread.start()

    def ended(self, *, within_seconds: float) -> bool:
        """Whether it ends within some time."""
        self._thread.join(within_seconds)
        return not self._thread.is_alive()

    def result(self) -> Result:
        """The first rank's; raises what Ray Train raised."""
        if self._error is not None:
            raise self._error
        result: Result = self._result.return_value
        return result

    def _run(self) -> None:
        try:
            self._result = self._trainer.fit()
        except BaseException as error:  # noqa: BLE001 it is raised in the main thread
            self._error = error


@contextmanager
def _muted_ray() -> Iterator[None]:
    """What a thread of Ray's prints of lost workers is said in a line by us; it all stands in Ray's own folder."""
    with Path(os.devnull).open("w") as nowhere, redirect_stderr(nowhere), redirect_stdout(nowhere):
        yield


@contextmanager
def _environment(job: Job) -> Iterator[None]:
    """Ray Train waits less long than it would for those that are lost and machines that are gone."""
    seconds = {
        "TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": 5.0,  # of 30; the processes are ended then anyway
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": 1.0,  # of 2; until a loss, or the end, is noticed
    }
    if job.config.cluster.min_workers is not None:  # of 60; then it looks again for how many there is room
        seconds["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = 15.0
    if job.config.guard.hang_seconds is not None:  # of 600; the ranks name the one that hangs sooner, if it has others
        seconds["RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"] = job.config.guard.hang_seconds + 15.0
    wanted = {name: f"{value:g}" for name, value in seconds.items()}
    if job.config.cluster.kind == "local":  # all workers are on this machine
        wanted |= INTERFACES
    unset = wanted.keys() - os.environ.keys()
    os.environ |= {name: wanted[name] for name in unset}
    try:
        yield
    finally:
        for name in unset:
            del os.environ[name]


@contextmanager
def _notes(job: Job) -> Iterator[dict[str, Any]]:
    """Where Ray Train keeps what it notes for itself, as it takes it: a folder of the run that goes at the end."""
    place = storage.join(job.run, NOTES)
    if storage.is_local(place):
        shutil.rmtree(place, ignore_errors=True)  # of a command that was killed
        try:
            yield {"storage_path": place}
        finally:
            shutil.rmtree(place, ignore_errors=True)
        return
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    filesystem, name = storage.resolve(place)
    try:
        yield {"storage_path": name, "storage_filesystem": PyFileSystem(FSSpecHandler(filesystem))}
    finally:
        for path in storage.list_files(place):
            storage.remove(path)


def _uses_gpu(job: Job) -> bool:
    """Whether each worker gets a GPU: as asked for, or if the cluster has any. The command's machine needs none.

    Raises:
        ClusterError: the cluster is this machine, and it has too few.
    """
    cluster, accelerator = job.config.cluster, job.config.accelerator
    num_gpus, num_workers = int(ray_api().cluster_resources().get("GPU", 0)), cluster.num_workers or 1
    use_gpu = num_gpus > 0 if accelerator == "auto" else accelerator == "cuda"
    if use_gpu and cluster.kind == "local" and num_workers > num_gpus:
        raise ClusterError(
            f"cluster.num_workers={num_workers} needs a GPU for each and this machine has {num_gpus};"
            f" use {f'cluster.num_workers={num_gpus} or ' if num_gpus else ''}accelerator=cpu"
        )
    return use_gpu


def _needs(cluster: ClusterConfig, *, use_gpu: bool) -> dict[str, float]:
    """What Ray sets aside for each worker."""
    return {"CPU": float(cluster.cpus_per_worker or 1)} | ({"GPU": 1.0} if use_gpu else {})


def _trainer(work: Work, job: Job, *, use_gpu: bool, notes: dict[str, Any]) -> Any:  # noqa: ANN401
    from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig, UserCallback
    from ray.train.torch import TorchConfig, TorchTrainer

    class Observer(UserCallback):
        """In Ray Train's controller: a lost group is written down; a user's error ends the run."""

        def after_exception(self, run_context: object, worker_exceptions: dict[int, Exception]) -> None:
            for error in worker_exceptions.values():
                if isinstance(error, PipelineError):
                    raise error
            report_failure(job, failure_of(worker_exceptions))

    cluster: Any = job.config.cluster
    num_workers = cluster.num_workers or 1
    train_loop: Any = _in_ray_worker  # Ray's types leave the value out that its page describes
    scaling: Any = ScalingConfig
    running: Any = RunConfig
    failing: Any = FailureConfig
    return TorchTrainer(
        train_loop,
        train_loop_config={"work": work, "job": job, "use_gpu": use_gpu},
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo", timeout_s=int(job.exchange_seconds)),
        scaling_config=scaling(
            num_workers=num_workers if cluster.min_workers is None else (cluster.min_workers, num_workers),
            use_gpu=use_gpu,
            resources_per_worker=_needs(cluster, use_gpu=use_gpu),
            elastic_resize_monitor_interval_s=cluster.resize_seconds,
        ),
        run_config=running(
            name=f"attempt-{job.attempt}",
            failure_config=failing(max_failures=cluster.max_failures, max_preemption_failures=-1),
            callbacks=[Observer()],
            logging_config=LoggingConfig(log_level="CRITICAL"),  # on the terminal; all goes to Ray's folder
            **notes,
        ),
    )


def _in_ray_worker(given: dict[str, Any]) -> Result:
    """What Ray Train calls in each worker: its part of the training.

    Args:
        given: `work`, `job`, and whether to `use_gpu`.
    """
    from ray.train import get_context, get_preemption_info
    from ray.train.lightning import RayDDPStrategy, RayLightningEnvironment

    job, use_gpu = given["job"], given["use_gpu"]
    context = get_context()
    console.set_up(context.get_world_rank())
    local = job.config.cluster.kind == "local"  # the machine is ours
    num_threads = threads_of_each(job, context.get_local_world_size()) if local else None
    alone = context.get_world_size() == 1  # DDP would cost some 5% and exchange nothing
    place = Place(
        devices="auto" if use_gpu and not alone else 1,
        distributed=not alone,
        accelerator="cuda" if use_gpu else "cpu",
        strategy=None if alone else RayDDPStrategy,
        environment=None if alone else RayLightningEnvironment(),  # type: ignore[no-untyped-call]
        num_threads=num_threads or job.config.cluster.cpus_per_worker or 1,
        preempted=lambda: get_preemption_info() is not None,
        gauges=RayGauges(),
    )
    try:
        result: Result = given["work"](place, job)
    except PipelineError:
        raise
    except Exception as error:
        in_exchange = _in_exchange(error)
        if in_exchange:
            time.sleep(BLAME_SECONDS)
        raise WorkerError(_described(error), traceback.format_exc(), in_exchange) from error
    return result


def _in_exchange(error: Exception) -> bool:
    """Whether an error was raised while ranks exchanged something, for which another one may be to blame."""
    module = ""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        module = str(frame.f_globals.get("__name__"))
    return module.startswith(("torch.distributed", "torch.autograd"))  # DDP exchanges gradients while they are made


class _Lack:
    """Says what the workers wait for, if they wait for long."""

    def __init__(self, cluster: ClusterConfig, needs: Mapping[str, float]) -> None:
        self._cluster = cluster
        self._needs = needs
        self._since: float | None = None  # when this wait began
        self._due = 0.0

    def watch(self, *, waiting: bool) -> None:
        """To be called again and again, whether they wait or not."""
        now = time.monotonic()
        if not waiting:
            self._since = None
        elif self._since is None:
            self._since, self._due = now, now + LACK_SECONDS
        elif now > self._due:
            there = ray_api().cluster_resources()
            number = self._cluster.min_workers or self._cluster.num_workers or 1
            is_short = any(there.get(name, 0) < number * count for name, count in self._needs.items())
            if is_short or now > self._since + START_SECONDS:
                self._due = now + LACK_AGAIN_SECONDS
                log.warning("%s", self._line(there))

    def _line(self, there: Mapping[str, float]) -> str:
        free = ray_api().available_resources()
        least = self._cluster.min_workers
        number = f"{self._cluster.num_workers or 1}" if least is None else f"{least} at least"
        each = " and ".join(f"{count:g} {name}" for name, count in self._needs.items())
        has = " and ".join(f"{there.get(name, 0):g} {name} ({free.get(name, 0):g} free)" for name in self._needs)
        return f"no workers yet: {number} with {each} each are needed, and the cluster has {has}; waiting for more"


def failure_of(errors: Mapping[int, Exception]) -> WorkerFailure:
    """Which rank was lost, and why, of what Ray Train says of each rank.

    Where Ray says that a worker is gone it is that one. Else it is one that raised something of its own: the others
    raise that an exchange with it failed.
    """
    from ray.exceptions import RayActorError, RayError

    def blame(rank: int) -> tuple[int, int]:
        error = _carried(errors[rank])
        if not isinstance(error, WorkerError):
            return 0, rank
        return 2 if error.in_exchange else 1, rank

    rank = min(errors, key=blame)
    error = _carried(errors[rank])
    if isinstance(error, WorkerError):
        return WorkerFailure(rank=rank, cause=error.cause, stack=error.stack)
    if isinstance(error, RayActorError) and error.preempted:
        return WorkerFailure(rank=rank, cause=f"the machine of rank {rank} was taken away", kind="preemption")
    if isinstance(error, RayError):
        return WorkerFailure(rank=rank, cause=_described(error))
    # Ray Train's own word: the worker neither answers nor is gone
    return WorkerFailure(rank=rank, cause=f"rank {rank} does not answer", kind="hang")


def _described(error: Exception) -> str:
    return f"{type(error).__name__}: {one_line(error)}"


def _carried(error: Exception) -> Exception:
    """The error of Ray that Ray Train's own one is about; that one itself if it is about none."""
    from ray.exceptions import RayError

    return next((each for each in vars(error).values() if isinstance(each, RayError)), error)


def _given_up(error: Exception, job: Job) -> Exception:
    """Why Ray Train gave up, in the user's terms; an error that is not of its making stays what it is."""
    from ray.exceptions import RayError
    from ray.train import ControllerError, TrainingFailedError, WorkerGroupError

    if isinstance(error, WorkerGroupError):
        told = [event for event in read_events(job.run) if event["event"] == "fault" and event["fatal"]]
        failure = failure_of(error.worker_failures)
        if told and told[-1]["rank"] == failure.rank:  # with the place of its stack
            failure = replace(failure, cause=told[-1]["cause"])
        return given_up(job, failure, num_failures=job.config.cluster.max_failures + 1)
    cause = error.controller_failure if isinstance(error, ControllerError) else error
    if isinstance(cause, PipelineError):
        return cause
    if isinstance(error, TrainingFailedError | RayError):
        return ClusterError(f"Ray cannot go on ({type(cause).__name__}: {one_line(cause)}); the same command goes on")
    return error

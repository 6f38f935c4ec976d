"""Training workers by Ray Train, started again if one is lost, and with more or fewer as machines come and go.

Ray Train's controller, which it would have in a process of its own, runs in the command's (`ray_controller`): one
process less to start and to share the cores with, and what it knows of the workers is at hand.
"""

import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import Any

from pipeline.cluster.group import Launch, Train, given_up, signals_to
from pipeline.cluster.outcome import one_line, unwrapped
from pipeline.cluster.ray_controller import Ended, Watch, overseen_trainer
from pipeline.cluster.ray_session import ray_api, ray_session
from pipeline.cluster.ray_worker import in_ray_worker
from pipeline.config import ClusterConfig
from pipeline.errors import ClusterError

log = logging.getLogger(__name__)

LACK_SECONDS = 15.0  # without workers before it is told what they wait for
LACK_AGAIN_SECONDS = 300.0  # before it is told again


def train_by_ray(train: Train, job: Any, launch: Launch) -> Any:  # noqa: ANN401
    """Ray Train: its controller starts the workers, again if one is lost, and more or fewer as machines come and go.

    It keeps no checkpoints of ours: each group looks for the newest one in the run folder. What it notes for itself
    goes when the command ends.
    """
    cluster = launch.cluster
    num_cpus = max((cluster.num_workers or 1) * (cluster.cpus_per_worker or 1), len(os.sched_getaffinity(0)))
    with (
        _environment(launch),
        ray_session(cluster, num_cpus=num_cpus, keeps_idle=False),
        TemporaryDirectory(prefix="ray-train-") as notes,
    ):
        return unwrapped(_trained(train, job, launch, notes=notes))


@contextmanager
def _environment(launch: Launch) -> Iterator[None]:
    """Ray Train waits less long than it would for those that are lost and machines that are gone, and runs less."""
    seconds = {
        "TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": 5.0,  # of 30; the processes are ended then anyway
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": 1.0,  # of 2; until a signal is passed on, and the end noticed
    }
    if launch.cluster.min_workers is not None:  # of 60; then it looks again for how many there is room
        seconds["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = 15.0
    if launch.hang_seconds is not None:  # of 600; the ranks name the one that hangs sooner, unless it has no others
        seconds["RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"] = launch.hang_seconds + 15.0
    wanted = {name: f"{value:g}" for name, value in seconds.items()}
    wanted["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"  # an actor of its own for what the controller does here
    unset = wanted.keys() - os.environ.keys()
    os.environ |= {name: wanted[name] for name in unset}
    try:
        yield
    finally:
        for name in unset:
            del os.environ[name]


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


def _trained(train: Train, job: Any, launch: Launch, *, notes: str) -> Any:  # noqa: ANN401
    """The first rank's result, a worker's refusal, or the signal by whose wish all ended.

    A signal is a wish to stop. It is passed on to the workers, who have time for it; where there are none, that is the
    end. A second Ctrl-C, not right after, ends the wait.
    """
    cluster, use_gpu = launch.cluster, _uses_gpu(launch)
    watch = Watch(launch, watch_lack=_Lack(cluster, _needs(cluster, use_gpu=use_gpu)).watch)
    trainer = _trainer(train, job, launch, watch=watch, use_gpu=use_gpu, notes=notes)
    with signals_to(watch.hear):
        try:
            return trainer.fit().return_value
        except Ended as end:
            return end.outcome
        except KeyboardInterrupt:
            if watch.dropped or watch.wish is None:
                raise
            return watch.wish
        except Exception as error:
            raise _failure(error, watch, cluster) from error


def _trainer(
    train: Train,
    job: Any,  # noqa: ANN401
    launch: Launch,
    *,
    watch: Watch,
    use_gpu: bool,
    notes: str,
) -> Any:  # noqa: ANN401
    from ray.train.v2.api.config import FailureConfig, LoggingConfig, RunConfig, ScalingConfig  # ray.train's, typed

    cluster = launch.cluster
    num_workers = cluster.num_workers or 1
    return overseen_trainer(watch, launch)(
        in_ray_worker,
        train_loop_config={"train": train, "job": job, "launch": launch, "use_gpu": use_gpu},
        torch_config=_torch_config(use_gpu=use_gpu, timeout_seconds=launch.timeout_seconds),
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
            logging_config=LoggingConfig(log_level="CRITICAL"),  # on the terminal; all goes to Ray's folder
        ),
    )


def _torch_config(*, use_gpu: bool, timeout_seconds: float) -> Any:  # noqa: ANN401
    """How workers exchange gradients. One alone has nobody to: gloo would have a thread wake 100 times a second."""
    from ray.train.torch.config import TorchConfig, _TorchBackend

    class Backend(_TorchBackend):
        def on_start(self, worker_group: Any, backend_config: Any) -> None:  # noqa: ANN401
            if len(worker_group) > 1:
                super().on_start(worker_group, backend_config)

    class Exchange(TorchConfig):
        @property
        def backend_cls(self) -> Any:  # noqa: ANN401
            return Backend

    return Exchange(backend="nccl" if use_gpu else "gloo", timeout_s=int(timeout_seconds))


class _Lack:
    """Tells what the workers wait for, if they wait for long."""

    def __init__(self, cluster: ClusterConfig, needs: Mapping[str, float]) -> None:
        self._cluster = cluster
        self._needs = needs
        self._last = self._due = float("-inf")

    def watch(self) -> None:
        """To be called again and again while they wait."""
        now = time.monotonic()
        if now - self._last > LACK_SECONDS:  # it is another wait
            self._due = now + LACK_SECONDS
        elif now > self._due:
            self._due = now + LACK_AGAIN_SECONDS
            log.warning("%s", self._told())
        self._last = now

    def _told(self) -> str:
        there, free = ray_api().cluster_resources(), ray_api().available_resources()
        least = self._cluster.min_workers
        number = f"{self._cluster.num_workers or 1}" if least is None else f"{least} at least"
        each = " and ".join(f"{count:g} {name}" for name, count in self._needs.items())
        has = " and ".join(f"{there.get(name, 0):g} {name} ({free.get(name, 0):g} free)" for name in self._needs)
        return f"no workers yet: {number} with {each} each are needed, and the cluster has {has}; waiting for more"


def _failure(error: Exception, watch: Watch, cluster: ClusterConfig) -> Exception:
    """Why Ray Train gave up, in the user's terms; an error that is not of its making stays what it is."""
    from ray.exceptions import RayError
    from ray.train import ControllerError, TrainingFailedError, WorkerGroupError

    if isinstance(error, WorkerGroupError) and watch.loss is not None:
        return given_up(watch.losses, watch.loss, cluster)
    cause = error.controller_failure if isinstance(error, ControllerError) else error
    if isinstance(error, TrainingFailedError | RayError):
        return ClusterError(f"Ray cannot go on ({type(cause).__name__}: {one_line(cause)}); the same command goes on")
    return error

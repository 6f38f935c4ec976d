"""What runs in a worker that Ray Train started."""

from typing import Any

from pipeline.cluster.group import Worker, threads_of_each
from pipeline.cluster.outcome import outcome_of

_causes: list[str] = []  # for which this process was asked to stop, the last one last


def ask_to_stop(cause: str) -> None:
    """To be executed in the first rank's process, whose training runs in another thread."""
    _causes.append(cause)


def in_ray_worker(place: dict[str, Any]) -> Any:  # noqa: ANN401
    """What Ray Train calls in each worker: it trains, and gives the outcome.

    Args:
        place: `train` and its `job`, the `launch`, and whether to `use_gpu`.
    """
    from ray.train import get_context
    from ray.train.lightning import RayDDPStrategy, RayLightningEnvironment
    from ray.train.v2._internal.execution.context import get_train_context

    launch, use_gpu = place["launch"], place["use_gpu"]
    context = get_context()
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
        stop_request=lambda: _causes[-1] if _causes else None,
        preempted=lambda: get_train_context().preemption_context.preemption_info is not None,
    )
    return outcome_of(lambda job: place["train"](worker, job), place["job"])

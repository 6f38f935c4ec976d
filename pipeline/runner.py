"""One training run, from a prepared corpus to a checkpoint: plan → launch → conclude.

In: the configuration. Out: a run folder with `config.yaml`, `metrics.jsonl`, `events.jsonl` and checkpoints. The same
call again resumes, with as many workers as it is then given. Refuses a corpus that does not verify and a checkpoint of
another run, before any worker is started; what the workers do stands in `training/worker.py`.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import TypeVar

from pipeline import console, storage
from pipeline.cluster.backends import choose_backend
from pipeline.cluster.launchers import Rank, find_rank, started_by_machine
from pipeline.config import Config, given
from pipeline.corpus.cache import check_cache
from pipeline.corpus.lanes import check_world_size
from pipeline.corpus.manifest import Manifest, check_fingerprint, read_manifest, verify_corpus
from pipeline.errors import CheckpointError, ConfigError, CorpusError, LossError, PipelineError, Stopped
from pipeline.provenance import code_version, environment
from pipeline.run.checkpoint import check_identity, checkpoint_path, committed_steps, newest_mark
from pipeline.run.folder import LOCK_NAME, check_run_folder, held, write_config
from pipeline.run.job import Job, Place, Result
from pipeline.run.ledger import Event, Ledger, gather, next_attempt, read_events, saved_steps
from pipeline.run.stop import ATTEMPT_NAME, remove_request, stop_request
from pipeline.training.origin import check_origin, origin_run
from pipeline.training.tiling import epoch_order, fitted_model, lane_plan, run_identity, total_steps

WORKER = "pipeline.training.worker"
SomeConfig = TypeVar("SomeConfig", bound=Config)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a call is to do; known before anything is written or any worker started.

    Attributes:
        job: what each worker is given.
        manifest: of the corpus.
        rank: the place of this process, if a launcher started it as one of several.
        first_step: updates that are made and saved already.
        began: when the call began, unix seconds.
        stop: why nothing is to be started: what a user asked for holds for restarts by a machine.
    """

    job: Job
    manifest: Manifest
    rank: Rank | None
    first_step: int
    began: float
    stop: str | None = None

    @property
    def writes(self) -> bool:
        """Whether this process looks after the run folder: one of those that a launcher started does."""
        return self.rank is None or self.rank.rank == 0


@dataclass(frozen=True, kw_only=True)
class Conclusion:
    """How a call ended well.

    Attributes:
        run: the run folder.
        step: updates made in all.
        first_step: those that it began with; equal to `step`: the run was finished.
        told: for people, of a run without steps.
    """

    run: str
    step: int
    first_step: int
    told: str | None = None

    @property
    def line(self) -> str:
        """For people."""
        if self.told is not None:
            return self.told
        if self.first_step == self.step:
            return f"{self.run} is finished at step {self.step}; raise max_epochs or max_steps to go on"
        return f"{self.run} is trained to step {self.step} (from step {self.first_step})"


def train(config: Config) -> Conclusion:
    """Trains until the configured end, from the newest checkpoint if there is one.

    Raises:
        ConfigError: data or run is missing, the device is not there, the run folder holds another run, or the weights
            to begin with do not fit.
        CorpusError: the corpus is missing, damaged, or has no text to train on.
        ClusterError: workers were lost more often than is allowed.
        LossError: the loss is bad, and the run was to stop then.
        Stopped: someone asked for it; all is saved.
    """
    plan = plan_run(config, os.environ)
    return conclude(plan, launch(plan))


def plan_run(config: Config, environment: Mapping[str, str], *, launches: bool = True) -> Plan:
    """Finds out what is to be done, and refuses what cannot be; writes nothing.

    Args:
        config: of the run.
        environment: of this process, by which launchers say which of several processes it is.
        launches: whether this process is going to launch it, so that its workers may begin to import.

    Raises:
        ConfigError: see `train`.
        CorpusError: see `train`.
        CheckpointError: there are checkpoints, and none is whole or has its mark.
        ClusterError: the environment does not say in full which process this is.
    """
    began = time.time()
    rank = find_rank(environment, config.cluster)
    if launches:
        choose_backend(config.cluster, rank).prepare(modules=[WORKER])
    config = with_places(config, needed=("data", "run"))
    manifest = read_manifest(str(config.data))
    config = config.model_copy(update={"model": fitted_model(config.model, vocab_size=manifest.vocab_size)})
    check_run_folder(str(config.run), data=str(config.data))
    check_splits(config, manifest)
    if config.cluster.kind != "ray":  # its workers are elsewhere
        if config.accelerator == "cuda":
            _check_cuda()
        if config.tracking.prometheus_folder is not None and (rank is None or rank.rank == 0):
            _check_prometheus_folder(config.tracking.prometheus_folder)
    plan = lane_plan(config, manifest)
    epoch_order(config, manifest)  # which refuses blocks that do not fit
    check_workers(config, rank)
    check_room(config, manifest, rank)
    limit = total_steps(config, plan)
    events = read_events(str(config.run))
    first_step = begins_at(config, manifest, total_steps=limit, events=events)
    job = Job(
        config=config,
        total_steps=limit,
        steps_per_epoch=plan.num_windows,
        attempt=next_attempt(events),
        corpus=manifest.fingerprint,
    )
    requested = stop_request(job.run, attempt=job.attempt) if started_by_machine(environment) else None
    stop = None if requested is None else requested.cause
    return Plan(job=job, manifest=manifest, rank=rank, first_step=first_step, began=began, stop=stop)


def launch(plan: Plan) -> Result:
    """Has the workers train, on the machines that are asked for.

    Raises:
        PipelineError: see `train`.
    """
    job = plan.job
    if plan.stop is not None or plan.first_step >= job.total_steps:
        return Result(step=plan.first_step, stop=plan.stop if plan.first_step < job.total_steps else None)
    backend = choose_backend(job.config.cluster, plan.rank)
    if not plan.writes:
        return backend.run(_work, job, plan.rank)
    data = str(job.config.data)
    digests = job.config.stream.verify == "digest"
    if digests:
        check_fingerprint(data, plan.manifest)
    verify_corpus(data, plan.manifest, digests=digests and storage.is_local(data))  # others when they are fetched
    with opened(plan) as end:
        result = backend.run(_work, job, plan.rank)
        end(result.stop or result.lost or (result.bad and result.bad[1]))
    return result


def conclude(plan: Plan, result: Result) -> Conclusion:
    """What is to be said of it.

    Args:
        plan: of the run.
        result: of its workers.

    Raises:
        ConfigError: the run folder was lost.
        LossError: the loss is bad.
        CheckpointError: the last checkpoint is gone.
        Stopped: someone asked for it; all is saved.
    """
    run, step = plan.job.run, result.step
    if result.lost is not None:
        raise ConfigError(result.lost)
    if result.bad is not None:
        raise _bad_loss(plan.job, result)
    if result.stop is not None:
        step = _newest_step(run, up_to=result.step or None)
        saved = f"is saved at step {step}" if step else "has made no step that is saved"
        raise Stopped(f"run={run} {saved}; the same command goes on", cause=result.stop)
    if result.step > plan.first_step and result.step not in committed_steps(run):
        raise CheckpointError(
            f"run={run} was trained to step {step}, whose checkpoint was removed by something else;"
            " the same command makes it again"
        )
    first_step = plan.first_step if result.first_step is None else min(plan.first_step, result.first_step)
    return Conclusion(run=run, step=step, first_step=first_step)


def _work(place: Place, job: Job) -> Result:
    """A worker's part, in its own process, which may be this one."""
    from pipeline.training import worker

    console.quiet_lightning()
    return worker.work(place, job)


@contextmanager
def opened(plan: Plan) -> Iterator[Callable[[str | None], None]]:
    """The run folder is kept to this command, and its ledger says how the attempt began and ended.

    Yields:
        what is to be called with the cause of an end before the run's own; None: it is trained to its end.
    """
    job, run = plan.job, plan.job.run
    taken = "is being trained by another process; wait for it or use another run=FOLDER"
    with held(run, name=LOCK_NAME, patience_seconds=0.0, taken=taken) as still_held:
        gather(run)
        remove_request(run)
        ledger = Ledger(run, attempt=job.attempt)
        start = {"command_step": plan.first_step, "total_steps": job.total_steps, "cluster": job.config.cluster.kind}
        made_with = {"code": asdict(code_version()), "environment": environment()}
        ledger.write("start", time=plan.began, **start, **made_with)
        write_config(job.config)
        storage.publish_bytes(storage.join(run, ATTEMPT_NAME), str(job.attempt).encode())

        def end(cause: str | None) -> None:
            if cause is None or not still_held():  # then it is another's by now
                return
            events = read_events(run)
            if not events or events[-1]["event"] != "stop":  # the workers had not begun, or could not say so
                ledger.write("stop", step=_newest_step(run), cause=cause)

        try:
            yield end
        except (PipelineError, KeyboardInterrupt) as error:
            end(str(error) or "SIGINT")
            raise
        finally:
            with suppress(PipelineError):  # then it lies in parts, which are read as well
                gather(run)


def _bad_loss(job: Job, result: Result) -> LossError:
    assert result.bad is not None
    guard, kept = job.config.guard, _newest_step(job.run, up_to=result.step)
    mend = "or go on with guard.on_bad_loss=skip"
    if guard.on_bad_loss == "skip":
        mend = f"or raise guard.max_skips={guard.max_skips}, as many are passed over already, and go on"
    return LossError(
        f"{result.bad[1]}; {f'step {kept} is saved' if kept else 'nothing is saved'} in run={job.run};"
        f" use a smaller optim.lr or optim.clip_norm in another run, {mend}"
    )


def _newest_step(run: str, *, up_to: int | None = None) -> int:
    """Of the newest committed checkpoint, up to a step if one is given; 0 if there is none."""
    return max((step for step in committed_steps(run) if up_to is None or step <= up_to), default=0)


def with_places(config: SomeConfig, *, needed: Sequence[str]) -> SomeConfig:
    """The configuration with its folders given, and absolute where they are local.

    Args:
        config: of the run.
        needed: of `data` and `run`, those that must be given.

    Raises:
        ConfigError: one is missing, or the run is to begin with its own weights.
    """
    for name in needed:
        given(name, {"data": config.data, "run": config.run}[name])
    places = {"data": config.data, "run": config.run, "init_from": config.init_from}
    update: dict[str, object] = {name: storage.absolute(place) for name, place in places.items() if place is not None}
    if (folder := config.tracking.prometheus_folder) is not None:
        update["tracking"] = config.tracking.model_copy(update={"prometheus_folder": storage.absolute(folder)})
    if (folder := config.stream.cache_folder) is not None:
        update["stream"] = config.stream.model_copy(update={"cache_folder": storage.absolute(folder)})
    found = config.model_copy(update=update)
    if found.init_from is not None and origin_run(found.init_from) == str(found.run).rstrip("/"):
        raise ConfigError(f"init_from={config.init_from} is the run itself; use another run=FOLDER, or init_from=null")
    return found


def check_splits(config: Config, manifest: Manifest) -> None:
    """Refuses a corpus that lacks what the run reads."""
    if "train" not in manifest.splits:
        raise CorpusError(f"data={config.data} has no split train, only {', '.join(manifest.splits)}; prepare one")
    if config.optim.schedule.kind == "plateau" and "valid" not in manifest.splits:
        raise ConfigError(
            f"optim.schedule.kind=plateau waits for validations and data={config.data} has no split valid;"
            " prepare one or use optim.schedule.kind=cosine"
        )
    if config.optim.averaging == "nonmonotone" and "valid" not in manifest.splits:
        raise ConfigError(
            f"optim.averaging=nonmonotone waits for validations and data={config.data} has no split valid;"
            " prepare one or use optim.averaging=start"
        )


def _check_prometheus_folder(folder: str) -> None:
    """Refuses one that the first worker could not write to; node-exporter looks into no folder but its own."""
    if not (storage.is_folder(folder) and os.access(folder, os.W_OK | os.X_OK)):
        raise ConfigError(
            f"tracking.prometheus_folder={folder} is no folder that can be written to; give the one that node-exporter"
            " reads (--collector.textfile.directory), or null"
        )


def _check_cuda() -> None:
    """Refuses a machine without CUDA, before anything is written."""
    from pipeline.training.parts import choose_device

    choose_device("cuda")


def check_workers(config: Config, rank: Rank | None) -> None:
    """Refuses numbers of workers that do not share the lanes out evenly."""
    cluster, num_lanes = config.cluster, config.stream.num_lanes
    if rank is not None:
        if cluster.num_workers not in (None, rank.world_size):
            raise ConfigError(
                f"cluster.num_workers={cluster.num_workers} and {rank.world_size} processes were started;"
                " leave cluster.num_workers out"
            )
        check_world_size(num_lanes, rank.world_size, name="the number of processes started")
    check_world_size(num_lanes, cluster.num_workers or 1, name="cluster.num_workers")
    check_world_size(num_lanes, cluster.min_workers or 1, name="cluster.min_workers")


def check_room(config: Config, manifest: Manifest, rank: Rank | None) -> None:
    """Refuses a cache of a remote corpus that is too small, where it is known how many lanes this machine will have.

    Each worker looks again, on its machine.
    """
    num_lanes = config.stream.num_lanes
    if rank is not None:
        num_lanes = num_lanes * rank.ranks_here // rank.world_size
    elif config.cluster.kind == "ray":
        num_lanes = 1
    shards = manifest.shards_of("train", "valid")
    check_cache(str(config.data), shards, stream=config.stream, num_lanes=num_lanes)


def begins_at(config: Config, manifest: Manifest, *, total_steps: int, events: Sequence[Event]) -> int:
    """The step of the newest checkpoint that seems whole, 0 if there is none; of the run's own no tensor is read.

    Args:
        config: of the run, its model fitted to the vocabulary, its places absolute; without `run` it begins.
        manifest: of its corpus.
        total_steps: of the run.
        events: of its ledger.

    Raises:
        ConfigError: the checkpoint is of another run, or the weights to begin with do not fit.
        CheckpointError: there are some, and none seems whole or has its mark; or there is none to begin with.
    """
    identity, run, mark = run_identity(config, manifest, total_steps=total_steps), config.run, None
    if run is not None:
        mark = newest_mark(run, finite=config.guard.on_bad_loss != "ignore", saved=saved_steps(events))
    if run is not None and mark is not None:
        check_identity(mark.identity, identity, path=checkpoint_path(run, mark.step))
        return mark.step
    if config.init_from is not None:
        check_origin(config, manifest, identity=identity)
    return 0

"""One training run, from a prepared corpus to a checkpoint: the command's side.

In: the configuration. Out: a run folder with `config.yaml`, `metrics.jsonl`, `events.jsonl` and checkpoints. The same
call again resumes, with as many workers as it is then given. Refuses a corpus that does not verify and a checkpoint of
another run, before any worker is started; what the workers do stands in `worker.py`.
"""

import logging
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from pipeline import storage
from pipeline.config import Config
from pipeline.corpus.lanes import check_world_size
from pipeline.corpus.manifest import read_manifest, verify_corpus
from pipeline.errors import CheckpointError, ConfigError, CorpusError, LossError, PipelineError, Stopped
from pipeline.model.language_model import LanguageModel
from pipeline.training.checkpoint import (
    check_identity,
    check_weights,
    checkpoint_path,
    committed_steps,
    newest_sound,
    own_part,
)
from pipeline.training.folder import LOCK_NAME, check_run_folder, held, write_config
from pipeline.training.job import ATTEMPT_NAME, Ending, Job
from pipeline.training.ledger import Event, Ledger, gather, next_attempt, read_events, saved_steps
from pipeline.training.origin import load_origin, origin_path, origin_run
from pipeline.training.parts import (
    bf16_is_native,
    build_model,
    choose_device,
    fitted_model,
    lane_plan,
    run_identity,
    total_steps,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a call of `train` ended.

    Attributes:
        run: the run folder.
        step: optimizer steps made in all.
        first_step: steps that stood there already when the call began; equal to `step`: the run was finished.
    """

    run: str
    step: int
    first_step: int


StartWorkers = Callable[[Job], Ending | str]  # how the workers ended, or the signal that came before they could tell


def in_this_process(job: Job) -> Ending:
    """The only worker is this process."""
    from pipeline.training.worker import Alone, work

    return work(Alone(job.config.cluster.cpus_per_worker), job)


def train(
    config: Config, *, start_workers: StartWorkers = in_this_process, launched: tuple[int, int] | None = None
) -> Outcome:
    """Trains until the configured end, from the newest checkpoint if there is one.

    Args:
        config: of the run.
        start_workers: has each worker do `work`.
        launched: (rank, world size) if this process is one of several that all call this; None: it is alone.

    Raises:
        ConfigError: data or run is missing, the device is not there, the run folder holds another run, or the weights
            to begin with do not fit.
        CorpusError: the corpus is missing, damaged, or has no text to train on.
        ClusterError: workers were lost more often than is allowed.
        LossError: the loss is out of order, and the run was to stop then.
        Stopped: a signal asked for it; all is saved.
    """
    began = time.time()
    config = _with_places(config)
    manifest = read_manifest(str(config.data))
    config = config.model_copy(update={"model": fitted_model(config.model, vocab_size=manifest.vocab_size)})
    assert config.data is not None and config.run is not None
    check_run_folder(config.run, data=config.data)
    if "train" not in manifest.splits:
        raise CorpusError(f"data={config.data} has no split train, only {', '.join(manifest.splits)}; prepare one")
    if config.cluster.kind != "ray":
        _check_device(config)
    if config.optim.schedule.kind == "plateau" and "valid" not in manifest.splits:
        raise ConfigError(
            f"optim.schedule.kind=plateau waits for validations and data={config.data} has no split valid;"
            " prepare one or use optim.schedule.kind=cosine"
        )
    plan = lane_plan(config, manifest)
    _check_workers(config, world_size=launched[1] if launched else None)
    limit = total_steps(config, plan)
    identity = run_identity(config, manifest, total_steps=limit)
    model = build_model(config.model, vocab_size=manifest.vocab_size)
    events = read_events(config.run)
    first_step = _step_at_hand(config, identity, model, events)
    if first_step >= limit:
        return Outcome(run=config.run, step=first_step, first_step=first_step)
    if config.init_from is not None and first_step == 0:
        load_origin(model, origin_path(config.init_from), identity=identity)
    job = Job(
        config=config,
        total_steps=limit,
        steps_per_epoch=plan.num_windows,
        attempt=next_attempt(events),
        corpus=manifest.fingerprint,
    )
    if launched is not None and launched[0] > 0:
        return _outcome(start_workers(job), first_step, job)
    digests = config.stream.verify == "digest"
    verify_corpus(config.data, manifest, digests=digests, num_threads=os.cpu_count() or 1)
    taken = "is being trained by another process; wait for it or use another run=FOLDER"
    with held(config.run, name=LOCK_NAME, patience_seconds=0.0, taken=taken) as still_held:
        gather(config.run)
        start = {"command_step": first_step, "total_steps": limit, "cluster": config.cluster.kind}
        Ledger(config.run, attempt=job.attempt).write("start", time=began, **start)
        write_config(config)
        storage.publish_bytes(storage.join(config.run, ATTEMPT_NAME), str(job.attempt).encode())
        try:
            return _outcome(start_workers(job), first_step, job)
        except (PipelineError, KeyboardInterrupt) as error:
            if still_held():  # else it is another's by now
                step = _newest_step(config.run)
                Ledger(config.run, attempt=job.attempt).write("stop", step=step, cause=str(error) or "SIGINT")
            raise
        finally:
            with suppress(PipelineError):  # then it lies in parts, which are read as well
                gather(config.run)


def _check_device(config: Config) -> None:
    """Refuses a device that is not there; tells of a CPU that is slow in bf16."""
    on_cpu = choose_device(config.accelerator) == "cpu"
    if on_cpu and config.precision == "bf16" and not bf16_is_native():
        log.warning("precision=bf16 is some ten times slower than precision=fp32 on this CPU, which has no AVX-512")


def _outcome(ending: Ending | str, first_step: int, job: Job) -> Outcome:
    """What the command says of it."""
    config = job.config
    assert config.run is not None
    if isinstance(ending, Ending) and ending.lost is not None:
        raise ConfigError(ending.lost)
    if isinstance(ending, Ending) and ending.bad is not None:
        kept = _newest_step(config.run, up_to=ending.step)
        mend = "or go on with guard.on_bad_loss=skip"
        if config.guard.on_bad_loss == "skip":
            mend = f"or raise guard.max_skips={config.guard.max_skips}, as many are passed over already, and go on"
        raise LossError(
            f"{ending.bad[1]}; {f'step {kept} is saved' if kept else 'nothing is saved'} in run={config.run};"
            f" use a smaller optim.lr or optim.clip_norm in another run, {mend}"
        )
    stop = ending if isinstance(ending, str) else ending.stop
    if stop is not None:
        step = _newest_step(config.run, up_to=None if isinstance(ending, str) else ending.step)
        events = read_events(config.run)
        if events and events[-1]["event"] != "stop":  # it came before the workers had begun
            Ledger(config.run, attempt=job.attempt).write("stop", step=step, cause=stop)
        saved = f"is saved at step {step}" if step else "has made no step that is saved"
        raise Stopped(f"run={config.run} {saved}; the same command goes on", cause=stop)
    assert isinstance(ending, Ending)
    if ending.step not in committed_steps(config.run):
        raise CheckpointError(
            f"run={config.run} was trained to step {ending.step}, whose checkpoint was removed by something else;"
            " the same command makes it again"
        )
    return Outcome(run=config.run, step=ending.step, first_step=first_step)


def _newest_step(run: str, *, up_to: int | None = None) -> int:
    """Of the newest committed checkpoint, up to a step if one is given; 0 if there is none."""
    return max((step for step in committed_steps(run) if up_to is None or step <= up_to), default=0)


def _check_workers(config: Config, *, world_size: int | None) -> None:
    """Refuses numbers of workers that do not share the lanes out evenly.

    Args:
        config: of the run.
        world_size: of what torchrun or srun started; None: nothing of the kind.
    """
    cluster, num_lanes = config.cluster, config.stream.num_lanes
    if world_size is not None:
        if cluster.num_workers not in (None, world_size):
            raise ConfigError(
                f"cluster.num_workers={cluster.num_workers} and {world_size} processes were started;"
                " leave cluster.num_workers out"
            )
        check_world_size(num_lanes, world_size, name="the number of processes started")
    check_world_size(num_lanes, cluster.num_workers or 1, name="cluster.num_workers")
    check_world_size(num_lanes, cluster.min_workers or 1, name="cluster.min_workers")


def _with_places(config: Config) -> Config:
    """The configuration with its folders given, and absolute where they are local."""
    for name, value in (("data", config.data), ("run", config.run)):
        if value is None:
            raise ConfigError(f"{name}=null is not given; use {name}=FOLDER")
    places = {"data": config.data, "run": config.run, "init_from": config.init_from}
    found = config.model_copy(
        update={name: storage.absolute(place) for name, place in places.items() if place is not None}
    )
    if found.init_from is not None and origin_run(found.init_from) == str(found.run).rstrip("/"):
        raise ConfigError(f"init_from={config.init_from} is the run itself; use another run=FOLDER, or init_from=null")
    return found


def _step_at_hand(config: Config, identity: dict[str, str], model: LanguageModel, events: Sequence[Event]) -> int:
    """The step of the newest checkpoint of the run that is whole, 0 if there is none.

    Raises:
        ConfigError: it is of another run.
        CheckpointError: there are some, and none is whole or has its mark.
    """
    run = str(config.run)
    found = newest_sound(run, finite=config.guard.on_bad_loss != "ignore", saved=saved_steps(events))
    if found is None:
        return 0
    step, checkpoint = found
    path = checkpoint_path(run, step)
    check_identity(own_part(checkpoint)["identity"], identity, path=path)
    check_weights(checkpoint, model.state_dict(), path=path)
    return step

"""What one worker of a run does: it finds the newest checkpoint that is whole, and trains on with the other ranks.

In: its place, the job. Out: the run folder's records and checkpoints, and how it ended. Refuses, on all ranks
at once, a machine that does not see the run folder or the corpus of the command.
"""

import logging
import threading
import time
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any

import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.strategies import DDPStrategy

from pipeline import storage
from pipeline.config import Config, recurrent
from pipeline.corpus.cache import Future, ShardCache, open_cache
from pipeline.corpus.lanes import LanePlan, rank_lanes
from pipeline.corpus.manifest import VOCABULARY_NAME, Manifest, check_fingerprint, read_manifest
from pipeline.corpus.order import Order, ranges_of
from pipeline.corpus.tokens import TokenSequence
from pipeline.corpus.vocabulary import read_vocabulary
from pipeline.errors import ConfigError, CorpusError
from pipeline.masking import last_name, masked_tree
from pipeline.model.language_model import LanguageModel
from pipeline.model.output_layer import Sampler
from pipeline.run.account import Standing
from pipeline.run.checkpoint import (
    check_weights,
    checkpoint_path,
    committed_steps,
    newest_sound,
    remove_checkpoint,
    remove_uncommitted,
)
from pipeline.run.display import Display
from pipeline.run.folder import WRITER_LOCK_NAME, RunFolder, held, write_config
from pipeline.run.gauges import Gauges, Sink, TextFile
from pipeline.run.job import Job, Place, Result
from pipeline.run.ledger import Event, Ledger, read_events, saved_steps
from pipeline.run.meeting import HERE, loopback_identity
from pipeline.run.records import METRICS_NAME, MetricsFile, read_records, step_of
from pipeline.run.stop import ATTEMPT_NAME, SIGNALS, USER, RequestWatch
from pipeline.run.tracking import tracking_id
from pipeline.scoring.perplexity import Score, score_tokens
from pipeline.training.about import about_run, checkpoint_reference, corpus_reference
from pipeline.training.collectives import Collectives
from pipeline.training.dashboards import GuardedTracker, NoTracker, Reference, Tracker, WandbTracker
from pipeline.training.data import Batch, StepLoader, on_device, read_batches
from pipeline.training.module import LanguageModelModule
from pipeline.training.monitor import Monitor, Reporter
from pipeline.training.origin import load_origin, origin_path
from pipeline.training.parts import (
    bf16_is_native,
    build_model,
    choose_device,
    open_split,
    settle_numerics,
)
from pipeline.training.saving import BackgroundIO, Checkpointer
from pipeline.training.sync import LOST, Cadence, Host, Suspicion, Sync
from pipeline.training.tiling import epoch_order, lane_plan, run_identity
from pipeline.training.watchdog import Watchdog

log = logging.getLogger(__name__)

LAST_WORDS_SECONDS = 10.0  # for a dashboard to take an alert from a process that is about to end
ORPHAN_SECONDS = 10.0  # for the writer of a command that was killed, beyond its time to save


def work(place: Place, job: Job) -> Result:
    """One worker's part: all ranks run this, together."""
    if place.num_threads is not None:
        torch.set_num_threads(place.num_threads)
    on_cpu = choose_device(place.accelerator or job.config.accelerator) == "cpu"
    bf16_on_cpu = on_cpu and job.config.precision == "bf16"
    settle_numerics(bf16=bf16_on_cpu)
    scout = _trainer(place, job, [], [])
    if place.distributed:
        scout.strategy.setup_environment()  # the ranks must talk before any of them trains
    ranks = Collectives(rank=scout.global_rank, world_size=scout.world_size)
    if bf16_on_cpu and ranks.first and not bf16_is_native():
        log.warning("precision=bf16 is some ten times slower than precision=fp32 on this CPU, which has no AVX-512")
    environment = getattr(scout.strategy, "cluster_environment", None)
    machines = ranks.from_all(loopback_identity())
    main_address = HERE if len(set(machines)) == 1 or environment is None else environment.main_address
    job = replace(job, attempt=ranks.from_first(job.attempt))  # one that began later found this attempt in the ledger
    manifest = ranks.agree(lambda: _common_ground(job))
    with ExitStack() as until_the_end:
        run = job.run
        ranks.agree(lambda: until_the_end.enter_context(_written_to(job)) if ranks.first else None)
        spare = f"{run}-rescued-{job.attempt}"
        folder = ranks.agree(lambda: until_the_end.enter_context(RunFolder(run, spare=spare)) if ranks.first else None)
        requests = RequestWatch(run, attempt=job.attempt) if ranks.first else None
        if requests is not None:
            until_the_end.callback(requests.close)
        cache = ranks.agree(lambda: until_the_end.enter_context(_cache(job, manifest, ranks, machines)))
        host = Here(place, folder, requests)
        skipped: set[int] = set()
        suspicion: Suspicion | None = None
        while True:
            with ranks.agree(lambda: _ledger(job, folder)) as ledger:
                result = _go_on(
                    place,
                    job,
                    manifest,
                    ranks,
                    host=host,
                    folder=folder,
                    ledger=ledger,
                    cache=cache,
                    main_address=main_address,
                    skipped=skipped,
                    suspicion=suspicion,
                )
            if result.lost is not None or result.bad is None or job.config.guard.on_bad_loss != "skip":
                return result
            if result.stop is not None:  # the next group finds the same, and passes it over
                return replace(result, bad=None)
            suspicion = ranks.from_first(_suspicion(job, result.bad, skipped=skipped) if ranks.first else None)
            if suspicion is None:
                return result


def _trainer(place: Place, job: Job, plugins: list[Any], callbacks: list[Callback]) -> Trainer:
    config = job.config
    strategy: str | DDPStrategy = "auto"
    if place.distributed:
        strategy = (place.strategy or DDPStrategy)(
            find_unused_parameters=False,
            gradient_as_bucket_view=True,
            timeout=timedelta(seconds=job.exchange_seconds),
        )
    trainer = Trainer(
        accelerator=choose_device(place.accelerator or config.accelerator),
        devices=place.devices,
        num_nodes=place.num_nodes,
        strategy=strategy,
        precision="bf16-mixed" if config.precision == "bf16" else "32-true",
        max_epochs=-1,
        max_steps=job.total_steps,
        callbacks=callbacks,
        plugins=[*plugins, place.environment or LightningEnvironment()],  # Lightning looks for none
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        limit_val_batches=0,
    )
    # Lightning's handler of SIGTERM broadcasts from within whatever is going on; `Sync` has one of its own
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    if place.distributed:
        # Lightning asks for SIGTERM by a broadcast and a wait for the device in each step (lightning#21487); `Sync`
        # asks once a second, and takes the signal itself
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
    return trainer


def _common_ground(job: Job) -> Manifest:
    """The manifest, once it is known that this machine sees what the command saw."""
    config = job.config
    assert config.data is not None
    note = storage.join(job.run, ATTEMPT_NAME)
    found = storage.read_or_nothing(note).decode(errors="replace") or "nothing"
    if found != str(job.attempt):
        raise ConfigError(
            f"run={job.run} is not the same folder on every machine ({note} holds {found}, not {job.attempt});"
            " use one that all of them see, such as s3://BUCKET/FOLDER"
        )
    manifest = read_manifest(config.data)
    if manifest.fingerprint != job.corpus:
        raise CorpusError(
            f"data={config.data} is not the same corpus on every machine: found {manifest.fingerprint}, needed"
            f" {job.corpus}; copy it to all of them"
        )
    if config.stream.verify == "digest":
        check_fingerprint(config.data, manifest)
    return manifest


def _written_to(job: Job) -> AbstractContextManager[object]:
    """Keeps the run folder to one first rank: that of a command that was killed may live a little longer."""
    patience_seconds = job.config.cluster.grace_seconds + ORPHAN_SECONDS
    taken = "is still written to by a process of an earlier command; end it first"
    return held(job.run, name=WRITER_LOCK_NAME, patience_seconds=patience_seconds, taken=taken)


def _ledger(job: Job, folder: RunFolder | None) -> AbstractContextManager[Ledger | None]:
    """Of the first rank, which has the folder."""
    if folder is None:
        return nullcontext()
    before = read_events(job.run) if storage.is_local(job.run) else []
    return Ledger(job.run, attempt=job.attempt, background=True, before=before, lost=folder.is_lost)


def _go_on(
    place: Place,
    job: Job,
    manifest: Manifest,
    ranks: Collectives,
    *,
    host: Host,
    folder: RunFolder | None,
    ledger: Ledger | None,
    cache: ShardCache | None,
    main_address: str,
    skipped: set[int],
    suspicion: Suspicion | None,
) -> Result:
    """Trains from the newest whole checkpoint until the end, a request to stop, or a bad step.

    Args:
        place, job, manifest, ranks: of this worker.
        host: where this worker stands.
        folder, ledger: of the first rank; None on the others.
        cache: of a remote corpus.
        main_address: of the first rank's machine, as the others reach it.
        skipped: windows that are passed over, counted from 0 as they are; gets those that come to it here.
        suspicion: steps that may have to be passed over; None: none.
    """
    config, run, limit, io = job.config, job.run, job.total_steps, BackgroundIO(world_size=ranks.world_size)
    assert config.data is not None
    plan, order = lane_plan(config, manifest), epoch_order(config, manifest)
    events = ranks.agree(lambda: read_events(run) if ranks.first else [])
    standing = _standing(ledger, events)
    first_step = ranks.from_first(ranks.agree(lambda: 0 if ledger is None else _first_step(config, io, ledger, events)))
    skipped |= ranks.from_first(_skipped(events, from_step=first_step))
    identity = run_identity(config, manifest, total_steps=limit)
    model = _model(config, manifest, ranks, identity=identity, first_step=first_step)
    ranks.agree(lambda: _check_weights(io, model))
    lanes = rank_lanes(plan.num_lanes, world_size=ranks.world_size, rank=ranks.rank)
    tokens = open_split(config.data, manifest, "train", cache=cache, num_lanes=len(lanes))
    sample = ranks.agree(lambda: _sampler(config, model))
    batches = partial(
        _batches, tokens, plan, order=order, lanes=lanes, seed=config.stream.seed, model=model, sample=sample
    )
    module = LanguageModelModule(
        model,
        plan=plan,
        order=order,
        optim=config.optim,
        total_steps=limit,
        validate_every=config.checkpoint.validate_every_steps or plan.num_windows,
        carry=config.stream.state == "carry",
        identity=identity,
        ranks=ranks,
        lanes=lanes,
        first_batch=lambda: next(batches(*_rehearsed(plan, first_step), cache=cache)),
        skipped=skipped,
    )
    cadence = Cadence(
        log_every=config.logging.every_steps,
        save_every=config.checkpoint.every_steps,
        validate_every=module.validate_every,
        total_steps=limit,
    )
    reporter = ranks.agree(
        lambda: (
            None
            if ledger is None or folder is None
            else _reporter(
                place,
                job,
                ledger,
                folder,
                first_step=first_step,
                num_known=_num_records(io),
                standing=standing,
                about=partial(about_run, model, manifest),
                corpus=corpus_reference(str(config.data), manifest),
                hang=_hang_before(events),
            )
        )
    )
    reached_step = first_step
    if ledger is not None and folder is not None and reporter is not None:
        folder.move = partial(_move, job, reporter, ledger)
        reached_step = min(limit, max(reporter.metrics.reached_step, *(_made(event) for event in events), first_step))
        _write_group(ledger, events, first_step=first_step, reached_step=reached_step, world_size=ranks.world_size)
    watchdog = (
        None
        if config.guard.hang_seconds is None
        else Watchdog(
            ranks=ranks,
            hang_seconds=config.guard.hang_seconds,
            host=main_address,
            report=partial(_report_hang, job, reporter),
        )
    )
    sync = Sync(
        cadence=cadence,
        guard=config.guard,
        host=host,
        save_seconds=None if config.checkpoint.every_minutes is None else config.checkpoint.every_minutes * 60,
        reached_step=reached_step,
        suspicion=suspicion,
        ledger=ledger,
        watchdog=watchdog,
    )
    valid = open_split(config.data, manifest, "valid", cache=cache) if "valid" in manifest.splits else None
    monitor = Monitor(
        cadence=cadence,
        ranks=ranks,
        sync=sync,
        validate=None if valid is None else partial(_score, model, valid),
        reporter=reporter,
    )
    checkpointer = Checkpointer(
        run,
        config=config.checkpoint,
        cadence=cadence,
        ranks=ranks,
        sync=sync,
        io=io,
        folder=folder,
        metrics=None if reporter is None else reporter.metrics,
        ledger=ledger,
    )
    trainer = _trainer(place, job, [io], [sync, monitor, checkpointer])
    loader = StepLoader(
        lambda start: on_device(batches(start, limit, cache=cache), trainer.strategy.root_device),
        current_step=lambda: trainer.global_step,
        total_steps=limit,
    )
    try:
        resumed = checkpoint_path(run, first_step) if first_step else None
        sync.listen()
        with warnings.catch_warnings():  # Lightning warns wherever srun is installed, though it is told where it stands
            warnings.filterwarnings("ignore", message="The `srun` command is available", category=UserWarning)
            trainer.fit(module, train_dataloaders=loader, ckpt_path=resumed, weights_only=True)
    except SystemExit as error:  # Lightning 2.6 takes a second Ctrl-C for a request to exit with 1
        raise KeyboardInterrupt from error
    finally:
        sync.release()
        if reporter is not None:
            reporter.close()
        _end(tokens, valid)
    skipped |= module.state.skipped
    finished = trainer.global_step >= limit and sync.bad is None
    lost = ranks.from_first(None if folder is None else folder.verdict())
    result = Result(
        step=trainer.global_step, first_step=first_step, stop=None if finished else sync.stop, bad=sync.bad, lost=lost
    )
    if ledger is not None:
        _write_end(ledger, result, limit)
    return result


def _model(
    config: Config, manifest: Manifest, ranks: Collectives, *, identity: dict[str, str], first_step: int
) -> LanguageModel:
    """The model; its weights are drawn, or where the run begins those of `init_from`. Checkpoints bring later ones."""
    model = build_model(config.model, vocab_size=manifest.vocab_size)
    section = recurrent(config.model)
    model.draw_weights(
        seed=config.stream.seed,
        init_scale=section.init_scale,
        recurrence_init_scale=section.recurrence_init_scale,
    )
    if config.init_from is not None and first_step == 0:
        _take_weights(model, config.init_from, ranks, identity=identity)
    return model


def _sampler(config: Config, model: LanguageModel) -> Sampler:
    """What the output layer draws; the corpus' counts of words are read if it needs them."""
    vocabulary = storage.join(str(config.data), VOCABULARY_NAME)
    return model.softmax.sampler(counts=lambda: read_vocabulary(vocabulary).counts, seed=config.stream.seed)


def _rehearsed(plan: LanePlan, first_step: int) -> tuple[int, int]:
    """[start, stop) of the step whose batch is rehearsed: the first one, whose shards are needed anyway.

    An epoch's last window may be short, which changes the graph of the backward pass; then it is the step before.
    """
    is_last = plan.position(first_step)[1] == plan.num_windows - 1
    step = first_step - 1 if is_last and first_step else first_step
    return step, step + 1


def _score(model: LanguageModel, valid: TokenSequence) -> Score:
    """A validation; it leaves no shard open, as there may be no room for it beside those of the lanes."""
    try:
        return score_tokens(model, valid)
    finally:
        valid.close()


def _end(*splits: TokenSequence | None) -> None:
    """Another attempt of this process, in the same cache, opens them anew."""
    for split in splits:
        if split is not None:
            split.end()


def _take_weights(model: LanguageModel, init_from: str, ranks: Collectives, *, identity: dict[str, str]) -> None:
    """Gives the model of every rank the weights that the run begins with."""
    path = ranks.from_first(ranks.agree(lambda: origin_path(init_from) if ranks.first else init_from))
    ranks.agree(lambda: load_origin(model, path, identity=identity))
    if ranks.first:
        log.info("beginning with the weights of %s", path)


def _cache(
    job: Job, manifest: Manifest, ranks: Collectives, machines: list[str]
) -> AbstractContextManager[ShardCache | None]:
    """This machine's cache of a remote corpus, which knows when the lanes of all its ranks come to which shards.

    Args:
        job, manifest, ranks: of this worker.
        machines: what each rank's machine is called.
    """
    config, plan = job.config, lane_plan(job.config, manifest)
    order = epoch_order(config, manifest)
    here = [rank for rank, machine in enumerate(machines) if machine == machines[ranks.rank]]
    lanes = [each for rank in here for each in rank_lanes(plan.num_lanes, world_size=ranks.world_size, rank=rank)]
    train = manifest.shards_of("train")
    ranges = ranges_of(plan, order, lanes)
    future = Future(train, plan, ranges, total_steps=job.total_steps, run_tokens=order.block_tokens)
    shards = [*train, *manifest.shards_of("valid")]
    return open_cache(str(config.data), shards, stream=config.stream, num_lanes=len(lanes), future=future)


def _batches(
    tokens: TokenSequence,
    plan: LanePlan,
    start: int,
    stop: int,
    *,
    order: Order,
    lanes: range,
    seed: int,
    model: LanguageModel,
    sample: Sampler,
    cache: ShardCache | None = None,
) -> Iterator[Batch]:
    """A rank's batches of steps [start, stop).

    A cache is told of each step before it is read, so windows are then read one at a time instead of up to 64 together:
    some 15 to 40 million tokens a CPU second.
    """
    batches = read_batches(
        tokens,
        plan,
        start=start,
        stop=stop,
        lanes=lanes,
        seed=seed,
        prepare_targets=model.softmax.prepare_targets,
        num_sites=model.num_sites,
        sample=sample,
        num_shared_sites=model.num_shared_sites,
        order=order,
        most_at_once=None if cache is None else 1,
    )
    for step in range(start, stop):
        if cache is not None:
            cache.at(step)
        yield next(batches)


def _first_step(config: Config, io: BackgroundIO, ledger: Ledger, events: list[Event]) -> int:
    """The step of the newest checkpoint that is whole, which is then at hand; 0 if there is none."""

    def on_damaged(step: int, why: str) -> None:
        log.warning("%s; going on from step %d, which is whole", why, step)
        ledger.write("fault", kind="checkpoint", cause=why, rank=0, fatal=False, step=step)

    run, finite = str(config.run), config.guard.on_bad_loss != "ignore"
    found = newest_sound(run, finite=finite, saved=saved_steps(events), on_damaged=on_damaged)
    remove_uncommitted(run)
    if found is None:
        return 0
    step, checkpoint = found
    io.at_hand[checkpoint_path(run, step)] = checkpoint
    return step


def _check_weights(io: BackgroundIO, model: LanguageModel) -> None:
    """Refuses a checkpoint at hand that does not fit the model."""
    for path, checkpoint in io.at_hand.items():
        check_weights(checkpoint, model.state_dict(), path=path)


def _num_records(io: BackgroundIO) -> int | None:
    """How many records there were when the checkpoint at hand was written; None if it does not say, 0 without one."""
    if not io.at_hand:
        return 0
    (checkpoint,) = io.at_hand.values()
    found = checkpoint.get("callbacks", {}).get(Checkpointer.__name__, {}).get("num_records")
    return found if isinstance(found, int) else None


def _move(job: Job, reporter: Reporter, ledger: Ledger, path: str) -> None:
    """Has what the first rank writes go on in another folder: the run's own is lost."""
    write_config(job.config.model_copy(update={"run": path}))
    storage.publish_bytes(storage.join(path, ATTEMPT_NAME), str(job.attempt).encode())
    reporter.metrics.move(storage.join(path, METRICS_NAME))
    ledger.move(path)
    ledger.write("fault", kind="disk", cause=f"run={job.config.run} was lost", rank=0, fatal=False)


class Here(Host):
    """What a rank asks of where it stands; the first one also looks after the run folder.

    Args:
        place: of this worker.
        folder, requests: of the first rank; None on the others.
    """

    def __init__(self, place: Place, folder: RunFolder | None, requests: RequestWatch | None) -> None:
        self._place, self._folder, self._requests = place, folder, requests

    def stop_cause(self) -> str | None:
        """That the folder is lost, that it holds a request, or that whoever started this worker is gone."""
        if self._folder is not None and self._folder.is_lost():
            return LOST
        requested = None if self._requests is None else self._requests.cause()
        return requested or self._place.stop_cause()

    def preempted(self) -> bool:
        """As the cluster says."""
        return self._place.preempted()


def _skipped(events: list[Event], *, from_step: int) -> set[int]:
    """Windows that were to be passed over, of steps that no checkpoint knows of yet; counted from 0 as windows are."""
    return {step - 1 for step in _steps_to_skip(events) if step > from_step}


def _steps_to_skip(events: list[Event]) -> set[int]:
    """The steps whose windows are passed over, by the ledger."""
    return {int(event["step"]) for event in events if event["event"] == "skip"}


def _standing(ledger: Ledger | None, events: list[Event]) -> Standing:
    """Where the run stands, which from now on follows what the ledger is told."""
    standing = Standing(events, now=time.time())
    if ledger is not None:
        ledger.heard = standing.hear
    return standing


def _report_hang(job: Job, reporter: Reporter | None, rank: int | None, cause: str) -> None:
    """Tells the ledger at once, then the dashboard, whose records would be lost too: the process is about to end."""
    Ledger(job.run, attempt=job.attempt).write("fault", kind="hang", cause=cause, rank=rank, fatal=True)
    if reporter is not None:
        last = threading.Thread(target=_last_words, args=(reporter.tracker, cause), name="last-words", daemon=True)
        last.start()
        last.join(LAST_WORDS_SECONDS)


def _last_words(tracker: Tracker, cause: str) -> None:
    """Either may wait for a dashboard that never answers."""
    tracker.alert("training hangs", cause)
    tracker.finish()


def _hang_before(events: list[Event]) -> str | None:
    """The hang that ended the last group, if its dashboard may not know.

    One rank tells the dashboard. Where that one hangs another notices, and where another hangs it may be ended before
    what it told was sent. A single process tells before it ends.
    """
    groups = [index for index, event in enumerate(events) if event["event"] == "group"]
    if not groups or events[groups[-1]]["world_size"] == 1:
        return None
    faults = [event for event in events[groups[-1] :] if event["event"] == "fault" and event["fatal"]]
    return next((str(fault["cause"]) for fault in faults if fault["kind"] == "hang"), None)


def _made(event: Event) -> int:
    """How far the run is known to have come by an event."""
    told = event["event"] in ("progress", "checkpoint", "validation", "replayed")
    return int(event["step"]) if told else 0


def _suspicion(job: Job, bad: tuple[int, str], *, skipped: Collection[int]) -> Suspicion | None:
    """Which windows are passed over for a bad step; None if there were too many already.

    Checkpoints that hold an update by one of them are removed: the run goes back to before.
    """
    guard, run = job.config.guard, job.run
    step, why = bad
    known = _steps_to_skip(read_events(run)) | {each + 1 for each in skipped}
    last = next((each for each in range(step, 0, -1) if each not in known), 0)
    steps = [each for each in range(max(1, last - guard.skip_steps + 1), last + 1) if each not in known]
    if not steps or len(known) + len(steps) > guard.max_skips * guard.skip_steps:
        return None
    for each in committed_steps(run):
        if each >= steps[0]:
            remove_checkpoint(checkpoint_path(run, each))
    log.warning("%s: going back to the checkpoint before step %d", why, steps[0])
    return Suspicion(steps=tuple(steps), why=why)


def _write_group(ledger: Ledger, events: list[Event], *, first_step: int, reached_step: int, world_size: int) -> None:
    before = [int(event["world_size"]) for event in events if event["event"] == "group"]
    if before and before[-1] != world_size:
        log.info("%s, %d before", "1 worker" if world_size == 1 else f"{world_size} workers", before[-1])
        ledger.write("resize", from_size=before[-1], to_size=world_size)
    checkpoint = f"step-{first_step}.ckpt" if first_step else None
    ledger.write("group", step=first_step, reached_step=reached_step, world_size=world_size, checkpoint=checkpoint)


def _write_end(ledger: Ledger, result: Result, limit: int) -> None:
    if result.bad is not None:
        ledger.write("fault", kind="loss", cause=result.bad[1], rank=None, fatal=True, step=result.bad[0])
    elif result.step >= limit:
        ledger.write("end", step=result.step)
    elif result.stop in (*SIGNALS, USER, LOST):
        ledger.write("stop", step=result.step, cause=result.stop)


def _reporter(
    place: Place,
    job: Job,
    ledger: Ledger,
    folder: RunFolder,
    *,
    first_step: int,
    num_known: int | None,
    standing: Standing,
    about: Callable[[], dict[str, Any]],
    corpus: Reference,
    hang: str | None,
) -> Reporter:
    """Of the first rank.

    Args:
        place, job, ledger, folder: of this worker.
        first_step: updates made when it begins.
        num_known: records that were written up to there; None: nobody knows.
        standing: what the ledger tells.
        about: what a dashboard shows beside the configuration.
        corpus: where it lies.
        hang: of the last group, of which a dashboard may not know.
    """
    config = job.config

    def on_failure(cause: str, kind: str = "tracker") -> None:
        ledger.write("fault", kind=kind, cause=cause, rank=0, fatal=False)

    def on_offline(why: str) -> None:
        log.warning("%s", why)
        on_failure(why)

    display = Display(total_steps=job.total_steps, steps_per_epoch=job.steps_per_epoch, drawn=config.logging.progress)
    display.start(first_step)
    tracker = GuardedTracker(
        lambda: _tracker(job, about=about, first_step=first_step, report=on_offline),
        on_failure=on_failure,
    )
    tracker.refer(lambda: corpus)
    if hang is not None:
        tracker.alert("training goes on after a hang", hang)
    return Reporter(
        metrics=MetricsFile(
            storage.join(job.run, METRICS_NAME),
            last_step=first_step,
            num_known=num_known,
            report=partial(on_failure, kind="disk"),
            lost=folder.is_lost,
        ),
        tracker=tracker,
        gauges=_gauges(place, job, standing, on_failure=on_failure),
        display=display,
        ledger=ledger,
        standing=standing,
        attempt=job.attempt,
        kept=partial(checkpoint_reference, job.run),
    )


def _tracker(
    job: Job, *, about: Callable[[], dict[str, Any]], first_step: int, report: Callable[[str], None]
) -> Tracker:
    """The configured one; runs on one corpus can be compared, and are a group where none is named."""
    config = job.config
    if config.tracking.kind == "none":
        return NoTracker()
    group = last_name(str(config.data))
    shown = masked_tree(config.model_dump(mode="json") | about())
    before = [each for each in read_records(storage.join(job.run, METRICS_NAME)) if step_of(each) <= first_step]
    return WandbTracker(config.tracking, run=job.run, config=shown, group=group, before=before, report=report)


def _gauges(place: Place, job: Job, standing: Standing, *, on_failure: Callable[[str], None]) -> Gauges:
    """Prometheus gets numbers by a file, by the cluster's own way, both or none."""
    folder = job.config.tracking.prometheus_folder
    sinks: list[Sink] = [] if place.gauges is None else [place.gauges]
    labels = {"run": last_name(job.run)}
    if sinks or folder is not None:
        labels["run_id"] = tracking_id(job.run)
    if folder is not None:
        sinks.append(TextFile(folder, identity=labels["run_id"]))
    return Gauges(
        sinks,
        labels=labels,
        total_steps=job.total_steps,
        attempt=job.attempt,
        standing=standing,
        on_failure=on_failure,
    )

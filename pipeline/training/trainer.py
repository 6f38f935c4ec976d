"""One training run, from a prepared corpus to a checkpoint.

In: the configuration. Out: a run folder with `config.yaml`, `metrics.jsonl` and checkpoints. The same call again
resumes. Refuses a corpus that does not verify, a checkpoint that is damaged or of another run.
"""

import fcntl
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from lightning.pytorch import Trainer

from pipeline import storage
from pipeline.config import Config, ModelConfig, flat
from pipeline.corpus.lanes import LanePlan, rank_lanes
from pipeline.corpus.manifest import Manifest, read_manifest, verify_corpus
from pipeline.corpus.tokens import TokenSequence
from pipeline.errors import ConfigError, CorpusError
from pipeline.model.language_model import LanguageModel
from pipeline.scoring.perplexity import score_tokens
from pipeline.training.checkpoint import (
    Checkpointer,
    WholeFileIO,
    check_identity,
    checkpoint_path,
    committed_steps,
    load_checkpoint,
    own_part,
    remove_uncommitted,
)
from pipeline.training.data import StepLoader, read_batches
from pipeline.training.module import LanguageModelModule
from pipeline.training.monitor import (
    METRICS_NAME,
    Display,
    GuardedTracker,
    MetricsFile,
    Monitor,
    NoTracker,
    Tracker,
    WandbTracker,
)

log = logging.getLogger(__name__)

CONFIG_NAME = "config.yaml"
LOCK_NAME = ".lock"


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


def train(config: Config) -> Outcome:
    """Trains until the configured end, from the newest checkpoint if there is one.

    Raises:
        ConfigError: data or run is missing, the device is not there, or the run folder holds another run.
        CorpusError: the corpus is missing, damaged, or has no text to train on.
        CheckpointError: the newest checkpoint is damaged.
    """
    config = _with_places(config)
    assert config.data is not None and config.run is not None
    manifest = read_manifest(config.data)
    if "train" not in manifest.splits:
        raise CorpusError(f"data={config.data} has no split train, only {', '.join(manifest.splits)}; prepare one")
    device = choose_device(config.accelerator)
    if config.optim.schedule.kind == "plateau" and "valid" not in manifest.splits:
        raise ConfigError(
            f"optim.schedule.kind=plateau waits for validations and data={config.data} has no split valid;"
            " prepare one or use optim.schedule.kind=cosine"
        )
    settle_numerics()
    plan = LanePlan(
        num_targets=manifest.splits["train"].num_tokens,
        num_lanes=config.stream.num_lanes,
        bptt=config.stream.bptt,
    )
    total_steps = _total_steps(config, plan)
    identity = run_identity(config, manifest, total_steps=total_steps)
    model = build_model(config.model, vocab_size=manifest.vocab_size)
    first_step = _step_at_hand(config.run, identity)
    if first_step >= total_steps:
        return Outcome(run=config.run, step=first_step, first_step=first_step)
    digests = config.stream.verify == "digest"
    verify_corpus(config.data, manifest, digests=digests, num_threads=os.cpu_count() or 1)
    with _held(config.run):
        _train_from(first_step, model, config, manifest, plan=plan, device=device, identity=identity)
    return Outcome(run=config.run, step=total_steps, first_step=first_step)


def _train_from(
    first_step: int,
    model: LanguageModel,
    config: Config,
    manifest: Manifest,
    *,
    plan: LanePlan,
    device: str,
    identity: dict[str, str],
) -> None:
    """The part that writes to the run folder."""
    assert config.run is not None
    remove_uncommitted(config.run)
    _write_config(config)
    model.draw_weights(seed=config.stream.seed, init_scale=config.model.init_scale)
    module = LanguageModelModule(
        model,
        plan=plan,
        optim=config.optim,
        total_steps=_total_steps(config, plan),
        validate_every=config.checkpoint.validate_every_steps or plan.num_windows,
        carry=config.stream.state == "carry",
        identity=identity,
    )
    _fit(module, config, manifest, device=device, first_step=first_step)


@contextmanager
def _held(run: str) -> Iterator[None]:
    """Keeps a run folder to this process.

    Raises:
        ConfigError: another process trains there.
    """
    storage.make_folder(run)
    with Path(run, LOCK_NAME).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                f"run={run} is being trained by another process; wait for it or use another run=FOLDER"
            ) from error
        yield


def build_model(model: ModelConfig, *, vocab_size: int) -> LanguageModel:
    """The model that the section describes; its weights are not drawn yet."""
    return LanguageModel(
        vocab_size=vocab_size,
        embedding_size=model.embedding_size,
        hidden_size=model.hidden_size,
        num_layers=model.num_layers,
        projection_size=model.projection_size,
        dropout=model.dropout,
        tied=model.tied,
        cutoffs=model.softmax.cutoffs if model.softmax.kind == "adaptive" else (),
        div_value=model.softmax.div_value,
    )


def open_split(data: str, manifest: Manifest, split: str) -> TokenSequence:
    """The tokens of a split.

    Raises:
        CorpusError: the corpus has no such split.
    """
    if split not in manifest.splits:
        raise CorpusError(f"split={split} is not in data={data}; use one of {', '.join(manifest.splits)}")
    return TokenSequence(
        data,
        shards=manifest.splits[split].shards,
        vocabulary_fingerprint=manifest.vocabulary_fingerprint,
        vocab_size=manifest.vocab_size,
    )


def settle_numerics() -> None:
    """Makes fp32 mean fp32, and small numbers no slower than others; for the process, before its first tensor work."""
    torch.backends.cudnn.allow_tf32 = False  # torch runs cuDNN's LSTM in TF32 unless told otherwise
    torch.set_flush_denormal(True)  # a CPU takes some ten times longer for numbers that are next to zero


def choose_device(accelerator: str) -> str:
    """`cuda` or `cpu`; `auto` takes a CUDA device if there is one.

    Raises:
        ConfigError: CUDA was asked for and is not there.
    """
    if accelerator == "cuda" and not torch.cuda.is_available():
        raise ConfigError("accelerator=cuda finds no CUDA device; use accelerator=auto or accelerator=cpu")
    return "cuda" if accelerator != "cpu" and torch.cuda.is_available() else "cpu"


def run_identity(config: Config, manifest: Manifest, *, total_steps: int) -> dict[str, str]:
    """What must be equal when a run is resumed, by dotted key: what it computes, not where, how long or how watched."""
    values = flat(config)
    names = [name for name in values if name.startswith(("model.", "optim."))]
    names += ["precision", "stream.num_lanes", "stream.bptt", "stream.seed", "stream.state"]
    if config.optim.schedule.kind == "plateau":
        names.append("checkpoint.validate_every_steps")
    identity = {name: json.dumps(values[name]) for name in names}
    identity |= {"corpus": manifest.fingerprint, "vocabulary": manifest.vocabulary_fingerprint}
    if config.optim.schedule.kind == "cosine":
        identity["total steps (optim.schedule.kind=cosine)"] = str(total_steps)
    return identity


def _with_places(config: Config) -> Config:
    """The configuration with its folders given, and absolute where they are local."""
    for name, value in (("data", config.data), ("run", config.run)):
        if value is None:
            raise ConfigError(f"{name}=null is not given; use {name}=FOLDER")
    assert config.data is not None and config.run is not None
    if not storage.is_local(config.run):
        raise ConfigError(f"run={config.run} is not a local folder; use one, and copy it when the run has ended")
    return config.model_copy(
        update={place: storage.absolute(value) for place, value in (("data", config.data), ("run", config.run))}
    )


def _total_steps(config: Config, plan: LanePlan) -> int:
    by_epochs = config.max_epochs * plan.num_windows if config.max_epochs is not None else None
    return min(limit for limit in (by_epochs, config.max_steps) if limit is not None)


def _step_at_hand(run: str, identity: dict[str, str]) -> int:
    """The step of the newest checkpoint of the run, 0 if there is none."""
    steps = committed_steps(run)
    if not steps:
        return 0
    path = checkpoint_path(run, steps[-1])
    check_identity(own_part(load_checkpoint(path))["identity"], identity, path=path)
    return steps[-1]


def _write_config(config: Config) -> None:
    assert config.run is not None
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    storage.publish_bytes(storage.join(config.run, CONFIG_NAME), text.encode())


def _fit(module: LanguageModelModule, config: Config, manifest: Manifest, *, device: str, first_step: int) -> None:
    """Hands the module to Lightning, with what stands around it."""
    assert config.data is not None and config.run is not None
    tokens = open_split(config.data, manifest, "train")
    valid = open_split(config.data, manifest, "valid") if "valid" in manifest.splits else None
    lanes = rank_lanes(module.plan.num_lanes, world_size=1, rank=0)
    metrics = MetricsFile(storage.join(config.run, METRICS_NAME), last_step=first_step)
    tracker = GuardedTracker(lambda: _tracker(config))
    display = Display(
        total_steps=module.total_steps, steps_per_epoch=module.plan.num_windows, drawn=config.logging.progress
    )
    monitor = Monitor(
        metrics=metrics,
        tracker=tracker,
        display=display,
        every_steps=config.logging.every_steps,
        validate=None if valid is None else lambda: score_tokens(module.model, valid),
    )
    trainer = Trainer(
        accelerator=device,
        devices=1,
        precision="bf16-mixed" if config.precision == "bf16" else "32-true",
        max_epochs=-1,
        max_steps=module.total_steps,
        callbacks=[monitor, Checkpointer(config.run, config.checkpoint)],
        plugins=[WholeFileIO()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        limit_val_batches=0,
        default_root_dir=config.run,
    )
    loader = StepLoader(
        lambda start: read_batches(
            tokens,
            module.plan,
            start=start,
            stop=module.total_steps,
            lanes=lanes,
            seed=config.stream.seed,
            cutoffs=module.model.softmax.cutoffs,
            num_sites=module.model.num_sites,
        ),
        current_step=lambda: trainer.global_step,
        total_steps=module.total_steps,
    )
    try:
        resumed = checkpoint_path(config.run, first_step) if first_step else None
        trainer.fit(module, train_dataloaders=loader, ckpt_path=resumed, weights_only=True)
    except SystemExit as error:  # Lightning 2.6 takes Ctrl-C for a wish to exit with 1
        raise KeyboardInterrupt from error
    finally:
        display.stop()
        metrics.close()
        tracker.finish()


def _tracker(config: Config) -> Tracker:
    assert config.run is not None
    if config.tracking.kind == "none":
        return NoTracker()
    return WandbTracker(config.tracking, run=config.run, config=config.model_dump(mode="json"))

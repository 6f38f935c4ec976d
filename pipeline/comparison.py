"""Several experiments on one corpus, side by side: the ladder.

In: a `CompareConfig`. Out: a run for each experiment, trained to its end, and what each scores on a split, by one
protocol, beside what it took. Refuses whatever `train` or `evaluate` would refuse of any of them, before the first is
trained; one that fails later is named, and the others go on.
"""

import logging
import math
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pipeline import __version__, storage
from pipeline.config import CompareConfig, Config, EvaluateConfig, NgramConfig, given, load
from pipeline.corpus.manifest import Manifest, read_manifest, verify_corpus
from pipeline.errors import CorpusError, PipelineError, Stopped
from pipeline.ngram_run import plan_ngrams
from pipeline.run.account import Category, account
from pipeline.run.checkpoint import Mark, committed_steps, read_mark
from pipeline.run.ledger import read_events
from pipeline.run.scores import KeptScore, Scored, keep_score, kept_score
from pipeline.run.stop import SIGNALS, USER
from pipeline.runner import Plan, plan_run
from pipeline.training.origin import choose_step

if TYPE_CHECKING:
    from pipeline.evaluation import Evaluation
    from pipeline.model.language_model import LanguageModel
    from pipeline.ngram.model import NgramModel
    from pipeline.scoring.perplexity import Score

log = logging.getLogger(__name__)

VALID = "valid"
Evaluate = Callable[[EvaluateConfig], "Evaluation"]


@dataclass(frozen=True, kw_only=True)
class Rung:
    """A run that an experiment becomes.

    Attributes:
        name: of the experiment.
        arguments: of `train`.
        plan: what `train` would do.
    """

    name: str
    arguments: tuple[str, ...]
    plan: Plan

    @property
    def run(self) -> str:
        """Its folder."""
        return self.plan.job.run

    @property
    def is_trained(self) -> bool:
        """Whether a checkpoint of its end is committed."""
        return any(step >= self.plan.job.total_steps for step in committed_steps(self.run))


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a run scores, and what it took.

    Attributes:
        step, checkpoint: what was scored: the best by validation, and its digest.
        score, protocol: on the split, and how it was scored.
        valid: perplexity of the validation split; None: the corpus has none.
        num_parameters: numbers that the model holds.
        num_words: of the training text, read by all updates, those after the best too.
        epochs: these words by those of the training text.
        seconds: of all attempts, by what they were spent on; those that the run was down are none of it.
    """

    step: int
    checkpoint: str
    score: "Score"
    protocol: str
    valid: float | None
    num_parameters: int
    num_words: int
    epochs: float
    seconds: dict[Category, float]

    @property
    def all_seconds(self) -> float:
        """Starts, updates, validations, checkpoints and what was made again."""
        return math.fsum(self.seconds.values())

    @property
    def words_per_second(self) -> float | None:
        """While it made updates; None: it made none."""
        return self.num_words / self.seconds["productive"] if self.seconds["productive"] else None


@dataclass(frozen=True, kw_only=True)
class Row:
    """An experiment, and what came of it; `failure` says why there is nothing."""

    experiment: str
    run: str
    measured: Measured | None
    failure: str | None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The ladder.

    Attributes:
        data, manifest: the corpus.
        split: that was scored.
        runs: the folder of the runs.
        unigram: of the baseline that knows the words' shares of the training text alone; None: nothing was scored.
        rows: in the order of the experiments.
    """

    data: str
    manifest: Manifest
    split: str
    runs: str
    unigram: "Score | None"
    rows: tuple[Row, ...]

    @property
    def failures(self) -> list[Row]:
        """The rows without a score."""
        return [row for row in self.rows if row.failure is not None]


def compare(config: CompareConfig, *, train: Callable[[Rung], int], evaluate: Evaluate) -> Comparison:
    """Trains what is not trained, scores what is not scored.

    Args:
        config: the experiments and the corpus.
        train: has `python -m jobs train` train a rung; returns its exit code, below 0 for a signal that killed it.
        evaluate: scores a split.

    Raises:
        ConfigError: an experiment is none, or a run of it cannot be.
        CorpusError: the corpus is missing, damaged or lacks a split.
        Stopped: someone asked for it; all is saved.
    """
    data = storage.absolute(given("data", config.data))
    runs = storage.absolute(config.runs or f"{data.rstrip('/')}-ladder")
    rungs = plan_rungs(config, data=data, runs=runs)
    manifest = read_manifest(data)
    if config.split not in manifest.splits:
        raise CorpusError(f"split={config.split} is not in data={data}; use one of {', '.join(manifest.splits)}")
    verify_corpus(data, manifest, digests=storage.is_local(data))  # others when they are fetched
    failures = train_rungs(rungs, train=train)
    rows, unigram = [], None
    for rung in rungs:
        row = Row(experiment=rung.name, run=rung.run, measured=None, failure=failures.get(rung.name))
        if row.failure is None:
            try:
                measured, unigram = _measured(rung, manifest, data=data, split=config.split, evaluate=evaluate)
                row = replace(row, measured=measured)
            except PipelineError as error:
                row = replace(row, failure=str(error))
        rows.append(row)
    return Comparison(data=data, manifest=manifest, split=config.split, runs=runs, unigram=unigram, rows=tuple(rows))


def plan_rungs(config: CompareConfig, *, data: str, runs: str) -> list[Rung]:
    """What each experiment becomes; all that is wrong with any of them is told at once. Writes nothing.

    Args:
        config: the experiments.
        data, runs: absolute where they are local.

    Raises:
        PipelineError: `train` would refuse one of them.
    """
    rungs: list[Rung] = []
    wrong: dict[str, tuple[PipelineError, list[str]]] = {}
    for name in config.experiments:
        run = storage.join(runs, name)
        arguments = (f"experiment={name}", f"data={data}", f"run={run}", *config.overrides)
        try:
            found = load(Config, arguments)
            counted = isinstance(found.model, NgramConfig)
            plan = plan_ngrams(found)[0] if counted else plan_run(found, os.environ, launches=False)
            rungs.append(Rung(name=name, arguments=arguments, plan=plan))
        except PipelineError as error:
            wrong.setdefault(str(error), (error, []))[1].append(name)
    if wrong:
        (first, _), *_ = wrong.values()
        raise type(first)("; ".join(_of(names, why, config.experiments) for why, (_, names) in wrong.items()))
    return rungs


def _of(names: Sequence[str], why: str, experiments: Sequence[str]) -> str:
    """What is wrong, and with which of the experiments if it is not so with all."""
    return why if len(names) == len(experiments) else f"{', '.join(names)}: {why}"


def train_rungs(rungs: Sequence[Rung], *, train: Callable[[Rung], int]) -> dict[str, str]:
    """Trains those that are not trained to their end, one after the other; gives why some failed, by name.

    Raises:
        Stopped: one was asked to stop; the others wait for the next call.
    """
    failures = {}
    for place, rung in enumerate(rungs, start=1):
        where = f"{place} of {len(rungs)}: {rung.name}"
        if rung.is_trained:
            log.info("%s is trained", where)
            continue
        log.info("%s is trained now, in %s", where, rung.run)
        code = train(rung)
        if code == 0 and rung.is_trained:
            continue
        cause = {0: USER} | {128 + signal.Signals[name]: name for name in SIGNALS}
        if code in cause:
            raise Stopped(f"{where} is not trained to its end; the same command goes on", cause=cause[code])
        failures[rung.name] = _failure(rung, code)
        log.warning("%s failed: %s", where, failures[rung.name])
    return failures


def _failure(rung: Rung, code: int) -> str:
    """Why a training failed: as its ledger tells, if it came so far."""
    events = read_events(rung.run)
    if code < 0:
        return f"train was killed by {signal.Signals(-code).name}"
    if events and events[-1]["event"] == "stop" and events[-1]["attempt"] >= rung.plan.job.attempt:
        return str(events[-1]["cause"])
    return f"train ended with exit code {code} and says why above"


def _measured(rung: Rung, manifest: Manifest, *, data: str, split: str, evaluate: Evaluate) -> "tuple[Measured, Score]":
    """What a run that is trained scores and took, and the score of the unigram baseline."""
    from pipeline.scoring.perplexity import Score

    step, _ = choose_step(rung.run, "best")
    chosen, last = read_mark(rung.run, step), read_mark(rung.run, committed_steps(rung.run)[-1])

    def scored(split: str) -> KeptScore:
        return _scored(rung, chosen, manifest, data=data, split=split, evaluate=evaluate)

    found = scored(split)
    score, unigram = (
        Score(total_nats=nats, num_targets=found.num_targets) for nats in (found.total_nats, found.unigram_nats)
    )
    valid = score if split == VALID else None
    if (nats := chosen.validations.get(step)) is not None:  # a validation has the same protocol
        valid = Score(total_nats=nats, num_targets=1)
    elif valid is None and VALID in manifest.splits:
        other = scored(VALID)
        valid = Score(total_nats=other.total_nats, num_targets=other.num_targets)
    num_train = manifest.splits["train"].num_tokens
    num_words = last.tokens_seen if last.step else num_train  # what makes no updates reads each word once
    seconds = account(read_events(rung.run), now=time.time()).seconds
    return Measured(
        step=step,
        checkpoint=chosen.sha256,
        score=score,
        protocol=found.protocol,
        valid=None if valid is None else valid.perplexity,
        num_parameters=found.num_parameters,
        num_words=num_words,
        epochs=num_words / num_train,
        seconds={category: spent for category, spent in seconds.items() if category != "down"},
    ), unigram


def _scored(rung: Rung, chosen: Mark, manifest: Manifest, *, data: str, split: str, evaluate: Evaluate) -> KeptScore:
    """The score of a checkpoint on a split, which is kept in the run folder."""
    of = Scored(
        checkpoint=chosen.sha256,
        corpus=manifest.fingerprint,
        split=split,
        version=__version__,
    )
    if (kept := kept_score(rung.run, of)) is not None:
        return kept
    log.info("%s is scored on %s", rung.name, split)
    wanted = {
        "run": rung.run,
        "data": data,
        "split": split,
        "checkpoint": chosen.step or "best",  # at step 0 there is no other
        "accelerator": rung.plan.job.config.accelerator,
    }
    found = evaluate(load(EvaluateConfig, [f"{key}={value}" for key, value in wanted.items()], name="evaluate"))
    kept = KeptScore(
        of=of,
        protocol=found.protocol,
        total_nats=found.score.total_nats,
        unigram_nats=found.unigram.total_nats,
        num_targets=found.score.num_targets,
        num_parameters=num_parameters(found.trained.model),
    )
    if math.isfinite(kept.total_nats):
        keep_score(rung.run, kept)
    return kept


def num_parameters(model: "LanguageModel | NgramModel") -> int:
    """How many numbers a model holds: those that are trained, or, where none is, those that it scores by."""
    if num_trained := sum(each.numel() for each in model.parameters()):
        return num_trained
    return sum(each.numel() for each in model.buffers() if each.is_floating_point())

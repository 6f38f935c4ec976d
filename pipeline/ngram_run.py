"""One run of an n-gram model: counted in one pass over the training text, or taken from an ARPA file.

In: the configuration. Out: a run folder with `config.yaml`, `events.jsonl` and one checkpoint, that of step 0. The same
call again has nothing to do; after a kill it begins again and writes the same bytes, however many tasks there are at a
time. Refuses a corpus that does not verify, a checkpoint of another run, and a run in an object store that the machines
of a cluster are to work on together.
"""

import json
import logging
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from shutil import rmtree
from typing import TYPE_CHECKING

from pipeline import storage
from pipeline.cluster.tasks import task_runner
from pipeline.config import Config, NgramConfig, flat, given
from pipeline.corpus.manifest import VOCABULARY_NAME, Manifest, check_fingerprint, read_manifest, verify_corpus
from pipeline.corpus.phases import NoProgress, Outcome, Phases, Progress
from pipeline.corpus.vocabulary import read_vocabulary
from pipeline.errors import ConfigError, CorpusError
from pipeline.ngram.arpa import read_arpa, write_arpa
from pipeline.ngram.counting import Text, count_text
from pipeline.ngram.smoothing import smooth
from pipeline.run.checkpoint import (
    OWN_KEY,
    WEIGHTS_PREFIX,
    check_identity,
    checkpoint_path,
    committed_steps,
    newest_mark,
    save_checkpoint,
)
from pipeline.run.folder import check_run_folder, read_config
from pipeline.run.job import Job
from pipeline.run.ledger import Ledger, next_attempt, read_events, saved_steps
from pipeline.runner import Conclusion, Plan, check_splits, opened, with_places

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

log = logging.getLogger(__name__)

STEP = 0  # of the only checkpoint: nothing is updated
LIFE_SECONDS = 10.0  # between signs of life
WORK = "counting"  # folder of a run that is being counted


class _Told:
    """Passes reports on, and leaves a sign of life in the ledger now and then."""

    def __init__(self, progress: Progress, ledger: Ledger) -> None:
        self._progress, self._ledger, self._due = progress, ledger, 0.0

    def phase(self, name: str, *, num_tasks: int, num_bytes: int) -> None:
        """A phase begins."""
        self._progress.phase(name, num_tasks=num_tasks, num_bytes=num_bytes)

    def advance(self, *, num_bytes: int, num_words: int, outcome: Outcome, peak_bytes: int) -> None:
        """A task has ended."""
        self._progress.advance(num_bytes=num_bytes, num_words=num_words, outcome=outcome, peak_bytes=peak_bytes)
        if time.monotonic() >= self._due:
            self._ledger.write("progress", step=STEP)
            self._due = time.monotonic() + LIFE_SECONDS

    def note(self, text: str) -> None:
        """One line about what was found."""
        self._progress.note(text)


def plan_ngrams(config: Config) -> tuple[Plan, dict[str, str]]:
    """What is to be done, and the identity of the run; refuses what cannot be, and writes nothing.

    Args:
        config: of the run, with a model of n-grams.

    Raises:
        ConfigError, CorpusError, CheckpointError: see `train_ngrams`.
    """
    began = time.time()
    config = with_places(config, needed=("data", "run"))
    data, run, section = str(config.data), str(config.run), config.model
    assert isinstance(section, NgramConfig)
    if section.arpa is not None:
        section = section.model_copy(update={"arpa": storage.absolute(section.arpa)})
        config = config.model_copy(update={"model": section})
    if config.init_from is not None:
        raise ConfigError(
            f"init_from={config.init_from} gives weights to begin with, and n-grams have none; leave it out"
        )
    manifest = read_manifest(data)
    check_run_folder(run, data=data)
    check_splits(config, manifest)
    if manifest.splits["train"].num_tokens == 0:
        raise CorpusError(f"data={data} has 0 tokens in train; at least 1 is needed to count")
    if config.cluster.kind == "ray" and not storage.is_local(run):
        raise ConfigError(
            f"run={run} is in an object store, and the tasks of cluster=ray hand on what they count in the run folder;"
            " use a folder that all machines see, or cluster=local"
        )
    events = read_events(run)
    mark = newest_mark(run, finite=False, saved=saved_steps(events))
    identity = ngram_identity(config, manifest)
    if mark is not None:
        check_identity(mark.identity, identity, path=checkpoint_path(run, mark.step))
    job = Job(
        config=config, total_steps=STEP, steps_per_epoch=0, attempt=next_attempt(events), corpus=manifest.fingerprint
    )
    return Plan(job=job, manifest=manifest, rank=None, first_step=STEP, began=began), identity


def train_ngrams(config: Config, *, progress: Progress | None = None) -> Conclusion:
    """Counts the training text, or reads the ARPA file, and leaves a checkpoint; nothing if there is one already.

    Args:
        config: of the run, with a model of n-grams.
        progress: is told of phases and tasks.

    Raises:
        ConfigError: data or run is missing, the run folder holds another run, or the ARPA file does not fit.
        CorpusError: the corpus is missing, damaged, or has no text to count.
        CheckpointError: there is a checkpoint, and it is not whole or has lost its mark.
        ClusterError: a task's worker died again and again.
    """
    plan, identity = plan_ngrams(config)
    job, manifest, section = plan.job, plan.manifest, plan.job.config.model
    assert isinstance(section, NgramConfig)
    config, run = job.config, job.run
    if STEP in committed_steps(run):
        return _concluded(
            run, f"is finished at step {STEP}; n-grams are counted in one pass, and there is no more to do"
        )
    check_fingerprint(str(config.data), manifest)
    verify_corpus(str(config.data), manifest.only("train"), digests=config.stream.verify == "digest")
    with opened(plan), _work_folder(run) as work:
        ledger = Ledger(run, attempt=job.attempt)
        ledger.write("training", step=STEP)
        told = _Told(progress or NoProgress(), ledger)
        weights = _weights(config, section, manifest, work=work, progress=told)
        num_ngrams = sum(len(each) for name, each in weights.items() if name.startswith("log_probabilities_"))
        saving = time.time()
        size_bytes = save_checkpoint(_checkpoint(weights, identity, manifest), checkpoint_path(run, STEP))
        seconds = time.time() - saving
        ledger.write("checkpoint", step=STEP, seconds=seconds, size_bytes=size_bytes, reason="end")
        ledger.write("end", step=STEP)
    return _concluded(run, f"holds {num_ngrams:,} n-grams of up to {section.order} words, saved as step {STEP}")


def _concluded(run: str, what: str) -> Conclusion:
    return Conclusion(run=run, step=STEP, first_step=STEP, told=f"{run} {what}")


def export_arpa(run: str, to: str, *, data: str | None = None) -> list[int]:
    """Writes the model of a run as an ARPA file.

    Args:
        run: the run folder.
        to: the file.
        data: a prepared corpus with the words; None: that of the run.

    Returns:
        n-grams of each order.

    Raises:
        ConfigError: the folder holds no run of n-grams, or the file cannot be written.
        CorpusError: there is no corpus, or it has other words.
        CheckpointError: there is no whole checkpoint.
    """
    section = read_config(run).model
    if not isinstance(section, NgramConfig):
        raise ConfigError(f"run={run} has model.kind={section.kind}, and ARPA holds n-grams; give a run of model=ngram")
    from pipeline.training.restore import load_trained

    trained = load_trained(run, "last")
    folder = given("data", data or trained.config.data)
    vocabulary = read_vocabulary(storage.join(folder, VOCABULARY_NAME))
    if vocabulary.fingerprint != trained.vocabulary_fingerprint:
        raise CorpusError(
            f"data={folder} has vocabulary {vocabulary.fingerprint[:12]}, the run was counted with"
            f" {trained.vocabulary_fingerprint[:12]}; give data=FOLDER of the run's corpus"
        )
    weights = {name: tensor.numpy() for name, tensor in trained.model.state_dict().items()}
    words = vocabulary.words.to_pylist()
    return write_arpa(to, weights, words, order=section.order, resets=section.resets)


def ngram_identity(config: Config, manifest: Manifest) -> dict[str, str]:
    """What must be equal when the command is called again, by dotted key.

    Args:
        config: of the run, its places absolute.
        manifest: of its corpus.

    Raises:
        ConfigError: there is no such ARPA file.
    """
    values = {name: value for name, value in flat(config).items() if name.startswith("model.")}
    identity = {name: json.dumps(value) for name, value in values.items()}
    assert isinstance(config.model, NgramConfig)
    if config.model.arpa is not None:
        try:
            identity["model.arpa"] = f"sha256 {storage.sha256(config.model.arpa)}"  # wherever the file lies
        except OSError as error:
            raise ConfigError(
                f"model.arpa={config.model.arpa} cannot be read ({error.strerror}); mend the path"
            ) from error
    return identity | {"corpus": manifest.fingerprint, "vocabulary": manifest.vocabulary_fingerprint}


@contextmanager
def _work_folder(run: str) -> Iterator[str]:
    """An empty folder for what tasks hand on, in the run folder if that is local; it is removed in the end."""
    if not storage.is_local(run):
        with tempfile.TemporaryDirectory() as folder:
            yield folder
        return
    work = storage.join(run, WORK)
    rmtree(work, ignore_errors=True)  # of a call that was killed
    storage.make_folder(work)
    try:
        yield work
    finally:
        rmtree(work, ignore_errors=True)


def _weights(
    config: Config, section: NgramConfig, manifest: Manifest, *, work: str, progress: Progress
) -> "Mapping[str, NDArray[np.generic]]":
    """Of the model, by name."""
    if section.arpa is not None:
        vocabulary = read_vocabulary(storage.join(str(config.data), VOCABULARY_NAME))
        return read_arpa(section.arpa, vocabulary, order=section.order, resets=section.resets)
    text = Text(
        data=str(config.data),
        shards=manifest.splits["train"].shards,
        vocabulary_fingerprint=manifest.vocabulary_fingerprint,
        vocab_size=manifest.vocab_size,
        order=section.order,
        resets=section.resets,
        work=work,
    )
    with task_runner(config.cluster) as run_tasks:
        phases = Phases(run_tasks, progress, config.extensions)
        counted, adjusted_V = count_text(text, phases)
        weights, discounts = smooth(counted, adjusted_V, phases, zeroton=section.zeroton)
    fallen = [order for order, each in enumerate(discounts, 1) if each.is_fallback and counted.size(order)]
    if fallen:
        log.warning(
            "the text is too small to estimate the discounts of order %s; 0.5, 1 and 1.5 are taken (model.order=%d)",
            ", ".join(map(str, fallen)),
            section.order,
        )
    return weights


def _checkpoint(
    weights: "Mapping[str, NDArray[np.generic]]", identity: Mapping[str, str], manifest: Manifest
) -> dict[str, object]:
    """As `save_checkpoint` takes it; what is memory-mapped is not read before it is written."""
    from pipeline.ngram.model import tensors_of

    tensors = tensors_of(weights)
    return {
        "state_dict": {f"{WEIGHTS_PREFIX}{name}": tensor for name, tensor in tensors.items()},
        "global_step": STEP,
        OWN_KEY: {
            "identity": dict(identity),
            "validations": {},
            "tokens_seen": manifest.splits["train"].num_tokens,
        },
    }

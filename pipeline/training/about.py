"""What a run is made of and where its files lie, for a dashboard.

In: the model, the corpus, the run folder. Out: plain values and references. It asks git for the version of the code,
and reads marks of checkpoints; no other file's content is read.
"""

from contextlib import suppress
from dataclasses import asdict
from typing import Any

from pipeline import storage
from pipeline.corpus.manifest import MANIFEST_NAME, VOCABULARY_NAME, Manifest
from pipeline.errors import CheckpointError
from pipeline.masking import last_name
from pipeline.model.language_model import LanguageModel
from pipeline.provenance import code_version
from pipeline.run.checkpoint import best_step, checkpoint_path, committed_steps, read_mark
from pipeline.run.tracking import tracking_id
from pipeline.training.dashboards import Reference
from pipeline.training.footprint import count_parameters


def about_run(model: LanguageModel, manifest: Manifest) -> dict[str, Any]:
    """What a run's page shows beside its configuration, under keys that no section of it has."""
    return {
        "code": asdict(code_version()),
        "parameters": count_parameters(model).model_dump(),
        "corpus_fingerprint": manifest.fingerprint,
        "oov_rate": {name: split.oov_rate for name, split in manifest.splits.items()},
    }


def corpus_reference(data: str, manifest: Manifest) -> Reference:
    """The corpus that a run reads."""
    shards = [shard for split in manifest.splits.values() for shard in split.shards]
    names = [MANIFEST_NAME, VOCABULARY_NAME, *(shard.name for shard in shards)]
    splits = {
        name: {
            "num_tokens": split.num_tokens,
            "oov_rate": split.oov_rate,
            "sha256": [shard.sha256 for shard in split.shards],  # in the order of their names
        }
        for name, split in manifest.splits.items()
    }
    return Reference(
        kind="corpus",
        name=f"{last_name(data)}-{manifest.fingerprint[:8]}",
        files={name: storage.join(data, name) for name in names},
        metadata={
            "fingerprint": manifest.fingerprint,
            "vocabulary_fingerprint": manifest.vocabulary_fingerprint,
            "vocabulary_sha256": manifest.vocabulary_sha256,
            "vocab_size": manifest.vocab_size,
            "splits": splits,
        },
    )


def checkpoint_reference(run: str) -> Reference | None:
    """The checkpoints that a run has kept, by their marks; None if it has none."""
    marks = {}
    for step in committed_steps(run):
        with suppress(CheckpointError):  # whoever resumes from it is told
            marks[step] = read_mark(run, step)
    if not marks:
        return None
    last = marks[max(marks)]
    best = best_step(last.validations, sorted(marks))
    return Reference(
        kind="model",
        name=f"{last_name(run)}-{tracking_id(run)}",
        files={f"step-{step}.ckpt": checkpoint_path(run, step) for step in marks},
        metadata={
            "sha256": {f"step-{step}.ckpt": mark.sha256 for step, mark in marks.items()},
            "last_step": last.step,
            "best_step": best,
            "tokens_seen": last.tokens_seen,
            "valid_nats_per_token": last.validations.get(last.step),
        },
        aliases=(f"step-{last.step}",),
    )

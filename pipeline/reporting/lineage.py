"""From text to checkpoint: what each part of a run was made of, by digest, and what cannot be reached any more.

In: a run as it was read. Out: names, each with its lines of plain text.
"""

import hashlib
import json
from collections.abc import Iterator

from pipeline.corpus.manifest import Manifest
from pipeline.reporting.markup import counted, number
from pipeline.reporting.reported import ReportedRun, Saved
from pipeline.run.checkpoint import Mark, checkpoint_path

MOST_NAMED = 5  # ranges of text in a line
SOURCES = ("dataset", "train", "valid", "test")  # keys of the configuration that name text

Lines = tuple[str, list[str]]


def lineage(run: ReportedRun) -> Iterator[Lines]:
    """The way from text to the best checkpoint of a run, one name after the other."""
    data = run.settings.get("data", "not known")
    if isinstance(run.manifest, Manifest):
        yield from _corpus(run.manifest, data)
    else:
        yield "text, corpus", [f"{data} cannot be reached: {run.manifest}"]
    yield from _run(run)


def _corpus(manifest: Manifest, data: str) -> Iterator[Lines]:
    named = {key: manifest.configuration.get(key) for key in SOURCES}
    given = [
        f"{key}: {value if isinstance(value, str) else json.dumps(value)}" for key, value in named.items() if value
    ]
    yield "text", given or ["the manifest does not name it"]
    yield "units", [f"{name}: {_units(manifest, name)}" for name in manifest.splits]
    splits = [
        f"{name}: {split.num_tokens:,} tokens in {counted(len(split.shards), 'shard')}, {split.oov_rate:.2%} unknown"
        for name, split in manifest.splits.items()
    ]
    yield "corpus", [data, f"fingerprint {manifest.fingerprint}", *splits, f"prepared by {manifest.tool_version}"]
    yield "vocabulary", [f"{manifest.vocab_size:,} words", f"fingerprint {manifest.vocabulary_fingerprint}"]


def _units(manifest: Manifest, split: str) -> str:
    sources = [shard.source for shard in manifest.splits[split].shards]
    more = f" and {len(sources) - MOST_NAMED:,} more" if len(sources) > MOST_NAMED else ""
    return ", ".join(sources[:MOST_NAMED]) + more


def _run(run: ReportedRun) -> Iterator[Lines]:
    begun_from = run.settings.get("init_from", "null")
    origin = [] if begun_from == "null" else [f"weights of {begun_from}"]
    if not isinstance(run.saved, Saved):
        yield "run", [run.folder, *origin]
        yield "checkpoint", [run.saved or "nothing is saved"]
        return
    yield "run", [run.folder, *origin, *_identity(run, run.saved.last)]
    if run.saved.best is not None:
        yield "best checkpoint", _checkpoint(run, run.saved.best)
    if run.saved.best != run.saved.last:
        yield "last checkpoint", _checkpoint(run, run.saved.last)


def _identity(run: ReportedRun, mark: Mark) -> list[str]:
    """A digest of what the run computes, and whether its corpus is still the one that lies there."""
    digest = hashlib.sha256(json.dumps(mark.identity, sort_keys=True).encode()).hexdigest()
    lines = [f"identity {digest} of {counted(len(mark.identity), 'value')}"]
    if isinstance(run.manifest, Manifest):
        needed = {"corpus": run.manifest.fingerprint, "vocabulary": run.manifest.vocabulary_fingerprint}
        other = [name for name, value in needed.items() if mark.identity.get(name) != value]
        named = " and ".join(f"another {name} ({mark.identity.get(name)})" for name in other)
        lines.append(f"trained on {named}, which is not what lies there now" if other else "trained on this corpus")
    return lines


def _checkpoint(run: ReportedRun, mark: Mark) -> list[str]:
    seen = f"step {mark.step:,}, {mark.tokens_seen:,} tokens seen"
    nats = mark.validations.get(mark.step)
    judged = "not validated" if nats is None else f"validation {number(nats, '.4f')} nats per token"
    size = f", {mark.size_bytes:,} bytes" if mark.size_bytes else ""
    return [checkpoint_path(run.folder, mark.step), f"{seen}, {judged}{size}", f"sha256 {mark.sha256}"]

"""What files of earlier versions mean today: the one table of keys that came later.

In: a configuration, an identity or a manifest as an earlier version wrote it. Out: the same under the names of today,
with each key that came since, at the value that held before there was a choice, and without the keys that went; so an
old run resumes and an old corpus verifies as what they were. Refuses nothing: what is missing and does not stand here
is for the reader to refuse.

Whoever adds a key to `Config`, to the identity of a run or to the manifest adds its row here in the same commit. Rows
are never removed.
"""

import json
from collections.abc import Collection, Mapping
from typing import Any

RECURRENT = "recurrent"  # the only kind of model that there was: the table's keys of the model are its own

# dotted key of `Config` → its value before it was a key; the identity of a run takes its new keys from here too
CONFIGURATION: dict[str, object] = {
    "extensions": [],
    "init_from": None,
    "corpus.null_rows": "refuse",
    "corpus.shard_tokens": None,
    "prepare.keep_ids": True,
    "stream.random_bptt": False,
    "stream.order": "sequential",
    "stream.block_tokens": 65536,
    "stream.cache_gb": 50,
    "stream.cache_folder": None,
    "model.kind": RECURRENT,
    "model.input.kind": "full",
    "model.recurrence.kind": "lstm",
    "optim.averaging": "none",
    "optim.averaging_patience": 5,
    "model.recurrence.last_size": None,
    "model.recurrence.weight_dropout": 0.0,
    "model.recurrence_init_scale": None,
    "model.regularization.locked": False,
    "model.regularization.input_dropout": None,
    "model.regularization.layer_dropout": None,
    "model.regularization.output_dropout": None,
    "model.regularization.embedding_dropout": 0.0,
    "model.regularization.activation": 0.0,
    "model.regularization.temporal": 0.0,
    "tracking.group": None,
    "tracking.tags": [],
    "tracking.prometheus_folder": None,
}

# dotted key of CONFIGURATION → the kind that its section has to be of: in a section of another there is no such key
OF_KIND: dict[str, str] = {
    "model.recurrence.last_size": "lstm",
    "model.recurrence.weight_dropout": "lstm",
}

# former dotted key of `Config` → its name today; the identity that a checkpoint holds keeps the former one
RENAMED: dict[str, str] = {
    "model.hidden_size": "model.recurrence.hidden_size",
    "model.num_layers": "model.recurrence.num_layers",
    "model.projection_size": "model.recurrence.projection_size",
}

# (dotted key of `Config`, a value of it) → keys that stood beside it then and meant nothing
MEANINGLESS: dict[tuple[str, object], tuple[str, ...]] = {
    ("model.softmax.kind", "full"): ("model.softmax.cutoffs", "model.softmax.div_value"),
}

# (dotted key of `Config`, a value of it that is no longer written) → what is written now
CONFIGURATION_VALUES: dict[tuple[str, object], object] = {
    ("tracking.mode", "auto"): None,
    ("corpus.source", "python_docs"): "files",  # the demo's text, which `prepare` made itself
}

# dotted key of a manifest, `*` for each split → its value before it was a key; without `fingerprint`, which is computed
# where it is missing
MANIFEST: dict[str, object] = {
    "vocabulary_sha256": None,
    "splits.*.num_replacement_chars": None,
    "splits.*.num_nul_bytes": None,
    "splits.*.num_null_rows": None,
}

# keys of a manifest that are no longer written
MANIFEST_REMOVED = ("versions",)  # of the packages that the demo's text was made of

SECTIONS = ("prepare", "model.input", "model.regularization")  # of `Config` that came later, by dotted key
CORPUS = "corpus."  # of CONFIGURATION's keys, those that a manifest holds too


def upgraded_configuration(tree: dict[str, Any]) -> dict[str, Any]:
    """The tree of a run's `config.yaml`, with the keys and values that are written today."""
    tree = json.loads(json.dumps(tree))
    model = tree.get("model")
    others = isinstance(model, dict) and model.get("kind", RECURRENT) != RECURRENT
    foreign = ("model.",) if others else ()  # keys of a recurrent model are none of another one
    _add(tree, {section: {} for section in SECTIONS if not section.startswith(foreign)})
    for former, today in RENAMED.items():
        for value in _taken(tree, former):
            *path, last = today.split(".")
            node = tree
            for part in path:
                node = node.setdefault(part, {})
            node[last] = value
    for (key, value), without in MEANINGLESS.items():
        if any(node.get(last) == value for node, last in _places(tree, key.split("."))):
            for each in without:
                _taken(tree, each)
    added = {key: value for key, value in CONFIGURATION.items() if not key.startswith(foreign)}
    return _upgraded(tree, added, CONFIGURATION_VALUES)


def upgraded_identity(identity: Mapping[str, str], *, needed: Collection[str]) -> dict[str, str]:
    """The identity that a checkpoint was stamped with.

    Args:
        identity: value by key, each value as JSON.
        needed: the keys of an identity today; what the checkpoint lacks of them gets its value of before.
    """
    added = {key: json.dumps(value) for key, value in CONFIGURATION.items() if key in needed}
    found = added | {RENAMED.get(key, key): value for key, value in identity.items()}
    for (key, value), without in MEANINGLESS.items():
        if found.get(key) == json.dumps(value):
            found = {each: found[each] for each in found if each not in without}
    return found


def stored_identity(identity: Mapping[str, str]) -> dict[str, str]:
    """An identity of today as checkpoints hold it: under the names that files have had all along."""
    former = {today: key for key, today in RENAMED.items()}
    return {former.get(key, key): value for key, value in identity.items()}


def upgraded_manifest(tree: dict[str, Any]) -> dict[str, Any]:
    """The tree of a `manifest.json` with the keys of today, also those of the configuration that it holds.

    What has all of them comes back equal. Lists of shards are the same and no copies: they may be long.
    """
    found = {key: value for key, value in tree.items() if key not in MANIFEST_REMOVED}
    if isinstance(splits := found.get("splits"), dict):
        found["splits"] = {name: {**split} if isinstance(split, dict) else split for name, split in splits.items()}
    _add(found, MANIFEST)
    if found.get("configuration"):
        keys = {key.removeprefix(CORPUS): value for key, value in CONFIGURATION.items() if key.startswith(CORPUS)}
        found["configuration"] = _upgraded(found["configuration"], keys, {})
    return found


def _upgraded(
    tree: dict[str, Any], added: Mapping[str, object], values: Mapping[tuple[str, object], object]
) -> dict[str, Any]:
    tree = json.loads(json.dumps(tree))
    _add(tree, added)
    for (key, before), value in values.items():
        for node, last in _places(tree, key.split(".")):
            if last in node and node[last] == before:
                node[last] = value
    return tree


def _add(tree: dict[str, Any], added: Mapping[str, object]) -> None:
    """Puts keys that are missing into a tree."""
    for key, value in added.items():
        for node, last in _places(tree, key.split(".")):
            if key not in OF_KIND or node.get("kind") == OF_KIND[key]:
                node.setdefault(last, value)


def _taken(tree: dict[str, Any], key: str) -> list[Any]:
    """The values at a dotted key, which are taken out of the tree."""
    return [node.pop(last) for node, last in _places(tree, key.split(".")) if last in node]


def _places(node: Any, path: list[str]) -> list[tuple[dict[str, Any], str]]:  # noqa: ANN401  (a tree as JSON holds it)
    """Where a dotted key stands or would stand: the section and the key's last part; none if there is no section."""
    first, *rest = path
    if not isinstance(node, dict):
        return []
    if not rest:
        return [(node, first)]
    below = list(node.values()) if first == "*" else [node[first]] if first in node else []
    return [place for each in below for place in _places(each, rest)]

"""From overrides, as they are typed, to a tree: Hydra composes the folder conf/, the schema judges the result."""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast, get_origin

from pipeline.config.judging import Tree, leaves, parts_of, validated
from pipeline.config.schema import KINDS, Section, import_extensions, nearest
from pipeline.config.trees import Config
from pipeline.errors import ConfigError
from pipeline.upgrades import RENAMED


def _find_conf() -> Path:
    """The folder of configuration files: part of the package where that is installed, beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    packaged = package / "conf"
    return packaged if packaged.is_dir() else package.parent / "conf"


CONF = _find_conf()

# a key that is typed → other keys, which get these values then unless they are typed too, whatever conf/ says
IMPLIED: dict[str, dict[str, object]] = {
    "corpus.vocabulary.path": {"corpus.vocabulary.size": None, "corpus.vocabulary.min_count": 1},
}


def load(schema: type[Tree], overrides: Sequence[str], *, name: str = "config") -> Tree:
    """Composes `conf/<name>.yaml` with the overrides and judges the result.

    Args:
        schema: the tree's type.
        overrides: `key=value` as typed; `group=choice` picks a file of conf/. A value for a text field is taken
            verbatim, so paths need no quotes of Hydra's own; `[a,b]` is a list, `null` nothing.
        name: the file of conf/ to start from.

    Raises:
        ConfigError: an unknown key or choice, a wrong type, an impossible value or combination.
    """
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if issubclass(schema, Config):
        _import_typed(overrides)
    known = leaves(schema)
    kinds = [place for place in KINDS if f"{place}.kind" in known]
    texts: dict[str, str] = {}
    others: list[str] = []
    typed: dict[str, str] = {}
    for override in overrides:
        key, value = _checked(schema, override)
        if key in typed:
            raise ConfigError(f"{key} is given twice, as {typed[key]} and as {value}; give it once")
        typed[key] = value
        if str in parts_of(known.get(key)):
            texts[key] = value
        else:
            may_be_new = "++" if key.rpartition(".")[0] in kinds else ""  # the kind's values come after Hydra
            others.append(f"{may_be_new}{key}={value}")
    try:
        with initialize_config_dir(config_dir=str(CONF), version_base=None):
            composed = compose(config_name=name, overrides=others)
        tree = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(" ".join(str(error).split())) from error
    # Hydra's grammar and OmegaConf's `${` and `???` never see a path
    values: dict[str, object] = {
        key: _text(text, may_be_list=tuple in map(get_origin, parts_of(known[key]))) for key, text in texts.items()
    }
    given = [key for key, text in values.items() if text is not None]
    values |= {other: value for key in given for other, value in IMPLIED.get(key, {}).items() if other not in typed}
    for place in kinds:
        above, _, last = place.rpartition(".")
        section = _node(tree, above).get(last, {})
        if "kind" in section:  # else the section above it is of a kind that has none
            kind = values.get(f"{place}.kind", section["kind"])
            _fill(section, place, kind=kind, typed=typed)
            _refuse_experiment(section, place, kind=kind, typed=typed)
    for dotted, found in values.items():
        place, _, last = dotted.rpartition(".")
        _node(tree, place)[last] = found
    return validated(schema, json.dumps(tree))


def _import_typed(overrides: Iterable[str]) -> None:
    """Imports the extensions that are typed, for the keys that they bring may be typed too."""
    for key, _, value in (override.partition("=") for override in overrides):
        if key == "extensions" and value:
            names = _text(value, may_be_list=True)
            import_extensions((names,) if isinstance(names, str) else tuple(names or ()))


def _node(tree: Any, place: str) -> dict[str, Any]:  # noqa: ANN401  (a tree as JSON holds it)
    """The section at a dotted key, which is made if need be; at none, the tree."""
    for part in place.split(".") if place else ():
        tree = tree.setdefault(part, {})
    found: dict[str, Any] = tree
    return found


def _fill(section: dict[str, Any], place: str, *, kind: object, typed: Collection[str]) -> None:
    """Gives a section the values that conf/ has for its kind, where it has none.

    Args:
        section: as Hydra composed it; is changed.
        place: its dotted key.
        kind: that it is to be of; if that is not what was composed, only what was typed stays of the section.
        typed: dotted keys.
    """
    from omegaconf import OmegaConf

    begins = {".".join(each.split(".")[: place.count(".") + 2]) for each in typed}  # of a section's keys, the section's
    stay = {key: value for key, value in section.items() if kind == section["kind"] or f"{place}.{key}" in begins}
    file = CONF.joinpath(*place.split("."), f"{kind}.yaml")
    values = OmegaConf.to_container(OmegaConf.load(file)) if kind in KINDS[place] and file.exists() else {}
    section.clear()
    section.update(cast(dict[str, Any], values) | stay | {"kind": kind})


def _refuse_experiment(section: dict[str, Any], place: str, *, kind: object, typed: Mapping[str, str]) -> None:
    """Refuses an experiment that sets keys which a section of another kind than the experiment's own lacks.

    Args:
        section: as composed and filled.
        place: its dotted key.
        kind: of the section.
        typed: values by dotted key.
    """
    if "experiment" not in typed or not isinstance(kind, str) or kind not in KINDS[place]:
        return
    known = KINDS[place][kind].model_fields
    begins = {key: value for key, value in section.items() if key not in known}
    lacking = [key for key in _keys_of(begins, place) if key not in typed]
    if lacking:
        mends = " or ".join(f"{key}={typed[key]}" for key in ("experiment", place, f"{place}.kind") if key in typed)
        raise ConfigError(
            f"experiment={typed['experiment']} sets {', '.join(lacking)}, which {place}.kind={kind} lacks;"
            f" leave out {mends}"
        )


def _keys_of(node: Mapping[str, Any], prefix: str) -> list[str]:
    """The dotted keys of what is no section."""
    found: list[str] = []
    for key, value in node.items():
        found += _keys_of(value, f"{prefix}.{key}") if isinstance(value, dict) else [f"{prefix}.{key}"]
    return found


def groups(schema: type[Section]) -> dict[str, list[str]]:
    """The groups of conf/ that fill a schema, and the choices in each; an experiment fills the whole."""
    names = {*schema.model_fields, *(("experiment",) if issubclass(schema, Config) else ())}
    return {
        folder.name: sorted(file.stem for file in folder.glob("*.yaml"))
        for folder in sorted(CONF.iterdir())
        if folder.is_dir() and folder.name in names
    }


def _checked(schema: type[Section], override: str) -> tuple[str, str]:
    """The key and the value of an override, after its key and choice are known to exist."""
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"argument {override!r} is not of the form key=value")
    if any("\ud800" <= character <= "\udfff" for character in override):  # how Python holds bytes of another encoding
        raise ConfigError(f"argument {override!r} is no valid UTF-8; name such a file by its folder or a glob")
    known = leaves(schema)
    files = groups(schema)
    if RENAMED.get(key) in known:
        key = RENAMED[key]
    if key in files:
        if value not in files[key]:
            raise ConfigError(f"{key}={value} is not one of {', '.join(files[key])}{nearest(value, files[key])}")
    elif key not in known:
        raise ConfigError(f"unknown key {key}{nearest(key.lstrip('+~'), [*known, *files])}")
    elif not value:
        raise ConfigError(f"{key}= has no value; give one, or null")
    return key, value


def _text(value: str, *, may_be_list: bool) -> str | list[str] | None:
    """The value of a text field as typed: verbatim, but for `null` and, where a list may stand, `[a,b]`."""
    if value == "null":
        return None
    if may_be_list and value.startswith("[") and value.endswith("]"):
        return [item.strip() for item in value[1:-1].split(",") if item.strip()]
    return value

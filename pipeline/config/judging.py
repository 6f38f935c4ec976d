"""What a schema has, and what it says of a tree: its keys and their types; one line for all that is wrong."""

import json
from collections.abc import Iterable, Iterator
from types import NoneType
from typing import Any, TypeVar, get_args

from pydantic import ValidationError

from pipeline.config.schema import KINDS, Section, nearest
from pipeline.errors import ConfigError

Tree = TypeVar("Tree", bound=Section)


def validated(schema: type[Tree], tree_json: str) -> Tree:
    """The tree that a JSON text holds, or one `ConfigError` with all that is wrong with it."""
    try:
        return schema.model_validate_json(tree_json)
    except ValidationError as error:
        raise ConfigError(
            "; ".join(dict.fromkeys(_complaint(schema, dict(each)) for each in error.errors()))
        ) from error


def leaves(schema: type[Section], prefix: str = "") -> dict[str, Any]:
    """Every dotted key of a schema with its annotation; of a section that comes in kinds, the keys of all of them."""
    found: dict[str, Any] = {}
    for name, field in schema.model_fields.items():
        annotation = field.annotation
        if kinds := KINDS.get(prefix + name):
            for section in kinds.values():
                found |= leaves(section, f"{prefix}{name}.")
        elif isinstance(annotation, type) and issubclass(annotation, Section):
            found |= leaves(annotation, f"{prefix}{name}.")
        else:
            found[prefix + name] = annotation
    return found


def sections(tree: Section, prefix: str = "") -> Iterator[tuple[str, type[Section]]]:
    """The schema of a tree and those of the sections in it, each with what the dotted keys of its fields begin with."""
    yield prefix, type(tree)
    for name, value in tree:
        if isinstance(value, Section):
            yield from sections(value, f"{prefix}{name}.")


def choices(annotation: object) -> list[str]:
    """The words that a field takes; empty where it takes other values as well."""
    parts = parts_of(annotation)
    return [] if int in parts else [part for part in parts if isinstance(part, str)]


def flat(tree: Section) -> dict[str, object]:
    """Every dotted key of a tree with its value, as JSON holds it."""

    def walk(node: dict[str, Any], prefix: str) -> Iterable[tuple[str, object]]:
        for name, value in node.items():
            if isinstance(value, dict):
                yield from walk(value, f"{prefix}{name}.")
            else:
                yield prefix + name, value

    return dict(walk(tree.model_dump(mode="json"), ""))


def shown(tree: Section) -> dict[str, str]:
    """Every dotted key of a tree with its value, as it is typed."""
    return {
        key: value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
        for key, value in flat(tree).items()
    }


def given(key: str, folder: str | None) -> str:
    """The folder that a key names.

    Raises:
        ConfigError: it names none.
    """
    if folder is None:
        raise ConfigError(f"{key}=null is not given; use {key}=FOLDER")
    return folder


def parts_of(annotation: object) -> tuple[object, ...]:
    return (annotation, *(part for argument in get_args(annotation) for part in parts_of(argument)))


def _complaint(schema: type[Section], error: dict[str, Any]) -> str:
    """One finding of pydantic's in our form: key=value, what is needed."""
    path = [str(part) for part in error["loc"]]
    known = leaves(schema)
    while path and ".".join(path) not in known and any(key == ".".join(path[:-1]) for key in known):
        path.pop()  # an index of a list, or a member of a union
    key = ".".join(path)
    if error["type"] == "extra_forbidden":
        return f"unknown key {key}{nearest(key, known)}"
    message = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "value_error":
        return message
    if error["type"] == "missing":
        return f"{key} is not given"
    needed = message.replace("Input should be", "it must be")
    # an item of a list is never null
    if NoneType in parts_of(known.get(key)) and not isinstance(error["loc"][-1], int):
        needed += ", or null"
    near = nearest(str(error["input"]), choices(known.get(key)))
    return f"{key}={json.dumps(error['input'])}: {needed}{near}"

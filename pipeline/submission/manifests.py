"""Manifests as YAML for people: in the order given, without aliases, text of several lines as a block.

In: a tree of plain values. Out: its text.
"""

from typing import Any

import yaml


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]  # yaml has no types
    """Writes each value out where it stands."""

    def ignore_aliases(self, data: object) -> bool:
        """Of all values: a manifest that says `*id001` is hard to read."""
        return True


def _text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def as_yaml(tree: dict[str, Any]) -> str:
    """A manifest's text."""
    text: str = yaml.dump(tree, Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)
    return text

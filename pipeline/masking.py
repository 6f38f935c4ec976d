"""Secrets in text: what a person types or a library says may hold one, and nothing that is kept or printed does.

In: text. Out: the same with `***` for each password of a URL, each parameter of one that signs or authorises, and each
value of an environment variable that is named as a secret. Rather too much is masked than too little.
"""

import os
import re
from typing import TypeVar

MASK = "***"
LEAST_LENGTH = 8  # of a variable's value: a shorter one is a part of other words
# `user:password@` or `token@` after `://`; keys of S3 hold slashes, and `::` chains file systems
USER = re.compile(r"""(?<=://)(?:[^\s'"/@:]{0,256}:(?!:)[^\s'"]{0,1024}?@|[^\s'"/@]{1,2048}@)(?:[^\s'"/@]{0,2048}@)*""")
PARAMETER = re.compile(
    r"""([?&;][\w.-]{0,64}(?:token|secret|passw(?:or)?d|pwd|signature|sig|credential|auth|key|keyid)=)[^\s&#'"]+""",
    re.IGNORECASE,
)
VARIABLE = re.compile(
    r"(TOKEN|SECRET|PASSW(OR)?D|PASSPHRASE|_PWD|API_?KEY|(ACCESS|ACCOUNT|APPLICATION|SECRET)_?KEY|CONNECTION_STRING)$",
    re.IGNORECASE,
)

Tree = TypeVar("Tree")


def masked(text: str) -> str:
    """The text without its secrets; masked once more it stays the same."""
    for value in _values():
        text = text.replace(value, MASK)
    return _without_urls(text)


def holds_secret(text: str) -> bool:
    """Whether something in the text would be masked."""
    return masked(text) != text


def last_name(place: str) -> str:
    """By what a place is called in a list: the last part of its path, without its secrets."""
    return masked(place).rstrip("/").rpartition("/")[2]


def masked_tree(tree: Tree) -> Tree:
    """Values as JSON holds them, with the secrets of every text masked; keys stay."""
    if isinstance(tree, dict):
        return type(tree)((key, masked_tree(value)) for key, value in tree.items())
    if isinstance(tree, list | tuple):
        return type(tree)(masked_tree(value) for value in tree)
    return masked(tree) if isinstance(tree, str) else tree  # type: ignore[return-value]  # text stays text


def without_secrets() -> dict[str, str]:
    """The environment of this process without the variables that are named as secrets."""
    return {name: value for name, value in os.environ.items() if not _is_secret(name, value)}


def without_credentials(url: str) -> str:
    """A place by which it is known whoever may reach it: credentials masked by their form alone."""
    return _without_urls(url)


def _without_urls(text: str) -> str:
    return PARAMETER.sub(rf"\g<1>{MASK}", USER.sub(f"{MASK}@", text))


def _is_secret(name: str, value: str) -> bool:
    """Whether a variable is named as a secret; `..._PWD` is one, but for a shell's working folder."""
    a_folder = name.upper().endswith("_PWD") and os.path.isdir(value)  # noqa: PTH112 Path raises for a long value
    return VARIABLE.search(name) is not None and not a_folder


def _values() -> list[str]:
    """The values of variables that are named as secrets, the longest first, since one may hold another."""
    found = {value for name, value in os.environ.items() if _is_secret(name, value) and len(value) >= LEAST_LENGTH}
    return sorted(found, key=len, reverse=True)

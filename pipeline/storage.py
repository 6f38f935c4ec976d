"""Where bytes live: local disk and object stores through one small set of functions (fsspec).

In: paths (`runs/a`, `file:///data`, `s3://bucket/key`). Out: whole artifacts. Refuses: half-written ones, since what
is published appears under its name complete or not at all.
"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

import fsspec
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from pipeline.errors import ConfigError

CHUNK_BYTES = 1 << 20


def resolve(path: str) -> tuple[AbstractFileSystem, str]:
    """The file system of a path and the path as that file system names it.

    Raises:
        ConfigError: the path's protocol is not known, or its package is not installed.
    """
    try:
        filesystem, name = fsspec.core.url_to_fs(path)
    except (ValueError, ImportError) as error:
        raise ConfigError(f"{path} cannot be reached: {error}; install what it names, or use a local path") from error
    return filesystem, str(name)


def is_local(path: str) -> bool:
    """Whether the path lies on a disk of this machine, so that it can be memory-mapped."""
    return isinstance(resolve(path)[0], LocalFileSystem)


def join(folder: str, *names: str) -> str:
    """A path below a folder, whatever the file system."""
    return "/".join([folder.rstrip("/"), *names])


def absolute(path: str) -> str:
    """The path so that it holds from any working folder; an object store's is that already."""
    return str(Path(resolve(path)[1]).resolve()) if is_local(path) else path


def exists(path: str) -> bool:
    """Whether a file or folder of that name is there."""
    filesystem, name = resolve(path)
    return bool(filesystem.exists(name))


def is_folder(path: str) -> bool:
    """Whether the path is a folder."""
    filesystem, name = resolve(path)
    return bool(filesystem.isdir(name))


def size_bytes(path: str) -> int:
    """Size of a file in bytes."""
    filesystem, name = resolve(path)
    return int(filesystem.size(name))


def list_files(pattern: str) -> list[str]:
    """The files that a path, a glob or a folder (with all below it) names, sorted; empty if there is none.

    A name that exists is taken literally even if it holds glob characters. Hidden files (a leading dot) of a folder
    are passed over.
    """
    filesystem, name = resolve(pattern)
    if filesystem.isfile(name):
        found = [name]
    elif filesystem.isdir(name):
        root = name.rstrip("/") + "/"
        found = [str(each) for each in filesystem.find(name)]
        found = [each for each in found if not any(part.startswith(".") for part in each[len(root) :].split("/"))]
    else:
        found = [str(each) for each in filesystem.glob(name) if filesystem.isfile(each)]
    return sorted(str(filesystem.unstrip_protocol(each)) if not is_local(pattern) else each for each in found)


def open_read(path: str) -> BinaryIO:
    """The file opened for reading bytes, as it lies (nothing is decompressed)."""
    filesystem, name = resolve(path)
    return cast(BinaryIO, filesystem.open(name, "rb"))


def read_bytes(path: str) -> bytes:
    """The whole file."""
    with open_read(path) as file:
        return file.read()


def sha256(path: str) -> str:
    """Digest of a file's bytes, as 64 hexadecimal digits; reads 1 MiB at a time."""
    digest = hashlib.sha256()
    with open_read(path) as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def make_folder(path: str) -> None:
    """Makes the folder and those above it; one that exists is left as it is."""
    filesystem, name = resolve(path)
    filesystem.makedirs(name, exist_ok=True)


def remove(path: str) -> None:
    """Removes a file if it is there."""
    filesystem, name = resolve(path)
    if filesystem.exists(name):
        filesystem.rm_file(name)


@contextmanager
def publish(path: str) -> Iterator[BinaryIO]:
    """Writes a file whole or not at all.

    On a local disk the bytes go to `<path>.tmp` in the same folder, are flushed to the disk and renamed; the folder is
    flushed too. An object store shows an object only once its upload is complete. If the body raises, the old
    content stays and no temporary is left.

    Args:
        path: the name under which the artifact appears; its folder is made if need be.

    Yields:
        a binary file to write to.

    Raises:
        ConfigError: the place cannot be written to, or its disk is full.
    """
    filesystem, name = resolve(path)
    if not isinstance(filesystem, LocalFileSystem):
        with filesystem.transaction, filesystem.open(name, "wb") as remote:
            yield cast(BinaryIO, remote)
        return
    target = Path(name)
    temporary = target.with_name(target.name + ".tmp")
    with _writable(path):
        target.parent.mkdir(parents=True, exist_ok=True)
        file = temporary.open("wb")
    try:
        with file:
            yield file
            with _writable(path):
                file.flush()
                os.fsync(file.fileno())
        with _writable(path):
            temporary.rename(target)
            flush_folder(target.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def _writable(path: str) -> Iterator[None]:
    """Tells of a place that cannot be written to in the user's terms."""
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be written ({error.strerror}); mend the path, its rights or the disk's space"
        ) from error


class DigestingFile:
    """A file to write to that takes the digest of what passes, so that nothing written has to be read again."""

    closed = False

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self._size_bytes = 0

    def write(self, data: bytes) -> int:
        """Writes the bytes; returns their number."""
        self._file.write(data)
        self._digest.update(data)
        self._size_bytes += len(data)
        return len(data)

    def tell(self) -> int:
        """Bytes written so far."""
        return self._size_bytes

    def flush(self) -> None:
        """Hands what is buffered to the file beneath."""
        self._file.flush()

    def sha256(self) -> str:
        """Digest of all that was written, 64 hexadecimal digits."""
        return self._digest.hexdigest()


def flush_folder(folder: Path) -> None:
    """Makes a rename in a local folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish_bytes(path: str, data: bytes) -> None:
    """`publish` for content that is at hand."""
    with publish(path) as file:
        file.write(data)

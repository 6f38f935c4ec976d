"""Where bytes live: local disk and object stores through one small set of functions (fsspec).

In: paths (`runs/a`, `file:///data`, `s3://bucket/key`, `https://host/file`). Out: whole artifacts. Refuses:
half-written ones, since what is published appears under its name complete or not at all; an object store that does not
serve and a local folder that cannot be listed, as ConfigError. A file that is not there raises FileNotFoundError,
wherever it is missing.

Errors that may pass (a connection that is cut, 5xx, throttling) are tried again. For object stores their libraries do
so: s3fs with botocore, gcsfs and huggingface_hub each try a request several times, with waits that grow. fsspec's http
does not, so that is done here. A local disk is asked once.

The web (`http://`, `https://`) is read only, a file at a time, by byte ranges. A server that gives no ranges or no
length is refused: each task reads a part of a file, and would have to fetch the whole.
"""

import fnmatch
import glob
import hashlib
import heapq
import io
import itertools
import logging
import os
import random
import re
import secrets
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeVar, cast

import fsspec
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from pipeline.errors import ConfigError, reason_of
from pipeline.masking import USER, masked

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

NUM_PARTS = 4  # of an upload under way at once: s3fs takes 100 MB of memory for each
COLONS = "\0\0"  # stands for `::` while fsspec, which chains file systems by it, looks at a name that holds it
KEY_OF_S3 = re.compile(rf"\bs3a?://{USER.pattern}")  # which s3fs takes for a part of the bucket's name
UNTIDY = re.compile(r"^[^/]|//|/\.(/|$)|./$", re.DOTALL)  # a path that is relative, or not as short as can be
WEB = re.compile(r"https?://", re.IGNORECASE)
PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "hf": "huggingface_hub"}  # of protocols
PACKAGES |= {"http": "aiohttp", "https": "aiohttp"}
REQUEST_BYTES = 8 << 20  # of a request where a file is read from one end to the other
TRIES = 5  # of a request to the web
WAIT_SECONDS = 2.0  # on average before the second try, twice as long before each further one
STALLED_SECONDS = 60.0  # without a byte from a server of the web until the connection counts as cut
PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})  # answers of the web that may be others soon
MISSING = frozenset({404, 410})
KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}

T = TypeVar("T")
LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class FileStatus:
    """What is known of a file without reading it.

    Attributes:
        size_bytes: of its content.
        identity: equal for two paths, links or not, if and only if they lead to one file.
    """

    size_bytes: int
    identity: str


def resolve(path: str) -> tuple[AbstractFileSystem, str]:
    """The file system of a path and the path as that file system names it.

    An absolute path, and one without `://` that is there, is taken literally. `::` chains two file systems where
    another protocol follows (`zip://a.txt::file:///b.zip`), and is part of the name where none does.

    Listings are not kept: they would hide what another process has written or removed since.

    Raises:
        ConfigError: the path's protocol is not known, its package is not installed, or what it chains to is not there;
            or it holds a key of S3.
    """
    if path.startswith("/") or ("://" not in path and os.path.lexists(path)):
        return _local_disk(), str(Path.cwd() / path) if UNTIDY.search(path) else path
    if KEY_OF_S3.search(path):
        raise ConfigError(
            f"{path} holds a key, which S3 takes in no URL; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and leave"
            " it out"
        )
    chained = "://" in path.partition("::")[2]
    try:
        filesystem, name = fsspec.core.url_to_fs(
            path if chained else path.replace("::", COLONS), use_listings_cache=False, **_options(path)
        )
    except (ValueError, ImportError, OSError) as error:
        package = PACKAGES.get(path.partition("://")[0].lower())
        install = f"pip install {package}" if package and isinstance(error, ImportError) else "install what it names"
        raise ConfigError(f"{path} cannot be reached: {reason_of(error)}; {install}, or use a local path") from error
    return filesystem, str(name).replace(COLONS, "::")


@cache
def _local_disk() -> LocalFileSystem:
    """Made once: fsspec would look for it in its table at each of a preparation's hundred thousand calls."""
    return LocalFileSystem(use_listings_cache=False)


def is_web(path: str) -> bool:
    """Whether the path is a URL of the web."""
    return WEB.match(path) is not None


def _options(path: str) -> dict[str, object]:
    """What the file system of a path is to be told: on the web, to send bytes as they lie and not to wait for ever."""
    if not is_web(path):
        return {}
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=None, sock_connect=STALLED_SECONDS, sock_read=STALLED_SECONDS)
    return {"headers": {"Accept-Encoding": "identity"}, "client_kwargs": {"timeout": timeout}}


@contextmanager
def _reached(path: str) -> Iterator[tuple[AbstractFileSystem, str]]:
    """`resolve`, for calls on what it gives: tells of an object store that does not serve in the user's terms.

    What a local disk raises stays as it is, and so does that a file is missing.
    """
    filesystem, name = resolve(path)
    try:
        yield filesystem, name
    except Exception as error:  # each store has errors of its own; botocore's are not even an OSError
        missing = isinstance(error, FileNotFoundError) and name in str(error)  # a missing bucket is told otherwise
        if missing or isinstance(filesystem, LocalFileSystem) or isinstance(error, ConfigError):
            raise
        mend = "its address or the credentials" if is_web(path) else "its bucket, the credentials or the endpoint"
        raise ConfigError(f"{path} cannot be reached ({reason_of(error)}); mend {mend}") from error


def _tried(path: str, call: Callable[[], T]) -> T:
    """What a request gives; on the web, where no library does so, an error that may pass is tried again.

    Raises:
        FileNotFoundError: the web says that there is no such file.
        ConfigError: a server of the web gives no byte ranges.
        OSError: all tries failed; says how many.
    """
    if not is_web(path):
        return call()
    for attempt in itertools.count(1):
        try:
            return _asked(path, call)
        except _PassingError as error:
            if attempt == TRIES:
                raise OSError(f"{error}, tried {TRIES} times") from error
            wait_seconds = WAIT_SECONDS * 2 ** (attempt - 1) * random.SystemRandom().uniform(0.5, 1.5)
            LOGGER.warning("%s: %s; try %d of %d in %.1f s", masked(path), error, attempt + 1, TRIES, wait_seconds)
            time.sleep(wait_seconds)
    raise AssertionError(path)


class _PassingError(Exception):
    """An answer of the web that may be another soon."""


def _asked(path: str, call: Callable[[], T]) -> T:
    """What one request to the web gives."""
    import aiohttp

    try:
        return call()
    except (aiohttp.ClientError, OSError) as error:
        # fsspec says of whatever fails while it asks for a size that the file is not there
        cause = error.__cause__ if isinstance(error, FileNotFoundError) and error.__cause__ else error
        status = cause.status if isinstance(cause, aiohttp.ClientResponseError) else None
        if status in MISSING or (status is None and isinstance(cause, FileNotFoundError)):
            raise FileNotFoundError(path) from error
        reason = f"{status} {cause.message}" if isinstance(cause, aiohttp.ClientResponseError) else reason_of(cause)
        may_pass = isinstance(cause, aiohttp.ClientError | OSError) and not isinstance(cause, ValueError)
        if status in PASSING or (status is None and may_pass and not isinstance(cause, aiohttp.ClientSSLError)):
            raise _PassingError(reason) from error
        raise OSError(reason) from error


def is_local(path: str) -> bool:
    """Whether the path lies on a disk of this machine, so that it can be memory-mapped."""
    return isinstance(resolve(path)[0], LocalFileSystem)


def join(folder: str, *names: str) -> str:
    """A path below a folder, whatever the file system."""
    return "/".join([folder.rstrip("/"), *names])


def absolute(path: str) -> str:
    """The path so that it holds from any working folder; an object store's is that already."""
    return os.path.realpath(resolve(path)[1]) if is_local(path) else path  # Path.resolve raises for a loop of links


def canonical(path: str) -> str:
    """One spelling for each place, with its protocol: on a local disk without links, `.` and `..`.

    The place need not be there; glob characters stay.
    """
    filesystem, name = resolve(path)
    return str(filesystem.unstrip_protocol(os.path.realpath(name) if is_local(path) else name))


def exists(path: str) -> bool:
    """Whether a file or folder of that name is there; a bucket that is missing holds nothing."""
    with _reached(path) as (filesystem, name):
        if not is_web(path):
            return bool(filesystem.exists(name))
        try:
            _tried(path, lambda: filesystem.info(name))
        except FileNotFoundError:
            return False
        return True


def is_folder(path: str) -> bool:
    """Whether the path is a folder; in an object store, whether a name below it is there. The web has none."""
    if is_web(path):
        return False
    with _reached(path) as (filesystem, name):
        return bool(filesystem.isdir(name))


def size_bytes(path: str) -> int:
    """Size of a file in bytes.

    Raises:
        ConfigError: a server of the web does not tell it, or gives no byte ranges of a file of several requests.
    """
    with _reached(path) as (filesystem, name):
        if isinstance(filesystem, LocalFileSystem):
            return Path(name).stat().st_size
        if not is_web(path):
            return int(filesystem.size(name))
        size = _tried(path, lambda: filesystem.size(name))
    if size is None:
        raise _not_by_parts(path)
    if size > REQUEST_BYTES:
        with open_read(path, ahead=False) as file:
            file.seek(size - 1)
            file.read(1)
    return int(size)


def _not_by_parts(path: str) -> ConfigError:
    return ConfigError(
        f"{path}: its server gives no byte ranges, or not its length, and a task reads a part of a file;"
        f" download it (curl -LO) and name the file"
    )


def file_status(path: str) -> FileStatus:
    """Size and identity of a file.

    Raises:
        FileNotFoundError: nothing is there, or a link that leads to nothing.
        ConfigError: it is no file; reading a pipe, a socket or a device might never end.
    """
    if not is_local(path):
        return FileStatus(size_bytes(path), identity=path)
    found = Path(resolve(path)[1]).stat()
    if not stat.S_ISREG(found.st_mode):
        kind = KINDS.get(stat.S_IFMT(found.st_mode), "something else")
        raise ConfigError(f"{path} is {kind}, needed a file; leave it out, or write what it gives to a file")
    return FileStatus(found.st_size, identity=f"{found.st_dev}:{found.st_ino}")


def list_files(pattern: str) -> list[str]:
    """What a path, a glob or a folder (with all below it) names and is no folder, sorted; empty if there is none.

    A name that exists is taken literally even if it holds glob characters. Hidden names (a leading dot) of a folder
    are passed over, and so are the empty objects by which consoles mark folders. A link to a folder is followed, each
    folder read once. A link that leads to nothing is among what is found, and so are pipes and devices.

    Raises:
        ConfigError: a folder on the way cannot be listed; a URL of the web that is no file's, since it lists nothing.
    """
    return list(list_sizes(pattern))


def list_sizes(pattern: str) -> dict[str, int | None]:
    """`list_files`, with the size of each file in bytes where the listing tells it, as that of an object store does.

    Raises:
        ConfigError: as there.
    """
    if is_local(pattern):
        return dict.fromkeys(_list_local(resolve(pattern)[1]))
    if is_web(pattern):
        if "*" in pattern or pattern.endswith("/"):
            raise ConfigError(f"{pattern} names no file, and the web cannot be listed; name each file by its URL")
        return {pattern: None} if exists(pattern) else {}
    with _reached(pattern) as (filesystem, name):
        if filesystem.isfile(name):
            found = {name: None}
        elif filesystem.isdir(name):
            root = name.rstrip("/") + "/"
            listed = {str(each): info for each, info in filesystem.find(name, detail=True).items()}
            found = {
                each: info.get("size")
                for each, info in listed.items()
                if not each.endswith("/") and not any(part.startswith(".") for part in each[len(root) :].split("/"))
            }
        else:
            listed = {str(each): info for each, info in filesystem.glob(name, detail=True).items()}
            found = {each: info.get("size") for each, info in listed.items() if info["type"] == "file"}
        return {str(filesystem.unstrip_protocol(each)): found[each] for each in sorted(found)}


def sizes_below(folder: str) -> dict[str, int]:
    """The sizes in bytes of the files below a folder, by their names from there on; without hidden ones.

    An object store is asked for a listing, and not for each file. Empty if there is no such folder.

    Raises:
        ConfigError: it cannot be listed.
    """
    filesystem, name = resolve(folder)
    root = (name if is_local(folder) else str(filesystem.unstrip_protocol(name))).rstrip("/") + "/"
    return {
        path.removeprefix(root): size_bytes(path) if size is None else size
        for path, size in list_sizes(folder).items()
        if path.startswith(root)
    }


def folders_in(folder: str) -> list[str]:
    """The names of the folders right in a local one, sorted and without hidden ones; empty if it is none.

    Raises:
        ConfigError: it cannot be listed.
    """
    name = resolve(folder)[1]
    try:
        with os.scandir(name) as entries:
            return sorted(each.name for each in entries if each.is_dir() and not each.name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise ConfigError(f"{name} cannot be read ({error.strerror}); mend its rights") from error


def _list_local(name: str) -> list[str]:
    """`list_files` on a local disk. fsspec would leave out what cannot be listed, and links to folders."""
    try:
        mode = _mode(name)
        if mode:
            return sorted(_below(name)) if stat.S_ISDIR(mode) else [name]
        return sorted(each for each in _matches(name) if not stat.S_ISDIR(_mode(each)))
    except OSError as error:
        raise ConfigError(
            f"{error.filename or name} cannot be read ({error.strerror}); mend its rights or the link, or leave it out"
        ) from error


def _mode(name: str) -> int:
    """Kind and rights of what a name leads to, or of a link that leads to nothing; 0 if there is no such name."""
    for status_of in (os.stat, os.lstat):
        with suppress(FileNotFoundError, NotADirectoryError):
            return status_of(name).st_mode
    return 0


def _below(root: str) -> Iterator[str]:
    """The names below a folder that are no folders and not hidden, nor below a hidden one."""
    for folder in _folders(root, hidden=False):
        with os.scandir(folder) as entries:
            yield from [entry.path for entry in entries if not entry.is_dir() and not entry.name.startswith(".")]


def _folders(root: str, *, hidden: bool) -> Iterator[str]:
    """A folder and those below it, each once: where it really lies, or else by the first of its links."""
    waiting = [(False, root)]  # whether a link leads there: those come last
    seen: set[str] = set()
    while waiting:
        _, folder = heapq.heappop(waiting)
        real = os.path.realpath(folder)
        if real in seen:
            continue
        seen.add(real)
        yield folder
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir() and (hidden or not entry.name.startswith(".")):
                    heapq.heappush(waiting, (entry.is_symlink(), entry.path))


def _matches(pattern: str) -> list[str]:
    """The names that match a glob, in which `**` between two slashes is any number of folders."""
    if pattern.endswith("/**"):
        pattern += "/*"
    found = ["/"]
    for part in pattern.strip("/").split("/"):
        found = list(dict.fromkeys(each for folder in found for each in _matches_in(folder, part)))
    return found


def _matches_in(folder: str, part: str) -> list[str]:
    """The names in a folder that match one part of a glob; a name that is there matches itself."""
    literal = str(Path(folder, part))
    if _mode(literal):
        return [literal]
    if not glob.has_magic(part) or not stat.S_ISDIR(_mode(folder)):
        return []
    if part == "**":
        return list(_folders(folder, hidden=True))
    with os.scandir(folder) as entries:
        return [entry.path for entry in entries if fnmatch.fnmatchcase(entry.name, part)]


def open_read(path: str, *, stop: int | None = None, ahead: bool = True) -> BinaryIO:
    """The file opened for reading bytes, as it lies (nothing is decompressed).

    A read of a remote file that fails goes on where it was; what changed meanwhile in an object store is refused.

    Args:
        path: the file.
        stop: of a remote file, nothing beyond this byte is fetched; null: to its end.
        ahead: of a remote file, whether 8 MiB are fetched at a time, for reading it in order; else what is asked for.
    """
    with _reached(path) as (filesystem, name):
        if isinstance(filesystem, LocalFileSystem):
            return Path(name).open("rb")
        size = {"size": stop} if is_web(path) and stop else {}  # for which the web need not be asked
        file = _tried(path, lambda: filesystem.open(name, "rb", cache_type="none", **size))
    ranges = _Ranges(path, cast(BinaryIO, file), stop=stop)
    return cast(BinaryIO, io.BufferedReader(ranges, REQUEST_BYTES) if ahead else ranges)


class _Ranges(io.RawIOBase):
    """A remote file as fsspec opens it, each read of which asks for just these bytes."""

    def __init__(self, path: str, file: BinaryIO, *, stop: int | None) -> None:
        self._path, self._file = path, file
        with self._told():
            size_bytes = file.seek(0, os.SEEK_END)
            file.seek(0)
        self._stop = size_bytes if stop is None else min(stop, size_bytes)

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def tell(self) -> int:
        """Where the next read begins."""
        return self._file.tell()

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Moves there; returns where that is."""
        return self._file.seek(offset, whence)

    def readinto(self, buffer: "WriteableBuffer") -> int:
        """Fills the buffer, but for what lies beyond the file's end; returns the number of bytes."""
        view = memoryview(buffer).cast("B")
        num_bytes = 0
        while num_bytes < len(view) and (data := self._fetch(len(view) - num_bytes)):
            view[num_bytes : num_bytes + len(data)] = data
            num_bytes += len(data)
        return num_bytes

    def readall(self) -> bytes:
        """All from here on."""
        return self.read(max(self._stop - self.tell(), 0)) or b""

    def close(self) -> None:
        """Closes what it reads from."""
        self._file.close()
        super().close()

    def _fetch(self, num_bytes: int) -> bytes:
        position = self._file.tell()
        num_bytes = min(num_bytes, self._stop - position, REQUEST_BYTES)
        if num_bytes <= 0:
            return b""
        with self._told():
            data = _tried(self._path, lambda: self._file.read(num_bytes))
        if not data:
            raise ConfigError(f"{self._path} ends {self._stop - position} bytes early; restore it or leave it out")
        return data

    @contextmanager
    def _told(self) -> Iterator[None]:
        with _reached(self._path):
            try:
                yield
            except ValueError as error:
                if is_web(self._path):
                    raise _not_by_parts(self._path) from error
                raise


def read_bytes(path: str) -> bytes:
    """The whole file."""
    with open_read(path) as file, _reached(path):
        return file.read()


def read_pieces(path: str, num_bytes: int) -> Iterator[bytes]:
    """The whole file in order, so many bytes at a time."""
    with open_read(path) as file, _reached(path):
        while piece := file.read(num_bytes):
            yield piece


def read_or_nothing(path: str) -> bytes:
    """The whole file; nothing where there is none.

    Raises:
        ConfigError: something is there that cannot be read, such as a folder.
    """
    try:
        return read_bytes(path)
    except (FileNotFoundError, NotADirectoryError):
        return b""
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}); mend or remove it") from error


def read_head(path: str, num_bytes: int) -> bytes:
    """The first bytes of a file that is not empty; an object store sends no more than these."""
    with _reached(path) as (filesystem, name):
        if isinstance(filesystem, LocalFileSystem):
            with Path(name).open("rb") as file:
                return file.read(num_bytes)
        if is_web(path):  # where it may be that the whole file is sent: then it is not waited for
            with filesystem.open(name, "rb", cache_type="none", size=num_bytes) as file:
                return bytes(_tried(path, lambda: file.read(num_bytes)))
        return bytes(filesystem.cat_file(name, start=0, end=num_bytes))


def read_range(path: str, start: int, stop: int) -> bytes:
    """The bytes [start, stop) of a file, one or more; an object store sends no more than these."""
    with _reached(path) as (filesystem, name):
        return bytes(filesystem.cat_file(name, start=start, end=stop))


def read_end(path: str, num_bytes: int) -> bytes:
    """The last bytes of a file, all if it is shorter; nothing where there is none.

    Raises:
        ConfigError: something is there that cannot be read.
    """
    try:
        with open_read(path, ahead=False) as file:
            file.seek(max(file.seek(0, os.SEEK_END) - num_bytes, 0))
            return file.read()
    except (FileNotFoundError, NotADirectoryError):
        return b""
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}); mend or remove it") from error


def sha256(path: str) -> str:
    """Digest of a file's bytes, as 64 hexadecimal digits; reads a part at a time."""
    with open_read(path) as file:
        return hashlib.file_digest(cast(io.BufferedReader, file), "sha256").hexdigest()


def make_folder(path: str) -> None:
    """Makes the folder and those above it; one that exists is left as it is.

    An object store has no folders, so there is nothing to make: least of all a bucket, for a name that was mistyped.
    """
    if is_local(path):
        with _writable(path):
            Path(resolve(path)[1]).mkdir(parents=True, exist_ok=True)


@contextmanager
def lock_file(path: str) -> Iterator[int]:
    """A local file to be locked, which is made if need be; a lock on it ends with the context or the process.

    Yields:
        its descriptor.

    Raises:
        ConfigError: the file cannot be written.
    """
    make_folder(path.rpartition("/")[0])
    with _writable(path):
        descriptor = os.open(resolve(path)[1], os.O_RDWR | os.O_CREAT, 0o666)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def remove(path: str) -> None:
    """Removes a file if it is there."""
    with suppress(FileNotFoundError), _reached(path) as (filesystem, name):
        filesystem.rm_file(name)


def move(path: str, target: str) -> None:
    """Gives a file another name in the same file system; what had that name is replaced.

    Raises:
        FileNotFoundError: there is no such file.
        ConfigError: the place cannot be written to or reached.
    """
    if is_local(path):
        source = Path(resolve(path)[1])
        source.lstat()  # what is missing is told of the source, and not of where it is to go
        with _writable(target):
            source.replace(resolve(target)[1])
        return
    with _reached(path) as (filesystem, name):
        filesystem.mv(name, resolve(target)[1])


@contextmanager
def publish(path: str, *, lasting: bool = True, shared: bool = False) -> Iterator[BinaryIO]:
    """Writes a file whole or not at all.

    On a local disk the bytes go to `<path>.tmp` in the same folder, are flushed to the disk and renamed; the folder is
    flushed too. For an object store they go to a nameless file in the temporary folder, which needs the room, and are
    uploaded from there; the object shows only once its upload is complete. If the body raises, the old content stays
    and no temporary is left. A kill may leave uploaded parts that no name shows: let the bucket remove incomplete
    uploads.

    Args:
        path: the name under which the artifact appears; its folder is made if need be.
        lasting: whether it must survive that the machine stops. What can be made anew, and is known by its digest, is
            not flushed to a local disk.
        shared: whether several processes may write it at once, as tasks do: a task is tried again while its first trial
            may still live. Then each has a temporary of its own, `<path>.<8 hexadecimal digits>.tmp`, and whoever
            made the folder removes what a kill leaves of them. What is not lasting is shared.

    Yields:
        a binary file to write to.

    Raises:
        ConfigError: the place cannot be written to or reached, or its disk is full.
    """
    with _renamed(path, lasting=lasting, shared=shared) if is_local(path) else _uploaded(path) as file:
        yield file


@contextmanager
def _renamed(path: str, *, lasting: bool, shared: bool) -> Iterator[BinaryIO]:
    """`publish` on a local disk."""
    target = Path(resolve(path)[1])
    own = f".{secrets.token_hex(4)}" if shared or not lasting else ""
    temporary = target.with_name(f"{target.name}{own}.tmp")
    with _writable(path):
        target.parent.mkdir(parents=True, exist_ok=True)
        file = temporary.open("wb")
    try:
        with _watched(file, path) as watched:
            yield watched
        with _writable(path):
            if lasting:
                os.fsync(file.fileno())
            temporary.rename(target)
            if lasting:
                flush_folder(target.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    finally:
        _close(file)


@contextmanager
def _uploaded(path: str) -> Iterator[BinaryIO]:
    """`publish` in an object store.

    The file to write to that a store itself gives would save the room: but it uploads what it has got when it is closed
    or collected as garbage, whole or not, and its transactions are shared by all threads.
    """
    _refuse_web(path)
    place = f"the temporary folder (TMPDIR) where {path} waits for its upload"
    with _writable(place):
        file = cast(BinaryIO, tempfile.TemporaryFile())  # noqa: SIM115 closed below, where it may fail
    try:
        with _watched(file, place) as watched:
            yield watched
        with _reached(path) as (filesystem, name):
            filesystem.put_file(f"/dev/fd/{file.fileno()}", name, max_concurrency=NUM_PARTS)
    finally:
        _close(file)


def _refuse_web(path: str) -> None:
    if is_web(path):
        raise ConfigError(f"{path} is of the web, which is only read; use a local folder or an object store (s3://)")


@contextmanager
def _watched(file: BinaryIO, place: str) -> Iterator[BinaryIO]:
    """Gives a body a file to write to, flushes it, and tells of what could not be written in the user's terms.

    The body's own errors stay what they are. A failed write is told even where the body raises something else for it,
    as torch and Arrow do, or nothing.
    """
    watched = _WatchedFile(file)
    try:
        yield cast(BinaryIO, watched)
    except Exception:
        if watched.failure is None:
            raise
    with _writable(place):
        if watched.failure is not None:
            raise watched.failure
        file.flush()


def _close(file: BinaryIO) -> None:
    """Closes a file of which nothing more is needed: after a failure, what is still buffered may not fit either."""
    with suppress(OSError):
        file.close()


class _WatchedFile:
    """A file to write to that remembers its first failure; all else is the file's own."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.failure: OSError | None = None

    def write(self, data: bytes) -> int:
        """Writes the bytes; returns their number."""
        with self._remembering():
            return self._file.write(data)

    def flush(self) -> None:
        """Hands what is buffered to the disk."""
        with self._remembering():
            self._file.flush()

    @contextmanager
    def _remembering(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.failure = self.failure or error
            raise

    def __getattr__(self, name: str) -> object:
        return getattr(self._file, name)


@contextmanager
def _writable(place: str) -> Iterator[None]:
    """Tells of a place that cannot be written to in the user's terms."""
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"{place} cannot be written ({error.strerror}); mend the path, its rights or the disk's space"
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


def publish_bytes(path: str, data: bytes, *, lasting: bool = True) -> None:
    """`publish`, by one writer if it is to last, for content that is at hand."""
    with publish(path, lasting=lasting) as file:
        file.write(data)


def create_bytes(path: str, data: bytes) -> bool:
    """Publishes content under a name that nothing has yet: of two who try at once, one succeeds.

    On a local disk the whole file gets its name by a link; in an object store the store is asked to refuse what is
    there already.

    Returns:
        whether it is ours; False: something is there.

    Raises:
        ConfigError: the place cannot be written to, or its store or disk cannot promise this.
    """
    _refuse_web(path)
    if exists(path):
        return False
    if is_local(path):
        return _linked(Path(resolve(path)[1]), data)
    with _reached(path) as (filesystem, name):
        try:
            filesystem.pipe_file(name, data, mode="create")
        except (TypeError, ValueError, NotImplementedError) as error:
            raise ConfigError(
                f"{path}: its store cannot create an object only where none is ({reason_of(error)});"
                " use a run=FOLDER on a shared disk or in S3"
            ) from error
        except OSError:  # each store says in its own words that something is there
            if not filesystem.exists(name):
                raise
    return read_bytes(path) == data


def _linked(target: Path, data: bytes) -> bool:
    """`create_bytes` on a local disk."""
    with _writable(str(target)):
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f".{target.name}.") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            Path(file.name).chmod(0o644)
            try:
                os.link(file.name, target)
            except FileExistsError:
                return False
        flush_folder(target.parent)
    return True


def append_line(path: str, line: str) -> None:
    """Adds a line to a file, which is made if need be; a reader sees the whole line or nothing of it.

    On a local disk it is one write at the file's end, which a disk that becomes full may cut. An object store knows no
    appending: the object is published anew, so there a file of lines should be short and have one writer.

    Raises:
        ConfigError: the place cannot be written to or reached, or its disk is full.
    """
    data = line.encode() + b"\n"
    if not is_local(path):
        publish_bytes(path, (read_bytes(path) if exists(path) else b"") + data)
        return
    with _writable(path):
        descriptor = os.open(resolve(path)[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            while data:  # a second time only on a disk that is full, which then tells so
                data = data[os.write(descriptor, data) :]
        finally:
            os.close(descriptor)

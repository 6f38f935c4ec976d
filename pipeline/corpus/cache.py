"""Token shards of a remote corpus on a disk of this machine: ahead of need, within a bound, shared by its processes.

In: shards as a manifest has them, and in which order the lanes of this machine come to them. Out: each shard's bytes,
memory-mapped. Refuses a shard that is not what its manifest says, a folder that cannot be written, and a cache that
cannot hold the shards that the lanes read from at once.

A folder serves any number of ranks, runs and corpora at once, which need know nothing of each other:

    <sha256>       a whole shard; whoever maps it holds a shared lock on it for as long as the map lives
    <sha256>.part  one that is being fetched, locked by who does so, and from the beginning as large as it will be
    .lock          held while a shard is added to the folder or removed from it

The locks are flock's, which end with their process: a part that nobody has locked was left by one that died, and is
removed. A digest is taken of whatever is fetched, so what stands under a name has it.

The bound is that of the folder: a part begins only where it fits beside all that is there. Where a run with a larger
bound has filled the folder, it removes no more than its own size. A shard is removed for it only while nobody maps it,
so that its disk is free at once. One case is left in which the disk holds more for a while: a rank cannot go on, and
what others have mapped fills the bound, which several runs in one folder can do. Then some of that is unlinked, and
goes when it is let go of.

The smallest bound is a shard for each lane of the machine: a lane that comes to the end of one lets go of it before it
takes the next. With blocks it is two, since at a joint of two blocks a lane may come back to either.

Which shard goes is Belady's rule, since the lanes' arithmetic tells the future: first those that no lane of this run
comes to, by least recent use; then the one whose next use is furthest away. Nothing goes for a shard that is needed
later than itself. Source: Cao et al. 1995, "A study of integrated prefetching and caching strategies", section 2.
"""

import fcntl
import hashlib
import logging
import math
import mmap
import os
import re
import shutil
import threading
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import lru_cache
from itertools import accumulate
from pathlib import Path

import platformdirs
import pyarrow as pa

from pipeline import storage
from pipeline.config import StreamConfig
from pipeline.corpus.lanes import LanePlan
from pipeline.corpus.manifest import Shard
from pipeline.corpus.vocabulary import MEND
from pipeline.errors import ConfigError, CorpusError

log = logging.getLogger(__name__)

GB = 1e9
PART = ".part"
NAME = re.compile(rf"[0-9a-f]{{64}}({re.escape(PART)})?")
LOCK_NAME = ".lock"
PIECE_BYTES = 8 << 20  # of a fetch
LAG_STEPS = 2  # that a rank may be ahead of another of its machine: what it has left and removed is fetched for the
# other when that one asks, never ahead of need, since it goes again so soon
NUM_THREADS = 2  # of a rank, that fetch ahead
TRIES = 2  # of a fetch whose bytes are not the manifest's
POLL_SECONDS = 0.02  # between two looks for a shard that another process fetches
IDLE_SECONDS = 5.0  # between two looks of a thread that has nothing to fetch
FRESH_SECONDS = 600.0  # after its last use another run's shard may go for one that is not needed yet
TOUCH_SECONDS = 120.0  # between two signs of life of what this run will use
CLOSE_SECONDS = 10.0  # for a store to answer, before a thread is left to end with the process
TOLD_SECONDS = 1.0  # of waiting in a step
MOST_CHUNKS = 2000  # that are looked through for a next use; what comes later counts as never

Range = tuple[int, int]  # [start, stop) of the stored tokens
Ranges = Callable[[int, int, int], Sequence[Sequence[Range]]]
"""(epoch, first window, end of the windows) → what each lane of this machine reads then, in its order."""


class Future:
    """In which order the lanes of a machine come to the shards of a split.

    Args:
        shards: of the split, in order.
        plan: how it is dealt to lanes.
        ranges: what the lanes of this machine read.
        total_steps: of the run.
        run_tokens: that a lane reads in a row, if it is fewer than a shard has.

    Attributes:
        names: digests of the shards.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        plan: LanePlan,
        ranges: Ranges,
        *,
        total_steps: int,
        run_tokens: int | None = None,
    ) -> None:
        self._shards, self._plan, self._ranges, self._total_steps = tuple(shards), plan, ranges, total_steps
        self.names = {shard.sha256 for shard in shards}
        self._num_used = sum(shard.num_tokens > 0 for shard in shards)
        self._starts = list(accumulate((shard.num_tokens for shard in shards), initial=0))
        mean_tokens = plan.num_targets // self._num_used
        self._stride = max(1, min(mean_tokens, run_tokens or mean_tokens) // (4 * plan.bptt))  # windows of a chunk
        self._chunk = lru_cache(maxsize=2 * MOST_CHUNKS)(self._shards_in)

    def coming(self, step: int) -> Iterator[Shard]:
        """Each shard once, in the order of its next use from a step on."""
        seen: set[int] = set()
        for _ in range(MOST_CHUNKS):
            if step >= self._total_steps or len(seen) == self._num_used:
                return
            epoch, window = self._plan.position(step)
            stop = min(self.chunk_of(step) + self._stride, self._plan.num_windows, window + self._total_steps - step)
            for index in self._chunk(epoch, window, stop):
                if index not in seen:
                    seen.add(index)
                    yield self._shards[index]
            step += stop - window

    def leaving(self, step: int) -> set[str]:
        """The shards that are used now and no longer in a few steps: nobody fetches them ahead of need any more."""
        epoch, window = self._plan.position(step)
        stop = min(window + LAG_STEPS, self._plan.num_windows)
        after = self._shards_in(epoch, stop, stop + 1) if stop < self._plan.num_windows else ()
        return {self._shards[index].sha256 for index in set(self._shards_in(epoch, window, stop)).difference(after)}

    def soon(self, step: int) -> set[str]:
        """The shards that are used in the few steps after a step."""
        found: set[str] = set()
        for each in range(step + 1, min(step + 1 + LAG_STEPS, self._total_steps)):
            epoch, window = self._plan.position(each)
            found.update(self._shards[index].sha256 for index in self._shards_in(epoch, window, window + 1))
        return found

    def chunk_of(self, step: int) -> int:
        """The first window of those that are looked at together with a step's."""
        return self._plan.position(step)[1] // self._stride * self._stride

    def starts_epoch(self, step: int) -> bool:
        """Whether the lanes are at their beginnings."""
        return self._plan.position(step)[1] == 0

    def _shards_in(self, epoch: int, start: int, stop: int) -> tuple[int, ...]:
        """The shards that are used in some windows, by how many tokens a lane reads before it comes to them."""
        found: dict[int, int] = {}
        for ranges in self._ranges(epoch, start, stop):
            before = 0
            for begin, end in ranges:
                for index in range(bisect_right(self._starts, begin) - 1, bisect_left(self._starts, end)):
                    if self._shards[index].num_tokens:
                        place = before + max(self._starts[index] - begin, 0)
                        found[index] = min(found.get(index, place), place)
                before += end - begin
        return tuple(sorted(found, key=found.__getitem__))


def eviction_order(held: Mapping[str, float], coming: Iterable[str]) -> list[str]:
    """In which order shards go.

    Args:
        held: the shards that are there, with the time of their last use.
        coming: in the order of their next use.

    Returns:
        first those that do not come, by least recent use; then those that come, the last one first.
    """
    waiting, found = dict(held), []
    for name in coming:
        if waiting.pop(name, None) is not None:
            found.append(name)
        if not waiting:
            break
    return [*sorted(waiting, key=waiting.__getitem__), *reversed(found)]


def check_cache(data: str, shards: Iterable[Shard], *, stream: StreamConfig, num_lanes: int) -> None:
    """Refuses a cache of a remote corpus that cannot hold what the lanes of a machine read from; writes nothing.

    That is a shard for each lane, and two with `stream.order=blocks`.

    Args:
        data: the corpus folder; one that is local has no cache.
        shards: those that are read.
        stream: the section.
        num_lanes: of the machine.

    Raises:
        ConfigError: names the size that can; or the folder is not local.
    """
    if storage.is_local(data):
        return
    cache_folder(stream)
    largest = max((shard.size_bytes for shard in shards), default=0)
    two = "2 × " if stream.order == "blocks" else ""
    needed = (2 if two else 1) * num_lanes * largest
    if _limit_bytes(stream) < needed:
        raise ConfigError(
            f"stream.cache_gb={stream.cache_gb:g} is less than {two}a machine's {num_lanes} lanes × the largest token"
            f" shard, {largest} bytes; use stream.cache_gb={_gb_of(needed)} or more, fewer lanes on this"
            " machine, or prepare the corpus with a smaller corpus.unit_bytes"
        )


@contextmanager
def open_cache(
    data: str, shards: Sequence[Shard], *, stream: StreamConfig, num_lanes: int, future: Future | None
) -> Iterator["ShardCache | None"]:
    """This machine's cache of a remote corpus.

    Args:
        data, shards, stream: as in `check_cache`.
        num_lanes: of this machine.
        future: when they come to which shards; None: nobody knows.

    Yields:
        the cache; None for a corpus that lies on this machine.

    Raises:
        ConfigError: the cache cannot hold what the lanes read from at once, or its folder cannot be used.
    """
    check_cache(data, shards, stream=stream, num_lanes=num_lanes)
    if storage.is_local(data):
        yield None
        return
    folder, digests = cache_folder(stream), stream.verify == "digest"
    cache = ShardCache(data, folder, limit_bytes=_limit_bytes(stream), digests=digests, future=future, shards=shards)
    try:
        yield cache
    finally:
        cache.close()


def _limit_bytes(stream: StreamConfig) -> int:
    return round(stream.cache_gb * GB)


def _gb_of(num_bytes: int) -> str:
    """As typed, rounded up to two digits."""
    unit = 10.0 ** (math.floor(math.log10(num_bytes / GB)) - 1)
    return f"{math.ceil(num_bytes / GB / unit) * unit:.2g}"


def cache_folder(stream: StreamConfig) -> str:
    """Where shards are kept on this machine.

    Raises:
        ConfigError: it is not on a disk of this machine.
    """
    if stream.cache_folder is None:
        return str(platformdirs.user_cache_path("wordlanes") / "shards")
    if not storage.is_local(stream.cache_folder):
        raise ConfigError(
            f"stream.cache_folder={stream.cache_folder} is not on this machine's disk; use a local folder"
        )
    return storage.absolute(stream.cache_folder)


class _NoRoomError(Exception):
    """Nothing more may go for a shard.

    Attributes:
        in_flight: whether something is being fetched, which may go once it is there.
    """

    def __init__(self, *, in_flight: bool) -> None:
        super().__init__()
        self.in_flight = in_flight


class _EndedError(Exception):
    """Nobody needs what is being fetched."""


class ShardCache:
    """One process's view of a folder of shards.

    Args:
        data: the remote corpus.
        folder: local and absolute; made if need be.
        limit_bytes: of all that is in it.
        digests: whether the digest is compared of a shard that another process has fetched.
        future: of this machine's lanes; None: nothing is known of it, and nothing is fetched ahead.
        shards: that this run reads besides, so that none of them is taken for another run's.

    Raises:
        ConfigError: the folder cannot be written to, or knows no locks.
    """

    def __init__(
        self,
        data: str,
        folder: str,
        *,
        limit_bytes: int,
        digests: bool,
        future: Future | None = None,
        shards: Iterable[Shard] = (),
    ) -> None:
        self._data, self._folder, self._limit_bytes, self._digests = data, Path(folder), limit_bytes, digests
        self._future = future
        self._own = {shard.sha256 for shard in shards} | (set() if future is None else future.names)
        self._sound: set[str] = set()  # shards whose digest this process knows to be right
        self._left: set[str] = set()  # shards that a lane has come to the end of in this step
        self._releases: list[Callable[[], None]] = []
        self._waited_seconds, self._num_waits = 0.0, 0
        self._step: int | None = None
        self._moved = threading.Condition()
        self._ended = False
        self._threads: list[threading.Thread] = []
        with self._alone():
            pass

    def on_release(self, release: Callable[[], None]) -> None:
        """Takes what lets go of the maps of whoever reads here: called where there is no room, and between epochs."""
        self._releases.append(release)

    def off_release(self, release: Callable[[], None]) -> None:
        """Whoever reads here has ended."""
        self._releases.remove(release)

    def open(self, shard: Shard) -> pa.Buffer:
        """A shard's bytes, memory-mapped; waits for them if need be. The map lives as long as the buffer.

        Raises:
            CorpusError: the shard is missing or not the manifest's.
            ConfigError: the store does not serve, or the folder has no room or cannot be written to.
        """
        began, released, forced = None, False, False
        while (found := self._mapped(shard)) is None:
            began = began or time.monotonic()
            try:
                if self._fetch(shard, ahead=False, forced=forced):
                    continue
            except _NoRoomError as lack:
                if not lack.in_flight:  # then first let go of what is mapped here, and then make others do so
                    if forced:
                        raise self._no_room(shard) from None
                    released, forced = True, released
                    self._release()
                    continue
            time.sleep(POLL_SECONDS)
        if began is not None:
            self._waited_seconds += time.monotonic() - began
            self._num_waits += 1
        return found

    def leave(self, shard: Shard) -> None:
        """Tells that a lane reads on beyond a shard's end, so that it may go for one that is needed at once."""
        self._left.add(shard.sha256)

    def at(self, step: int) -> None:
        """Tells how far the lanes have come, before that step's windows are read; shards are fetched from there on."""
        if self._future is None:
            return
        if self._waited_seconds > TOLD_SECONDS:
            log.info(
                "step %d waited %.1f s for %d token shard(s)", self._step or 0, self._waited_seconds, self._num_waits
            )
        self._waited_seconds, self._num_waits = 0.0, 0
        self._left = set()
        if self._future.starts_epoch(step):
            self._release()
        with self._moved:
            before, self._step = self._step, step
            if before is None:
                self._start()
            elif self._future.chunk_of(before) != self._future.chunk_of(step):
                self._moved.notify_all()

    def close(self) -> None:
        """Fetches no more; what is under way is given up."""
        with self._moved:
            self._ended = True
            self._moved.notify_all()
        for thread in self._threads:
            thread.join(CLOSE_SECONDS)
        self._release()

    # --- ahead of need

    def _start(self) -> None:
        self._trim()
        for number in range(NUM_THREADS):
            thread = threading.Thread(target=self._fetch_ahead, name=f"shards-{number}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _fetch_ahead(self) -> None:
        """Fetches what comes next until the bound is reached; then again when the lanes have moved."""
        complained = touched = -math.inf
        while not self._ended:
            step, fetched = self._step or 0, False
            try:
                fetched = self._fetch_next(step)
                if time.monotonic() - touched > TOUCH_SECONDS:
                    self._touch(step)
                    touched = time.monotonic()
            except _EndedError:
                return
            except Exception as error:  # noqa: BLE001  # told again to whoever needs the shard, where it stops the run
                if time.monotonic() - complained > FRESH_SECONDS:
                    log.warning("a token shard could not be fetched ahead of need: %s", error)
                    complained = time.monotonic()
            with self._moved:
                if not fetched and not self._ended and step == self._step:
                    self._moved.wait(IDLE_SECONDS)

    def _fetch_next(self, step: int) -> bool:
        """Fetches the next shard that is not there; whether there was one and room for it."""
        assert self._future is not None
        there = self._held()
        for shard in self._within_bound(step):
            if shard.sha256 in there or shard.sha256 + PART in there:
                continue
            try:
                if self._fetch(shard, ahead=True):
                    return True
            except _NoRoomError:
                return False
        return False

    def _within_bound(self, step: int) -> Iterator[Shard]:
        """What comes next, as far as the bound allows."""
        assert self._future is not None
        num_bytes = 0
        for shard in self._future.coming(step):
            num_bytes += shard.size_bytes
            if num_bytes > self._limit_bytes:
                return
            yield shard

    def _is_wanted(self, shard: Shard) -> bool:
        """Whether a shard is still to be fetched ahead of need: the lanes move on while a thread looks for one."""
        assert self._future is not None
        step = self._step or 0
        return shard.sha256 not in self._future.leaving(step) and shard in self._within_bound(step)

    def _touch(self, step: int) -> None:
        """Tells other runs that what is here for this one is wanted."""
        for shard in self._within_bound(step):
            with suppress(OSError):
                os.utime(self._folder / shard.sha256)

    # --- the folder

    def _mapped(self, shard: Shard) -> pa.Buffer | None:
        """A shard that is there; what is there and is not the shard is removed."""
        path = self._folder / shard.sha256
        with self._told(), suppress(FileNotFoundError):
            file = os.open(path, os.O_RDONLY)
            try:
                fcntl.flock(file, fcntl.LOCK_SH)
                status = os.fstat(file)
                if not status.st_nlink:
                    return None
                if status.st_size != shard.size_bytes:
                    self._discard(path, f"found {status.st_size} bytes, needed {shard.size_bytes}")
                    return None
                mapped = mmap.mmap(file, 0, access=mmap.ACCESS_READ)  # with a descriptor of its own, and so the lock
            finally:
                os.close(file)
            if self._digests and shard.sha256 not in self._sound:
                if (found := hashlib.sha256(mapped).hexdigest()) != shard.sha256:
                    self._discard(path, f"found sha256 {found}")
                    return None
                self._sound.add(shard.sha256)
            with suppress(OSError):  # another user's file is as good, but cannot be marked as used
                os.utime(path)
            return pa.py_buffer(mapped)
        return None

    def _discard(self, path: Path, why: str) -> None:
        log.warning("%s is damaged (%s); it is fetched anew", path, why)
        self._sound.discard(path.name)
        path.unlink(missing_ok=True)

    def _fetch(self, shard: Shard, *, ahead: bool, forced: bool = False) -> bool:
        """Fetches a shard; False if it is there or another fetches it.

        Raises:
            _NoRoomError: there is no room for it.
        """
        part = self._folder / (shard.sha256 + PART)
        with self._told():
            file = self._begin(shard, part, ahead=ahead, forced=forced)
            if file is None:
                return False
            try:
                self._fill(file, shard, ahead=ahead)
                os.fsync(file)
                with self._alone():  # else another may look just before, and find the part unlocked just after
                    part.rename(self._folder / shard.sha256)
            except BaseException:
                part.unlink(missing_ok=True)
                raise
            finally:
                os.close(file)
        self._sound.add(shard.sha256)
        return True

    def _begin(self, shard: Shard, part: Path, *, ahead: bool, forced: bool) -> int | None:
        """Makes room for a shard and takes it; None if the shard is there or another has begun."""
        with self._alone():
            held = self._held()
            self._remove_left(held)
            if shard.sha256 in held or part.name in held or (ahead and not self._is_wanted(shard)):
                return None
            total = sum(each.st_size for each in held.values())
            lack = shard.size_bytes - min(self._limit_bytes - total, shutil.disk_usage(self._folder).free)
            if lack > 0:
                lack = min(lack, shard.size_bytes)  # a run with a larger bound may have filled the folder
                self._make_room(shard, held, lack, ahead=ahead, forced=forced)
            file = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
                os.posix_fallocate(file, 0, max(1, shard.size_bytes))
            except BaseException:
                part.unlink()
                os.close(file)
                raise
            return file

    def _make_room(
        self, shard: Shard, held: Mapping[str, os.stat_result], lack: int, *, ahead: bool, forced: bool
    ) -> None:
        """Removes shards, or none if not enough of them may go."""
        used = _last_uses(held)
        order = eviction_order(used | {shard.sha256: math.inf}, self._coming())
        if ahead:
            fresh = self._others_fresh(used)
            order = [name for name in order[: order.index(shard.sha256)] if name not in fresh]
        else:
            left = self._left if self._future is None else self._left - self._future.soon(self._step or 0)
            order.sort(key=lambda name: name not in left)
        going = []
        with ExitStack() as locks:
            for name in order:
                if lack <= 0:
                    break
                if name != shard.sha256 and (forced or self._nobody_has(self._folder / name, locks)):
                    going.append(name)
                    lack -= held[name].st_size
            if lack > 0:
                raise _NoRoomError(in_flight=any(name.endswith(PART) for name in held))
            for name in going:
                (self._folder / name).unlink(missing_ok=True)

    def _trim(self) -> None:
        """Removes what is beyond the bound, which may have been larger before: what no run has mapped or used lately.

        What this run will use goes too, however fresh it is.
        """
        with self._told(), self._alone(), ExitStack() as locks:
            held = self._held()
            used = _last_uses(held)
            fresh = self._others_fresh(used)
            excess = sum(each.st_size for each in held.values()) - self._limit_bytes
            for name in eviction_order(used, self._coming()):
                if excess > 0 and name not in fresh and self._nobody_has(self._folder / name, locks):
                    (self._folder / name).unlink(missing_ok=True)
                    excess -= held[name].st_size

    def _coming(self) -> Iterator[str]:
        if self._future is not None:
            yield from (shard.sha256 for shard in self._future.coming(self._step or 0))

    def _fill(self, file: int, shard: Shard, *, ahead: bool) -> None:
        """Writes a shard's bytes and compares them with the manifest."""
        path = storage.join(self._data, shard.name)
        for attempt in range(1, TRIES + 1):
            digest, num_bytes = hashlib.sha256(), 0
            os.lseek(file, 0, os.SEEK_SET)
            try:
                for piece in storage.read_pieces(path, PIECE_BYTES):
                    if ahead and self._ended:
                        raise _EndedError
                    num_bytes += len(piece)
                    if num_bytes <= shard.size_bytes:
                        _write(file, piece)
                    digest.update(piece)
            except FileNotFoundError as error:
                raise CorpusError(f"token shard {path} is not there, though the manifest names it; {MEND}") from error
            if num_bytes == shard.size_bytes and digest.hexdigest() == shard.sha256:
                return
            found, needed = f"{num_bytes} bytes", f"{shard.size_bytes}"
            if num_bytes == shard.size_bytes:
                found, needed = f"sha256 {digest.hexdigest()}", shard.sha256
            if attempt < TRIES:
                log.warning("token shard %s: found %s, needed %s; fetching it once more", path, found, needed)
        raise CorpusError(f"token shard {path}: found {found}, needed {needed}, {TRIES} times; {MEND}")

    def _held(self) -> dict[str, os.stat_result]:
        """What is in the folder; what is not of this kind is not looked at."""
        found = {}
        with self._told(), suppress(FileNotFoundError), os.scandir(self._folder) as entries:
            for entry in entries:
                if NAME.fullmatch(entry.name):
                    with suppress(FileNotFoundError):
                        found[entry.name] = entry.stat()
        return found

    def _remove_left(self, held: dict[str, os.stat_result]) -> None:
        """Removes the parts of processes that died."""
        for name in [name for name in held if name.endswith(PART)]:
            with ExitStack() as locks:
                if self._nobody_has(self._folder / name, locks):
                    (self._folder / name).unlink(missing_ok=True)
                    del held[name]

    def _nobody_has(self, path: Path, locks: ExitStack) -> bool:
        """Whether a file was locked by nobody; then it is locked, until the locks are let go of."""
        try:
            file = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            return True
        locks.callback(os.close, file)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """No other process or thread adds or removes a shard meanwhile."""
        with storage.lock_file(str(self._folder / LOCK_NAME)) as file, self._told():
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Tells of a folder that fails in the user's terms."""
        try:
            yield
        except OSError as error:
            raise ConfigError(
                f"stream.cache_folder={self._folder} cannot be used ({error.strerror}); mend its rights or the disk's"
                " space, or use another folder on a disk of this machine"
            ) from error

    def _no_room(self, shard: Shard) -> ConfigError:
        free = shutil.disk_usage(self._folder).free
        return ConfigError(
            f"stream.cache_folder={self._folder} has no room for token shard {shard.name}: found {free} bytes free on"
            f" its disk and stream.cache_gb={self._limit_bytes / GB:g}, needed {shard.size_bytes} bytes; free some, use"
            " another folder or a larger stream.cache_gb"
        )

    def _release(self) -> None:
        for release in self._releases:
            release()

    def _others_fresh(self, used: Mapping[str, float]) -> set[str]:
        """Of shards with the time of their last use, those that another run has used lately."""
        return {name for name, time_ in used.items() if time_ > time.time() - FRESH_SECONDS} - self._own


def _last_uses(held: Mapping[str, os.stat_result]) -> dict[str, float]:
    """Of the whole shards."""
    return {name: status.st_mtime for name, status in held.items() if not name.endswith(PART)}


def _write(file: int, piece: bytes) -> None:
    view = memoryview(piece)
    while view:
        view = view[os.write(file, view) :]

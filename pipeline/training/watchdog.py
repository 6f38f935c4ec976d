"""Notices a rank that hangs, names it, and ends the group, so that whoever started it starts it again.

In: a mark at each step. Out: nothing, or the end of this process with `HUNG`. Each rank's thread tells the others once
in a while where its training stands. A rank that is not heard of for too long hangs: the first rank listens to all
others, they to the first. If training stands still for too long though all are heard of, the rank that has come least
far hangs: the others wait for it in the exchange of gradients.

The board on which they write is on the loopback address where all ranks share one. Elsewhere others may reach it: each
word is sealed with a key that the ranks alone have, and one that is forged or old is passed over.
"""

import hmac
import json
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from torch.distributed import DistError

from pipeline.run.meeting import open_store
from pipeline.training.collectives import Collectives

if TYPE_CHECKING:
    from torch._C._distributed_c10d import TCPStore  # torch.distributed.TCPStore, which mypy does not find

log = logging.getLogger(__name__)

HUNG = 75  # exit code: a failure that may pass
ORDER = ("between steps", "computing", "exchanging")  # how far a rank has come within a step

Word = tuple[int, int, float, float]  # step, index in ORDER, the rank's clock, seconds that it has stood there


class Watchdog:
    """A thread of each rank; on all but the first a second one, since what that one asks may never be answered.

    Args:
        ranks: the ranks.
        hang_seconds: without a step, or without word of a rank, before it is taken to hang.
        host: address of the first rank, for the others.
        report: (rank that hangs or None, what is known) of a hang; called on one rank.
    """

    def __init__(
        self, *, ranks: Collectives, hang_seconds: float, host: str, report: Callable[[int | None, str], None]
    ) -> None:
        self.ranks = ranks
        self.hang_seconds = hang_seconds
        self.report = report
        self._period = min(1.0, hang_seconds / 5)
        self._key = ranks.from_first(secrets.token_bytes(32))
        self._words: dict[int, Word] = {}  # the newest sound one of each rank that was looked at
        self._store = self._open_store(host)
        self._mark = (0, ORDER[0], time.monotonic())
        self._paused = False
        self._ended = threading.Event()
        self._threads: list[threading.Thread] = []
        self._turned = time.monotonic()  # when the board last answered
        self._verdict = threading.Lock()  # for the first to come to one

    def _open_store(self, host: str) -> "TCPStore | None":
        """The board on which the ranks write; the first one keeps it."""
        if self.ranks.world_size == 1:
            return None
        patience = timedelta(seconds=self.hang_seconds)
        store = None
        if self.ranks.first:
            store = open_store(host, 0, first=True, timeout=patience)
        port = self.ranks.from_first(store.port if store is not None else 0)
        return store or open_store(host, port, first=False, timeout=patience)

    def start(self, step: int) -> None:
        """Begins to watch."""
        self.mark(step, ORDER[0])
        self._publish()
        self.ranks.from_first(None)  # every rank's first word is there before any looks for it
        self._turned = time.monotonic()
        self._threads.append(threading.Thread(target=self._watch, name="watchdog", daemon=True))
        if not self.ranks.first:
            self._threads.append(threading.Thread(target=self._watch_board, name="watchdog of the board", daemon=True))
        for thread in self._threads:
            thread.start()

    def mark(self, step: int, phase: str) -> None:
        """Notes how far this rank has come."""
        self._mark = (step, phase, time.monotonic())

    @contextmanager
    def paused(self) -> Iterator[None]:
        """For what may take long: until its end no step is waited for, but every rank must still be heard of."""
        self._paused = True
        try:
            yield
        finally:
            step, phase, _ = self._mark
            self.mark(step, phase)
            self._paused = False

    def stop(self) -> None:
        """Watches no more; a thread that is still at the store when the process ends would bring it to a bad end."""
        self._ended.set()
        for thread in self._threads:
            thread.join(timeout=self.hang_seconds)

    def _watch(self) -> None:
        heard: dict[int, tuple[Word | None, float]] = {}  # of each rank watched: its last word, and when it was new
        while not self._ended.wait(self._period):
            now = self._turned = time.monotonic()
            verdict: tuple[int | None, str] | None = None
            try:
                self._publish()
                for rank in self._watched():
                    word = self._word_of(rank)
                    if rank not in heard or word != heard[rank][0]:
                        heard[rank] = (word, now)
                    elif now - heard[rank][1] > self.hang_seconds:
                        verdict = (rank, f"rank {rank} was not heard of for {self.hang_seconds:g} s")
            except (DistError, RuntimeError) as error:
                if self._ended.is_set() or time.monotonic() - now < self.hang_seconds / 2:
                    return  # the first rank is gone, which the exchange of gradients and the supervisor notice
                verdict = (0, f"rank 0 was not heard of for {self.hang_seconds:g} s ({_one_line(error)})")
            if verdict is None and not self._paused and now - self._mark[2] > self.hang_seconds:
                verdict = self._least_far()
            if verdict is not None and not self._ended.is_set():
                self._end(*verdict)

    def _watch_board(self) -> None:
        """Where the first rank's process was stopped, torch's store waits for it whatever the timeout."""
        while not self._ended.wait(self._period):
            if time.monotonic() - self._turned > self.hang_seconds + self._period:
                self._end(0, f"rank 0 was not heard of for {self.hang_seconds:g} s")

    def _watched(self) -> range:
        """The first rank looks at all others; they look at the first."""
        return range(1, self.ranks.world_size) if self.ranks.first else range(1)

    def _publish(self) -> None:
        if self._store is not None:
            step, phase, since = self._mark
            now = time.monotonic()
            text = json.dumps([step, ORDER.index(phase), now, now - since])
            self._store.set(str(self.ranks.rank), self._sealed(self.ranks.rank, text))

    def _sealed(self, rank: int, text: str) -> str:
        return f"{hmac.new(self._key, f'{rank} {text}'.encode(), 'sha256').hexdigest()} {text}"

    def _word_of(self, rank: int) -> Word | None:
        """The newest word of a rank; what stands on the board is passed over if it is forged or was said before."""
        assert self._store is not None
        found, before = self._store.get(str(rank)), self._words.get(rank)
        text = str(found, "utf-8", "replace").partition(" ")[2]
        if hmac.compare_digest(found, self._sealed(rank, text).encode()):
            word: Word = tuple(json.loads(text))
            if before is None or word[2] > before[2]:
                self._words[rank] = word
        return self._words.get(rank)

    def _least_far(self) -> tuple[int | None, str]:
        """The rank for which the others wait, from what each last told of itself."""
        step, phase, _ = self._mark
        if self._store is None:
            return 0, f"rank 0 stood still for {self.hang_seconds:g} s, {phase}, after step {step}"
        words = {rank: word for rank in range(self.ranks.world_size) if (word := self._word_of(rank)) is not None}
        places = {rank: word[:2] for rank, word in words.items()}
        least = min(places.values(), default=(step, 0))
        furthest_behind = [rank for rank, place in places.items() if place == least]
        if len(furthest_behind) != 1:
            return None, f"no rank made a step for {self.hang_seconds:g} s, after step {least[0]}"
        (rank,) = furthest_behind
        where = f"{ORDER[least[1]]}, after step {least[0]}"
        return rank, f"rank {rank} stood still for {self.hang_seconds:g} s, {where}"

    def _end(self, rank: int | None, cause: str) -> None:
        """Ends this process; whoever waits for a rank that hangs cannot be woken otherwise."""
        if not self._verdict.acquire(blocking=False):
            return
        teller = 1 if rank == 0 and self.ranks.world_size > 1 else 0
        if self.ranks.rank == teller:
            log.error("%s: the group ends, and goes on from its last checkpoint when it is started again", cause)
            self.report(rank, cause)
        else:
            time.sleep(self._period)  # the ledger first
        os._exit(HUNG)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:100]

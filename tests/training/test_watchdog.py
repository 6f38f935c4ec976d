"""When a rank is taken to hang, and which: on a board in memory, by a clock that the test turns; no process ends."""

import json
import logging
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from torch.distributed import DistError

from pipeline.training import watchdog
from pipeline.training.watchdog import HUNG, Watchdog

HANG_SECONDS = 10.0
PERIOD_SECONDS = 1.0
PATIENCE_SECONDS = 60.0


class Clock:
    """`time`, as far as the watchdog needs it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Board:
    """torch's store; each rank has its own view of the same words."""

    words: ClassVar[dict[str, str]] = {}
    made: ClassVar[list[tuple[tuple[Any, ...], dict[str, Any]]]] = []

    def __init__(self, *place: Any, **how: Any) -> None:
        self.made.append((place, how))
        self.port = 4711
        self.failure: Exception | None = None
        self.on_get: Callable[[], None] = lambda: None

    def set(self, key: str, value: str) -> None:
        if self.failure is not None:
            self.on_get()
            raise self.failure
        self.words[key] = value

    def get(self, key: str) -> bytes:
        return self.words[key].encode(errors="surrogateescape")


def from_first(value: Any) -> Any:
    """What the first rank tells: the key, the port, or that it waits."""
    return b"key" if isinstance(value, bytes) else value or (Board.made and 4711)


def said(word: str) -> list[float]:
    """What a rank says in a word on the board, without its seal."""
    said: list[float] = json.loads(word.partition(" ")[2])
    return said


class Turns:
    """In the place of the event for which a watch waits: so many turns, with something done before each."""

    def __init__(self, clock: Clock, num_turns: int, before: Callable[[int], None]) -> None:
        self.clock, self.left, self.before, self.turn = clock, num_turns, before, 0

    def wait(self, seconds: float) -> bool:
        if self.left == 0:
            return True
        self.left -= 1
        self.turn += 1
        self.clock.now += seconds
        self.before(self.turn)
        return False

    def is_set(self) -> bool:
        return False


class Ranks:
    """The watchdogs of all ranks, what they told, and with which codes their processes would have ended."""

    def __init__(self, world_size: int, clock: Clock, ends: list[int]) -> None:
        self.clock, self.ends = clock, ends
        self.told: list[tuple[int, int | None, str]] = []  # by which rank, of which, what
        self.dogs = [self._dog(rank, world_size) for rank in range(world_size)]
        for dog in self.dogs:
            dog._publish()

    def _dog(self, rank: int, world_size: int) -> Watchdog:
        ranks = SimpleNamespace(rank=rank, world_size=world_size, first=rank == 0, from_first=from_first)
        return Watchdog(
            ranks=ranks,  # type: ignore[arg-type]
            hang_seconds=HANG_SECONDS,
            host="head",
            report=lambda hanging, cause: self.told.append((rank, hanging, cause)),
        )

    def watch(self, rank: int, num_turns: int, before: Callable[[int], None] = lambda turn: None) -> None:
        """One rank's watch, for so many periods, or until it ends its process."""
        dog = self.dogs[rank]

        def turn(number: int) -> None:
            if self.ends:
                turns.left = 0
            before(number)

        turns = Turns(self.clock, num_turns, turn)
        dog._ended = turns  # type: ignore[assignment]
        dog._watch()

    def others(self, rank: int, *, but: tuple[int, ...] = ()) -> Callable[[int], None]:
        """Has the watches of all other ranks tell where they stand."""

        def publish(turn: int) -> None:
            for other, dog in enumerate(self.dogs):
                if other != rank and other not in but:
                    dog._publish()

        return publish


@pytest.fixture
def make_ranks(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], Ranks]]:
    clock, ends = Clock(), list[int]()
    monkeypatch.setattr(watchdog, "time", clock)
    monkeypatch.setattr(watchdog, "open_store", Board)
    monkeypatch.setattr(watchdog.os, "_exit", ends.append)
    monkeypatch.setattr(Board, "words", {})
    monkeypatch.setattr(Board, "made", [])
    yield lambda world_size: Ranks(world_size, clock, ends)


MakeRanks = Callable[[int], Ranks]


def test_a_single_process_that_stands_still_is_ended_once_and_told_of(
    make_ranks: MakeRanks, caplog: pytest.LogCaptureFixture
) -> None:
    ranks = make_ranks(1)
    ranks.dogs[0].mark(7, "computing")
    ranks.watch(0, 10)
    assert (ranks.told, ranks.ends) == ([], [])
    with caplog.at_level(logging.ERROR):
        ranks.watch(0, 5)
    cause = "rank 0 stood still for 10 s, computing, after step 7"
    assert ranks.told == [(0, 0, cause)]
    assert ranks.ends == [HUNG]
    assert caplog.messages == [
        f"{cause}: the group ends, and goes on from its last checkpoint when it is started again"
    ]
    ranks.dogs[0]._end(0, "seen by the other thread")
    assert ranks.ends == [HUNG]
    assert Board.made == []


def test_a_process_that_makes_steps_is_left_alone(make_ranks: MakeRanks) -> None:
    ranks = make_ranks(1)
    ranks.watch(0, 50, lambda turn: ranks.dogs[0].mark(turn // 9, "exchanging") if turn % 9 == 0 else None)
    assert ranks.ends == []


def test_what_may_take_long_is_not_waited_for_and_then_the_clock_begins_anew(make_ranks: MakeRanks) -> None:
    ranks = make_ranks(2)
    dog = ranks.dogs[0]
    dog.mark(7, "computing")
    with dog.paused():
        ranks.watch(0, 30, ranks.others(0))
        assert ranks.ends == []
    ranks.watch(0, 10, ranks.others(0))
    assert ranks.ends == []
    ranks.dogs[1].mark(6, "computing")
    ranks.watch(0, 2, ranks.others(0))
    assert ranks.told == [(0, 1, "rank 1 stood still for 10 s, computing, after step 6")]


def test_a_pause_that_fails_ends_too(make_ranks: MakeRanks) -> None:
    ranks = make_ranks(1)
    with pytest.raises(ValueError, match="a bug"), ranks.dogs[0].paused():
        raise ValueError("a bug")
    ranks.watch(0, 12)
    assert ranks.ends == [HUNG]


@pytest.mark.parametrize(("silent", "paused"), [(1, False), (2, True), (3, False)])
def test_the_first_rank_names_one_that_is_not_heard_of_even_in_a_pause(
    silent: int, paused: bool, make_ranks: MakeRanks
) -> None:
    ranks = make_ranks(4)
    moving = ranks.others(0, but=(silent,))

    def before(turn: int) -> None:
        moving(turn)
        ranks.dogs[0].mark(turn, "computing")

    ranks.dogs[0]._paused = paused
    ranks.watch(0, 11, before)
    assert ranks.ends == []
    ranks.watch(0, 30, before)
    assert ranks.told == [(0, silent, f"rank {silent} was not heard of for 10 s")]
    assert ranks.ends == [HUNG]


@pytest.mark.parametrize(("rank", "teller"), [(1, True), (2, False)])
def test_the_others_look_at_the_first_rank_alone_and_one_of_them_tells(
    rank: int, teller: bool, make_ranks: MakeRanks
) -> None:
    ranks = make_ranks(3)

    def before(turn: int) -> None:
        ranks.dogs[rank].mark(turn, "computing")

    def heard(turn: int) -> None:
        before(turn)
        ranks.dogs[0]._publish()

    ranks.watch(rank, 30, heard)  # of the third one nothing is heard, which is the first one's to notice
    assert ranks.ends == []
    ranks.watch(rank, 30, before)
    assert ranks.ends == [HUNG]
    assert ranks.told == ([(rank, 0, "rank 0 was not heard of for 10 s")] if teller else [])


def test_who_does_not_tell_ends_after_who_does(make_ranks: MakeRanks) -> None:
    ranks = make_ranks(3)
    now = ranks.clock.now
    ranks.dogs[1]._end(2, "hangs")
    assert (ranks.told, ranks.ends, ranks.clock.now - now) == ([], [HUNG], PERIOD_SECONDS)
    ranks.dogs[0]._end(2, "hangs")
    assert ranks.told == [(0, 2, "hangs")]
    assert ranks.clock.now - now == PERIOD_SECONDS


PLACES: list[tuple[list[tuple[int, str]], int | None, str]] = [
    (
        [(8, "between steps"), (7, "exchanging"), (8, "computing")],
        1,
        "rank 1 stood still for 10 s, exchanging, after step 7",
    ),
    (
        [(7, "exchanging"), (7, "exchanging"), (7, "computing")],
        2,
        "rank 2 stood still for 10 s, computing, after step 7",
    ),
    (
        [(7, "between steps"), (7, "computing"), (7, "exchanging")],
        0,
        "rank 0 stood still for 10 s, between steps, after step 7",
    ),
    ([(7, "exchanging"), (7, "exchanging"), (7, "exchanging")], None, "no rank made a step for 10 s, after step 7"),
    ([(9, "exchanging"), (7, "computing"), (7, "computing")], None, "no rank made a step for 10 s, after step 7"),
]


@pytest.mark.parametrize(("places", "hanging", "cause"), PLACES)
def test_the_rank_that_has_come_least_far_is_named(
    places: list[tuple[int, str]], hanging: int | None, cause: str, make_ranks: MakeRanks
) -> None:
    ranks = make_ranks(3)
    for dog, (step, phase) in zip(ranks.dogs, places, strict=True):
        dog.mark(step, phase)
    teller = 1 if hanging == 0 else 0
    ranks.watch(teller, 12, ranks.others(teller))
    assert ranks.told == [(teller, hanging, cause)]
    assert ranks.ends == [HUNG]


def test_a_first_rank_that_has_gone_is_left_to_others_to_notice(make_ranks: MakeRanks) -> None:
    ranks = make_ranks(2)
    store = ranks.dogs[1]._store
    assert isinstance(store, Board)
    store.failure = DistError("Connection reset\nby peer")
    ranks.watch(1, 30)
    assert ranks.ends == []


def test_a_board_that_does_not_answer_means_that_the_first_rank_hangs(make_ranks: MakeRanks) -> None:
    ranks = make_ranks(2)
    store = ranks.dogs[1]._store
    assert isinstance(store, Board)
    store.failure = RuntimeError("Timed out\nafter all of it")
    store.on_get = lambda: ranks.clock.sleep(HANG_SECONDS)
    ranks.watch(1, 1)
    assert ranks.told == [(1, 0, "rank 0 was not heard of for 10 s (Timed out after all of it)")]
    assert ranks.ends == [HUNG]


def test_a_board_that_never_answers_is_noticed_by_the_second_thread(make_ranks: MakeRanks) -> None:
    ranks = make_ranks(2)
    dog = ranks.dogs[1]
    dog._ended = Turns(ranks.clock, 11, lambda turn: None)  # type: ignore[assignment]
    dog._watch_board()
    assert ranks.ends == []
    dog._ended = Turns(ranks.clock, 1, lambda turn: None)  # type: ignore[assignment]
    dog._watch_board()
    assert ranks.told == [(1, 0, "rank 0 was not heard of for 10 s")]
    ranks = make_ranks(2)
    dog = ranks.dogs[1]
    for _ in range(3):  # as long as the first thread turns, the board answers
        ranks.watch(1, 6, ranks.others(1))
        dog.mark(0, "computing")
        dog._ended = Turns(ranks.clock, 6, lambda turn: None)  # type: ignore[assignment]
        dog._watch_board()
    assert ranks.ends == [HUNG]  # that of before


def test_each_rank_tells_where_it_stands_and_that_it_lives(make_ranks: MakeRanks) -> None:
    ranks = make_ranks(2)
    ranks.dogs[1].mark(7, "exchanging")
    ranks.clock.sleep(3.0)
    ranks.dogs[1]._publish()
    first = Board.words["1"]
    assert said(first) == [7, 2, ranks.clock.now, 3.0]
    ranks.clock.sleep(1.0)
    ranks.dogs[1]._publish()
    assert Board.words["1"] != first


@pytest.mark.parametrize("words", ["", "rubbish", "00 [99, 0, 1e9, 0]", '["not", "sealed"]', "\udcff"])
def test_a_foreign_word_on_the_board_is_passed_over(words: str, make_ranks: MakeRanks) -> None:
    """It neither ends the group nor keeps a rank that hangs from being noticed."""
    ranks = make_ranks(2)

    def before(turn: int) -> None:
        ranks.dogs[0].mark(turn, "computing")
        Board.words["1"] = words if turn % 2 else Board.words["1"]
        if turn % 2 == 0:
            ranks.dogs[1]._publish()

    ranks.watch(0, 30, before)
    assert ranks.ends == []
    own = Board.words["1"]

    def replay(turn: int) -> None:
        ranks.dogs[0].mark(100 + turn, "computing")
        Board.words["1"] = [own, words][turn % 2]

    ranks.watch(0, 30, replay)
    assert ranks.told == [(0, 1, "rank 1 was not heard of for 10 s")]


def test_a_word_of_another_rank_or_of_before_is_none_of_this_one(make_ranks: MakeRanks) -> None:
    ranks = make_ranks(2)
    dog = ranks.dogs[0]
    ranks.clock.sleep(1.0)
    ranks.dogs[0]._publish()
    before = dog._word_of(1)
    assert before is not None
    sound = Board.words["1"]
    Board.words["1"] = Board.words["0"]
    assert dog._word_of(1) == before
    ranks.dogs[1].mark(3, "computing")
    ranks.clock.sleep(1.0)
    ranks.dogs[1]._publish()
    assert (after := dog._word_of(1)) != before
    Board.words["1"] = sound
    assert dog._word_of(1) == after


def test_the_first_rank_keeps_the_board_and_nobody_waits_for_it_longer_than_for_a_hang(make_ranks: MakeRanks) -> None:
    make_ranks(2)
    patience = timedelta(seconds=HANG_SECONDS)
    assert Board.made == [
        (("head", 0), {"first": True, "timeout": patience}),
        (("head", 4711), {"first": False, "timeout": patience}),
    ]


@pytest.mark.parametrize(("hang_seconds", "period_seconds"), [(600.0, 1.0), (5.0, 1.0), (1.0, 0.2)])
def test_it_looks_often_enough(hang_seconds: float, period_seconds: float, make_ranks: MakeRanks) -> None:
    make_ranks(1)
    ranks: Any = SimpleNamespace(rank=0, world_size=1, first=True, from_first=from_first)
    dog = Watchdog(ranks=ranks, hang_seconds=hang_seconds, host="head", report=lambda rank, cause: None)
    assert dog._period == period_seconds


@pytest.mark.parametrize(("rank", "names"), [(0, ["watchdog"]), (1, ["watchdog", "watchdog of the board"])])
def test_it_watches_from_its_start_to_its_stop(rank: int, names: list[str], make_ranks: MakeRanks) -> None:
    ranks = make_ranks(2)
    dog = ranks.dogs[rank]
    Board.words.clear()
    there: list[set[str]] = []
    dog.ranks.from_first = lambda value: there.append(set(Board.words))  # type: ignore[assignment,func-returns-value]
    dog._period = PATIENCE_SECONDS  # no turn, unless it is stopped
    ranks.clock.sleep(1e9)
    dog.start(7)
    assert there == [{str(rank)}]
    assert said(Board.words[str(rank)])[:2] == [7, 0]
    assert dog._turned == ranks.clock.now
    threads = [thread for thread in threading.enumerate() if thread in dog._threads]
    assert sorted(thread.name for thread in threads) == names
    assert all(thread.daemon for thread in threads)
    dog.stop()
    assert not any(thread.is_alive() for thread in threads)
    assert ranks.ends == []
    dog.stop()


def test_a_verdict_that_comes_after_the_stop_ends_nothing(make_ranks: MakeRanks) -> None:
    ranks = make_ranks(1)
    dog = ranks.dogs[0]
    over = Turns(ranks.clock, 12, lambda turn: None)
    over.is_set = lambda: True  # type: ignore[method-assign]
    dog._ended = over  # type: ignore[assignment]
    dog._watch()
    assert ranks.ends == []

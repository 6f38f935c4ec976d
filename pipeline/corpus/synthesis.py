"""Made text at the scale of a real corpus: to see how long a billion words take, and with how much memory.

In: a folder, the number of words and a seed. Out: files `00000.txt`, ... of `PART_WORDS` words each, the last one
shorter. Refuses: a folder with files of another kind, number of words or seed, or one that another process writes to.

Words are drawn one by one, whatever stood before. Up to rank `HEAD` their shares fall by Zipf's law in the form of
Mandelbrot, 1 / (rank + 3/2); beyond it as rank^(-5/3), on and on, so that new words keep appearing: n words of text
hold some K·n^(3/5) different ones, as Heaps' law has it (3.4 million in a billion). Rank 2 is the comma. A line is a
sentence of some 20 words, of which the last is the full stop; both marks are words of their own, so `corpus.words` may
be `whitespace`. A word's letters are a function of its rank alone, and rarer words are longer.

A part is a function of (seed, its number), and tasks make the parts: their number and order leave no trace. The same
bytes come on every machine: what is used of numpy are the raw integers of Philox, and of arithmetic only integers and
what IEEE 754 rounds correctly (a power of -3/2 is a square root, a product and a quotient; libraries differ in `pow`).
"""

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline import storage
from pipeline.corpus.arrays import as_arrow, strings
from pipeline.corpus.folder import locked
from pipeline.corpus.phases import NoProgress, Phases, Progress, RunTasks
from pipeline.errors import ConfigError

FORMAT = 1  # to be raised when the same seed would give other bytes
RECORD_NAME = ".synthesis.json"  # hidden, as is the lock: whoever reads the folder as text passes them over
LOCK_NAME = ".synthesis.lock"
HALF_WRITTEN = re.compile(r"(.*\.txt)(\.[0-9a-f]{8})?\.tmp")  # a file that a killed task left
MEND = "use another to=FOLDER"

PART_WORDS = 10_000_000
BLOCK_WORDS = 100_000  # made at a time; a block ends with its line

HEAD = 2000  # ranks by Zipf's and Mandelbrot's law
SLOT_BITS = 20  # of a drawn integer, for a rank of the head or for the tail
TAIL_BITS = 34  # of it, for a rank of the tail
LINE_END, COMMA = 0, 2  # among ranks, which begin with 1
SPELLED = 1 << 15  # words that are spelled once and kept; the others make up 3% of a text

# No letter that ends a syllable begins one, so two words with other syllables differ. A power of two of them.
SYLLABLES = (
    *("ta", "hen", "do", "mis", "ka", "pel", "go", "bir", "vu", "tor", "he", "dan", "mi", "kos", "pu", "gel"),
    *("ba", "vin", "te", "hol", "di", "mar", "ke", "pos", "gi", "ber", "va", "tun", "ho", "des", "mo", "kil"),
)
DIGIT_BITS = 5
MAX_SYLLABLES = 13  # of the largest rank

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Synthesis:
    """What a folder of made text is made of."""

    num_words: int
    seed: int
    part_words: int = PART_WORDS
    format: int = FORMAT


@dataclass(frozen=True)
class Part:
    """A file to make."""

    path: str
    seed: int
    number: int
    num_words: int


@dataclass(frozen=True)
class Made:
    """A file that was made."""

    num_words: int
    size_bytes: int


def synthesize(synthesis: Synthesis, to: str, *, run_tasks: RunTasks, progress: Progress | None = None) -> list[Made]:
    """Makes the files that the folder lacks.

    Args:
        synthesis: what to make.
        to: the folder, local or in an object store; made if need be.
        run_tasks: runs a function over items, in any order and on any number of workers.
        progress: receives reports of tasks.

    Returns:
        the files made by this call.

    Raises:
        ConfigError: the folder is not one to write to, or another process does.
    """
    check_target(synthesis, to)
    with locked(storage.join(to, LOCK_NAME), busy=f"to={to} is written to by another process; wait for it or {MEND}"):
        there = check_target(synthesis, to)
        for path in storage.list_files(to):
            if HALF_WRITTEN.fullmatch(path.rpartition("/")[2]):
                storage.remove(path)
        storage.publish_bytes(storage.join(to, RECORD_NAME), _record(synthesis))
        missing = [part for part in _parts(synthesis, to) if _name(part.number) not in there]
        run = Phases(run_tasks, progress or NoProgress(), ())
        return run("synthesize", make_part, missing, num_words=lambda made: made.num_words)


def check_target(synthesis: Synthesis, to: str) -> set[str]:
    """The names of the files that are made already; each is whole, since it was published so.

    Raises:
        ConfigError: the folder is a file, or holds what this synthesis would not have written.
    """
    if storage.exists(to) and not storage.is_folder(to):
        raise ConfigError(f"to={to} is a file, needed a folder; {MEND}")
    root = storage.canonical(to).rstrip("/") + "/"
    found = storage.list_files(to) if storage.exists(to) else []
    names = {storage.canonical(path).removeprefix(root) for path in found}
    record = storage.read_or_nothing(storage.join(to, RECORD_NAME))
    if record not in (b"", _record(synthesis)):
        raise ConfigError(
            f"to={to} holds text of {record.decode(errors='replace')}, needed {_record(synthesis).decode()};"
            f" give the same num_words and seed, or {MEND}"
        )
    parts = {_name(part.number) for part in _parts(synthesis, to)} if record else set()
    if others := sorted(name for name in names if _whole_name(name) not in parts):
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        raise ConfigError(f"to={to} holds {others[0]}{more}, which synthesize did not write there; {MEND}")
    return names & parts


def _whole_name(name: str) -> str:
    """The name itself, or that of the file of which a killed task left a half under this name."""
    half = HALF_WRITTEN.fullmatch(name)
    return half[1] if half else name


def make_part(part: Part) -> Made:
    """Publishes a file."""
    size_bytes = 0
    with storage.publish(part.path, shared=True) as file:
        for block in made_blocks(part.num_words, seed=part.seed, number=part.number):
            size_bytes += file.write(block)
    return Made(part.num_words, size_bytes)


def made_blocks(num_words: int, *, seed: int, number: int) -> Iterator[pa.Buffer]:
    """The text of a part, a bounded piece at a time."""
    generator = np.random.Philox(key=np.array([seed, number], dtype=np.uint64))
    for start in range(0, num_words, BLOCK_WORDS):
        ranks = draw_ranks(generator, min(BLOCK_WORDS, num_words - start))
        rare = np.flatnonzero(ranks > SPELLED)
        words = pa.concat_arrays([_common_words(), spell(ranks[rare] - 1)])
        ranks[rare] = np.arange(SPELLED + 1, SPELLED + 1 + len(rare))
        yield _joined(words.take(as_arrow(ranks)))


def _parts(synthesis: Synthesis, to: str) -> list[Part]:
    starts = range(0, synthesis.num_words, synthesis.part_words)
    return [
        Part(
            storage.join(to, _name(number)),
            synthesis.seed,
            number,
            min(synthesis.part_words, synthesis.num_words - start),
        )
        for number, start in enumerate(starts)
    ]


def _name(number: int) -> str:
    return f"{number:05d}.txt"


def _record(synthesis: Synthesis) -> bytes:
    return json.dumps(asdict(synthesis)).encode()


# --- which words


def draw_ranks(generator: np.random.Philox, num_words: int) -> Integers:
    """Ranks of words in the order of the text; `LINE_END` for the full stop with which a line ends.

    An integer of 64 bits makes a word: its upper bits choose a rank of the head or the tail, its lower ones, as a
    fraction u in (0, 1], the rank of the tail, HEAD·u^(-3/2).
    """
    drawn = generator.random_raw(num_words)
    ranks: Integers = _slots()[drawn >> np.uint64(64 - SLOT_BITS)]
    tail = np.flatnonzero(ranks > HEAD)
    share = ((drawn[tail] & np.uint64((1 << TAIL_BITS) - 1)) + np.uint64(1)) / float(1 << TAIL_BITS)
    ranks[tail] = 1 + (HEAD / (share * np.sqrt(share))).astype(np.int64)
    ranks[_line_ends(generator, num_words)] = LINE_END
    return ranks


def _line_ends(generator: np.random.Philox, num_words: int) -> Integers:
    """Where lines end: lengths from 4 to 67, of which most are near 20, and the last one as it comes."""
    drawn = generator.random_raw(num_words // 8 + 1)  # each makes two lengths of at least 4
    a, b, c, d = ((drawn[:, None] >> np.arange(0, 64, 8, dtype=np.uint64)) & np.uint64(255)).reshape(-1, 4).T
    ends = np.cumsum(4 + ((a * b + c * d) >> np.uint64(11))).astype(np.int64) - 1
    return np.append(ends[ends < num_words], num_words - 1)


@cache
def _slots() -> Integers:
    """The ranks of 1 … `HEAD` as often as their shares of 2^`SLOT_BITS` slots, and HEAD + 1 for the tail.

    Where head and tail meet, both laws give a rank the same share: the whole tail has 3/2·HEAD times that.
    """
    weights = 10**12 // (2 * np.arange(1, HEAD + 1, dtype=np.int64) + 3)
    weights = np.append(weights, weights[-1] * (3 * HEAD) // 2)
    ends = (np.cumsum(weights) << SLOT_BITS) // weights.sum()
    return np.repeat(np.arange(1, HEAD + 2), np.diff(ends, prepend=0))


# --- how they are spelled


def spell(numbers: Integers) -> pa.Array:
    """The words of positive numbers, each with a blank after it: the number in base 32 without a zero, in syllables."""
    pieces = np.full((len(numbers), MAX_SYLLABLES + 1), -1, dtype=np.int64)
    rest = np.arange(len(numbers))
    left = numbers.copy()
    for place in range(MAX_SYLLABLES + 1):
        pieces[rest, place] = np.where(left > 0, (left - 1) & (len(SYLLABLES) - 1), len(SYLLABLES))
        rest, left = rest[left > 0], (left[left > 0] - 1) >> DIGIT_BITS
    flat = pieces >= 0
    joined = strings(*SYLLABLES, " ").cast(pa.binary()).take(as_arrow(pieces[flat]))
    offsets = np.frombuffer(joined.buffers()[1], dtype=np.int32)[np.append(0, np.cumsum(flat.sum(axis=1)))]
    return pa.Array.from_buffers(pa.binary(), len(numbers), [None, pa.py_buffer(offsets), joined.buffers()[2]])


@cache
def _common_words() -> pa.Array:
    """What stands for the ranks 0 … `SPELLED` in a text."""
    marks = {rank: strings(mark).cast(pa.binary()) for rank, mark in ((LINE_END, ".\n"), (COMMA, ", "))}
    return pa.concat_arrays([marks[LINE_END], spell(np.array([1])), marks[COMMA], spell(np.arange(2, SPELLED))])


def _joined(words: pa.Array) -> pa.Buffer:
    """The bytes of an array of words, one after the other."""
    _, offsets, data = words.buffers()
    return data.slice(0, int(np.frombuffer(offsets, dtype=np.int32)[len(words)]))

"""The text of a unit as blocks.

In: a work unit. Out: bytes of a few MiB in which LF means `<eos>` and nothing else, each block ending after an ASCII
white-space byte or with its unit. Refuses: what the reader of the format refuses; a word of more than 16 MiB.

Memory is bounded by the block whatever a file's size; only a row, and a line that may go to another split, is held
whole.
"""

from collections.abc import Iterable, Iterator, Sequence

from pipeline.config import CorpusConfig
from pipeline.corpus.packing import CHUNK_BYTES
from pipeline.corpus.readers import READERS
from pipeline.corpus.readers.reader import Tally
from pipeline.corpus.text import REPLACEMENT, valid_utf8
from pipeline.corpus.units import WorkUnit, readable
from pipeline.errors import CorpusError

BLOCK_BYTES = 4 << 20
MAX_WORD_BYTES = 16 << 20
WORD_BYTES = bytes(set(range(256)) - set(b" \n\t\r\v\f"))  # all but ASCII white space


def read_blocks(
    unit: WorkUnit, corpus: CorpusConfig, tally: Tally | None = None, *, block_bytes: int = BLOCK_BYTES
) -> Iterator[bytes]:
    """The text of a unit as blocks, in order.

    Args:
        unit: what to read.
        corpus, block_bytes: as in `read_shares`.
        tally: is added to, with each block.

    Raises:
        CorpusError: as `read_shares` does.
    """
    for _, block in read_shares([unit], corpus, [tally or Tally()], block_bytes=block_bytes):
        yield block


def read_shares(
    units: Sequence[WorkUnit], corpus: CorpusConfig, tallies: Sequence[Tally], *, block_bytes: int = BLOCK_BYTES
) -> Iterator[tuple[int, bytes]]:
    """The text of units as blocks, those of each unit in order; the range that they share is read once.

    Args:
        units: one, or several of one range that share out its documents.
        corpus: says what a line end, a document and its column are.
        tallies: one for each unit; each is added to with the unit's blocks.
        block_bytes: a block is at least this long, and longer only by less than 1 MiB or as one word forces it; a
            unit's last may be shorter.

    Yields:
        (which of the units, a block of its text).

    Raises:
        CorpusError: the file is damaged or gone, a row holds no text, a word has more than 16 MiB.
    """
    with readable(units[0].path):
        for index, block in _cut_blocks(units, corpus, tallies, block_bytes=block_bytes):
            tallies[index].num_replacement_chars += valid_utf8(block).count(REPLACEMENT)
            tallies[index].num_nul_bytes += block.count(b"\0")
            yield index, block


def _cut_blocks(
    units: Sequence[WorkUnit], corpus: CorpusConfig, tallies: Sequence[Tally], *, block_bytes: int
) -> Iterator[tuple[int, bytes]]:
    cutters = [_Cutter(unit, block_bytes=block_bytes) for unit in units]
    for index, text in READERS[units[0].format].pieces(units, corpus, tallies):
        for piece in _small(text, max_bytes=min(CHUNK_BYTES, block_bytes)):
            block = cutters[index].add(piece)
            if block is not None:
                yield index, block
    for index, cutter in enumerate(cutters):
        if rest := cutter.rest():
            yield index, rest


class _Cutter:
    """Collects the pieces of a unit's text until they make a block."""

    def __init__(self, unit: WorkUnit, *, block_bytes: int) -> None:
        self._unit, self._block_bytes = unit, block_bytes
        self._held: list[bytes] = []
        self._held_bytes = self._word_bytes = self._read_bytes = 0

    def add(self, piece: bytes) -> bytes | None:
        """Takes a piece; returns the block that it completes, if it does."""
        cut = len(piece.rstrip(WORD_BYTES))
        self._word_bytes = len(piece) - cut if cut else self._word_bytes + len(piece)
        self._read_bytes += len(piece)
        if self._word_bytes > MAX_WORD_BYTES:
            raise CorpusError(
                f"{self._unit.path}: a word of more than {MAX_WORD_BYTES >> 20} MiB, without white space, begins at"
                f" byte {self._unit.start + self._read_bytes - self._word_bytes} of the text; is it text?"
            )
        self._held.append(piece)
        self._held_bytes += len(piece)
        if not cut or self._held_bytes < self._block_bytes:
            return None
        self._held[-1] = piece[:cut]
        block = b"".join(self._held)
        self._held, self._held_bytes = [piece[cut:]], len(piece) - cut
        return block

    def rest(self) -> bytes:
        """What is held at the end of the unit."""
        return b"".join(self._held)


def _small(text: bytes, *, max_bytes: int) -> Iterable[bytes]:
    return (text[start : start + max_bytes] for start in range(0, len(text), max_bytes))

"""The text of a unit as blocks.

In: a work unit. Out: bytes of a few MiB in which LF means `<eos>` and nothing else, each block ending after an ASCII
white-space byte or with its unit. Refuses: what the reader of the format refuses; a word of more than 16 MiB.

Memory is bounded by the block whatever a file's size; only a row, and a line that may go to another split, is held
whole.
"""

from collections.abc import Iterable, Iterator

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
        corpus: says what a line end, a document and its column are.
        tally: is added to, with each block.
        block_bytes: a block is at least this long, and longer only by less than 1 MiB or as one word forces it; the
            last may be shorter.

    Raises:
        CorpusError: the file is damaged or gone, a row holds no text, a word has more than 16 MiB.
    """
    with readable(unit.path):
        pieces = READERS[unit.format].pieces(unit, corpus, tally)
        for block in _cut_blocks(pieces, unit=unit, block_bytes=block_bytes):
            if tally is not None:
                tally.num_replacement_chars += valid_utf8(block).count(REPLACEMENT)
                tally.num_nul_bytes += block.count(b"\0")
            yield block


def _cut_blocks(pieces: Iterable[bytes], *, unit: WorkUnit, block_bytes: int) -> Iterator[bytes]:
    """The same bytes as blocks."""
    held: list[bytes] = []
    held_bytes = word_bytes = read_bytes = 0
    for piece in _small(pieces, max_bytes=min(CHUNK_BYTES, block_bytes)):
        cut = len(piece.rstrip(WORD_BYTES))
        word_bytes = len(piece) - cut if cut else word_bytes + len(piece)
        read_bytes += len(piece)
        if word_bytes > MAX_WORD_BYTES:
            raise CorpusError(
                f"{unit.path}: a word of more than {MAX_WORD_BYTES >> 20} MiB, without white space, begins at byte"
                f" {unit.start + read_bytes - word_bytes} of the text; is it text?"
            )
        held.append(piece)
        held_bytes += len(piece)
        if cut and held_bytes >= block_bytes:
            held[-1] = piece[:cut]
            yield b"".join(held)
            held, held_bytes = [piece[cut:]], len(piece) - cut
    if held_bytes:
        yield b"".join(held)


def _small(pieces: Iterable[bytes], *, max_bytes: int) -> Iterator[bytes]:
    for piece in pieces:
        for start in range(0, len(piece), max_bytes):
            yield piece[start : start + max_bytes]

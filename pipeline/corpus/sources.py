"""What to read: files and data sets → work units → blocks of text.

In: `CorpusConfig`: plain text, JSON lines and parquet files (paths, globs, folders; plain text and JSON lines also
packed) on a local disk or in an object store, or a data set of `datasets`, streamed.
Out: work units, each a part of one file (or of one data set) that a task reads by itself, and the blocks of a unit:
bytes of a few MiB in which LF means `<eos>` and nothing else, each ending after an ASCII white-space byte or with its
unit.
Refuses: what is missing, empty, damaged, of a kind that is not read, or without the column that holds the text; a word
of more than 16 MiB.

A document is a file (or, with `documents: lines`, a line of it), a row of JSON lines, of parquet or of a data set. With
`eos: line` each of its lines ends with LF, with `eos: document` only the document itself does. An empty document yields
nothing. A byte order mark at the start of a file is no part of its text. Memory is bounded by the block whatever a
file's size, only a row, and a line that may go to another split, is held whole.
"""

import hashlib
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import BinaryIO, Literal

import pyarrow.parquet as pq

from pipeline import storage
from pipeline.config import CorpusConfig
from pipeline.corpus.packing import CHUNK_BYTES
from pipeline.corpus.recognition import format_by_name, recognise
from pipeline.corpus.rows import (
    PACKAGED_BUILDERS,
    batches,
    check_column,
    column_spans,
    documents,
    open_dataset,
    whole_lines,
)
from pipeline.corpus.text import REPLACEMENT, valid_utf8
from pipeline.corpus.units import (
    SPLITS,
    Source,
    WorkUnit,
    chunks,
    position_of,
    position_of_digest,
    readable,
    text_chunks,
    valid_chunks,
)
from pipeline.errors import CorpusError

BLOCK_BYTES = 4 << 20
MAX_WORD_BYTES = 16 << 20
TAIL_BYTES = 4096
WHITE_SPACE = b" \n\t\r\v\f"
BYSTANDER = re.compile(
    r"(readme|licen[sc]e|copying|copyright|notice|authors|contributing|changelog|changes|citation|"
    r"(md5|sha\d+)sums?|checksums?|dataset_infos?)([\W_].*)?|_success|\.ds_store|thumbs\.db|desktop\.ini",
    re.IGNORECASE,
)


@dataclass
class Tally:
    """What was met in the text of a unit while it was read."""

    num_replacement_chars: int = 0  # U+FFFD, whether it stood there or was put in for bytes that are no UTF-8
    num_nul_bytes: int = 0
    num_null_rows: int = 0  # passed over; where a file is shared out by documents, told of in train's share


def list_sources(corpus: CorpusConfig) -> list[Source]:
    """What the configuration names, in the order of splits, of what was typed and then of paths.

    A file that is reached in several ways, by links or named twice, is read once.

    Raises:
        CorpusError: no training text; a path that is missing, a glob without a match, a folder without text; an empty
            file that is named by itself; a link that leads to nothing; a file that stands in two splits.
        ConfigError: a folder that cannot be listed; a pipe, a socket or a device.
    """
    if corpus.train is None and corpus.vocabulary.path is None:
        raise CorpusError("corpus.train=null gives no text to take the vocabulary from; use corpus.train=PATH")
    patterns = [(split, each) for split in SPLITS for each in getattr(corpus, split) or ()]
    if not patterns:
        raise CorpusError("corpus.train, corpus.valid and corpus.test are null; give one, such as corpus.train=PATH")
    if corpus.source == "datasets" and corpus.dataset not in PACKAGED_BUILDERS:
        return [Source(split, "dataset", name) for split, name in patterns]
    packaged = corpus.source == "datasets"
    found: dict[str, Source] = {}
    for split, pattern in patterns:
        for identity, path in _files(pattern, key=f"corpus.{split}").items():
            source = Source(split, "dataset" if packaged else format_by_name(path), path)
            known = found.setdefault(identity, source)
            if known.split != split:
                alias = "" if known.path == path else f", as {known.path}"
                raise CorpusError(f"{path} stands in corpus.{known.split} and in corpus.{split}{alias}; name it once")
    return list(found.values())


def list_bystanders(sources: Sequence[Source], corpus: CorpusConfig) -> list[str]:
    """The files that lie beside data by the look of their names (README, LICENSE), and were not themselves typed."""
    typed = {storage.resolve(path)[1] for split in SPLITS for path in getattr(corpus, split) or ()}
    looks = [each.path for each in sources if BYSTANDER.fullmatch(PurePosixPath(each.path).name)]
    return [path for path in looks if storage.resolve(path)[1] not in typed]


def cut_units(source: Source, corpus: CorpusConfig) -> list[WorkUnit]:
    """The work units of a source, in the order of the text.

    A file is cut after the first line end at or beyond each multiple of `unit_bytes`, parquet between row groups, a
    data set at its own shards; a packed file is one unit. Where valid and test are cut from train by the hash of
    documents, a range is one unit for each split, except plain text whose documents are files, which goes to one split.

    Raises:
        CorpusError: the source cannot be read, is of a kind that is not read, or has no column `text_column`.
    """
    with readable(source.path):
        whole = _cut_dataset(source, corpus) if source.format == "dataset" else _cut_file(source, corpus)
        shares = _shares(corpus)
        if source.split != "train" or len(shares) == 1:
            return whole
        if whole and whole[0].format == "text" and corpus.documents == "files":
            position = _position_of_file(whole)
            (split,) = (split for split, low, high in shares if low <= position < high)
            return [replace(unit, split=split) for unit in whole]
    return [replace(unit, split=split, low=low, high=high) for unit in whole for split, low, high in shares]


def unit_digest(unit: WorkUnit, corpus: CorpusConfig) -> str:
    """sha256 of what decides the text of a unit, as 64 hexadecimal digits: mostly of its bytes as they lie.

    Of a data set, of its text. Of plain bytes that are shared out by the hash of documents, as valid UTF-8, by which
    they are hashed.
    """
    digest = hashlib.sha256()
    with readable(unit.path):
        for chunk in _deciding_bytes(unit, corpus):
            digest.update(chunk)
    return digest.hexdigest()


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
        pieces = _pieces_of_text(unit, corpus) if unit.format == "text" else _pieces_of_rows(unit, corpus, tally=tally)
        for block in _cut_blocks(pieces, unit=unit, block_bytes=block_bytes):
            if tally is not None:
                tally.num_replacement_chars += valid_utf8(block).count(REPLACEMENT)
                tally.num_nul_bytes += block.count(b"\0")
            yield block


def _files(pattern: str, *, key: str) -> dict[str, str]:
    """The files with bytes that a path, glob or folder names: path by identity, in the order of paths.

    Of several names of one file that counts under which it really lies, or else the first.
    """
    found = storage.list_files(pattern)
    if not found:
        what = "a folder without files" if storage.is_folder(pattern) else "missing, or a glob that matches no file"
        raise CorpusError(f"{key}={pattern} is {what}; needed text files; mend the path")
    filled: dict[str, str] = {}
    for path in found:
        status = _status(path)
        if status.size_bytes:
            known = filled.setdefault(status.identity, path)
            if known != path and storage.absolute(known) != known and storage.absolute(path) == path:
                filled[status.identity] = path
    if not filled:
        raise CorpusError(f"{key}={pattern}: found 0 bytes in {found[0]}, needed text; fill it or leave it out")
    return dict(sorted(filled.items(), key=lambda item: item[1]))


def _status(path: str) -> storage.FileStatus:
    with readable(path):
        try:
            return storage.file_status(path)
        except FileNotFoundError as error:
            raise CorpusError(f"{path} is a link that leads to nothing; mend it or remove it") from error


def _shares(corpus: CorpusConfig) -> list[tuple[str, float, float]]:
    """The splits that train's documents are dealt to, each with its range of hashes."""
    test, valid = corpus.test_fraction, corpus.test_fraction + corpus.valid_fraction
    shares = [("train", valid, 1.0), ("valid", test, valid), ("test", 0.0, test)]
    return [(split, low, high) for split, low, high in shares if low < high]


def _position_of_file(whole: list[WorkUnit]) -> float:
    """The hash of a file of plain text: of its text, but of a packed one of its bytes as they lie."""
    everything = replace(whole[0], stop=whole[-1].stop)
    packed = everything.packing is not None
    content = chunks(everything.path, 0, everything.stop) if packed else valid_chunks(text_chunks(everything))
    digest = hashlib.sha256()
    for chunk in content:
        digest.update(chunk)
    return position_of_digest(digest.digest())


# --- work units ---


def _unit(source: Source, start: int, stop: int, *, size_bytes: int, last: bool) -> WorkUnit:
    return WorkUnit(
        source.split,
        source.format,
        source.path,
        start,
        stop,
        size_bytes,
        last,
        low=0.0,
        high=1.0,
        packing=None,
        has_mark=False,
    )


def _cut_file(source: Source, corpus: CorpusConfig) -> list[WorkUnit]:
    size_bytes = storage.size_bytes(source.path)
    if not size_bytes:
        return []
    found = recognise(source.path)
    source = replace(source, format=found.format)
    if found.format == "parquet":
        return _cut_parquet(source, corpus)
    cuts = [0, size_bytes] if found.packing else _line_cuts(source.path, size_bytes, unit_bytes=corpus.unit_bytes)
    units = [
        _unit(source, start, stop, size_bytes=stop - start, last=stop == size_bytes)
        for start, stop in itertools.pairwise(cuts)
    ]
    units[0] = replace(units[0], has_mark=found.has_mark)
    return [replace(unit, packing=found.packing) for unit in units]


def _line_cuts(path: str, size_bytes: int, *, unit_bytes: int) -> list[int]:
    """0, the first line's start at or beyond each multiple of `unit_bytes`, and the file's end."""
    cuts = [0]
    with storage.open_read(path) as file:
        while cuts[-1] < size_bytes:
            nominal = (cuts[-1] // unit_bytes + 1) * unit_bytes
            cuts.append(_after_line_end(file, nominal, size_bytes=size_bytes))
    return cuts


def _after_line_end(file: BinaryIO, position: int, *, size_bytes: int) -> int:
    """The first place at or beyond `position` that a line begins at, or the end of the file."""
    if position >= size_bytes:
        return size_bytes
    at = position - 1  # a line end just before is one
    file.seek(at)
    while chunk := file.read(TAIL_BYTES if at < position else CHUNK_BYTES):
        found = chunk.find(b"\n")
        if found >= 0:
            return at + found + 1
        at += len(chunk)
    return size_bytes


def _cut_parquet(source: Source, corpus: CorpusConfig) -> list[WorkUnit]:
    with storage.open_read(source.path) as file, pq.ParquetFile(file) as parquet:
        check_column(parquet.schema_arrow, source.path, column=corpus.text_column)
        spans = column_spans(parquet.metadata, column=corpus.text_column)
    units = []
    start = size_bytes = 0
    for group, of_group in enumerate(spans):
        size_bytes += sum(num_bytes for _, num_bytes in of_group)
        last = group + 1 == len(spans)
        if size_bytes >= corpus.unit_bytes or last:
            units.append(_unit(source, start, group + 1, size_bytes=size_bytes, last=last))
            start, size_bytes = group + 1, 0
    return units


def _cut_dataset(source: Source, corpus: CorpusConfig) -> list[WorkUnit]:
    dataset = open_dataset(source.path, corpus)
    name = f"data set {corpus.dataset}"
    first = next(batches(dataset, f"{name}, {source.path},", num_rows=1), None)
    if first is not None:
        check_column(first.schema, name, column=corpus.text_column)
    return [
        _unit(source, shard, shard + 1, size_bytes=0, last=shard + 1 == dataset.num_shards)
        for shard in range(dataset.num_shards)
    ]


def _deciding_bytes(unit: WorkUnit, corpus: CorpusConfig) -> Iterator[bytes]:
    if unit.format == "dataset":
        yield from _pieces_of_rows(replace(unit, low=0.0, high=1.0), corpus, tally=None)
    elif unit.format == "parquet":
        with storage.open_read(unit.path) as file, pq.ParquetFile(file) as parquet:
            spans = column_spans(parquet.metadata, column=corpus.text_column)[unit.start : unit.stop]
        for first, num_bytes in itertools.chain.from_iterable(spans):
            yield from chunks(unit.path, first, first + num_bytes)
    else:
        if unit.packing is not None and storage.size_bytes(unit.path) != unit.stop:  # it is unpacked to its end
            raise CorpusError(f"{unit.path} changed while it was prepared; leave it as it is and prepare again")
        as_they_lie = chunks(unit.path, unit.start, unit.stop)
        yield from valid_chunks(as_they_lie) if unit.is_share and unit.packing is None else as_they_lie


# --- text ---


def _pieces_of_text(unit: WorkUnit, corpus: CorpusConfig) -> Iterator[bytes]:
    """Plain text with its line ends as `eos` wants them, cut anyhow."""
    text = text_chunks(unit)
    if unit.is_share:
        for lines in whole_lines(text):
            kept = [
                line for line in lines.removesuffix(b"\n").split(b"\n") if unit.low <= position_of(line) < unit.high
            ]
            yield b"".join(line + b"\n" for line in kept)
        return
    one_end = corpus.eos == "document" and corpus.documents == "files"
    last = b""
    for chunk in text:
        last = chunk[-1:]
        yield chunk.replace(b"\n", b" ") if one_end else chunk
    if unit.last and last and (one_end or last != b"\n"):
        yield b"\n"


def _pieces_of_rows(unit: WorkUnit, corpus: CorpusConfig, *, tally: Tally | None) -> Iterator[bytes]:
    """The documents of the unit that its range of hashes wants, each with its line ends as `eos` wants them."""
    everything = not unit.is_share
    for batch in documents(unit, corpus):
        if tally is not None and unit.high == 1:
            tally.num_null_rows += batch.count(None)
        kept = [each for each in batch if each and (everything or unit.low <= position_of(each) < unit.high)]
        yield b"".join(_with_line_ends(each, eos=corpus.eos) for each in kept)


def _with_line_ends(document: bytes, *, eos: Literal["line", "document"]) -> bytes:
    if eos == "document":
        return document.replace(b"\n", b" ") + b"\n"
    return document if document.endswith(b"\n") else document + b"\n"


# --- blocks ---


def _cut_blocks(pieces: Iterable[bytes], *, unit: WorkUnit, block_bytes: int) -> Iterator[bytes]:
    """The same bytes as blocks."""
    held: list[bytes] = []
    held_bytes = word_bytes = read_bytes = 0
    for piece in _small(pieces, max_bytes=min(CHUNK_BYTES, block_bytes)):
        cut = _after_white_space(piece)
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


def _after_white_space(data: bytes) -> int:
    """The place after the last ASCII white-space byte, 0 if there is none."""
    stop = len(data)
    while stop > 0:
        start = max(0, stop - TAIL_BYTES)
        found = max(data.rfind(space, start, stop) for space in WHITE_SPACE)
        if found >= 0:
            return found + 1
        stop = start
    return 0

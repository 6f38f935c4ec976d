"""What to read: files and data sets → work units → blocks of text.

In: `CorpusConfig`: plain text, .jsonl and .parquet files (paths, globs, folders; plain text and .jsonl also as .gz,
.bz2, .xz, .zst) on a local disk or in an object store, or a data set of `datasets`, streamed.
Out: work units, each a part of one file (or of one data set) that a task reads by itself, and the blocks of a unit:
bytes of a few MiB in which LF means `<eos>` and nothing else, each ending after an ASCII white-space byte or with its
unit.
Refuses: what is missing, empty, damaged or without the column that holds the text; a word of more than 16 MiB.

A document is a file (or, with `documents: lines`, a line of it), a row of .jsonl or .parquet or of a data set. With
`eos: line` each of its lines ends with LF, with `eos: document` only the document itself does. An empty document yields
nothing. Memory is bounded by the block whatever a file's size, only a row, and a line that may go to another split, is
held whole.
"""

import bz2
import gzip
import hashlib
import itertools
import json
import lzma
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, BinaryIO, Literal, cast

import pyarrow as pa
import pyarrow.json
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.config import CorpusConfig
from pipeline.errors import CorpusError

if TYPE_CHECKING:
    from datasets import IterableDataset

Format = Literal["text", "jsonl", "parquet", "dataset"]

SPLITS = ("train", "valid", "test")
CHUNK_BYTES = 1 << 20
BLOCK_BYTES = 4 << 20
MAX_WORD_BYTES = 16 << 20
TAIL_BYTES = 4096
BATCH_ROWS = 256
WHITE_SPACE = b" \n\t\r\v\f"
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
PACKAGED_BUILDERS = ("arrow", "csv", "json", "parquet", "text")


@dataclass(frozen=True)
class Source:
    """A file, or a split of a data set, and the split of the prepared corpus that was asked of it."""

    split: str
    format: Format
    path: str


@dataclass(frozen=True)
class WorkUnit:
    """What one task reads.

    Attributes:
        split: the split of the prepared corpus that the text goes to.
        format: how the text is stored.
        path: the file; of a data set, the name of its split, or the file that a packaged builder reads.
        start: first byte; of parquet, the first row group; of a data set, the shard.
        stop: end of the range, exclusive.
        size_bytes: bytes that are read, 0 if not known.
        last: whether the file ends with this unit.
        low: of the documents, those whose hash, as a number in [0, 1), is in [low, high).
        high: see low.
    """

    split: str
    format: Format
    path: str
    start: int
    stop: int
    size_bytes: int
    last: bool
    low: float
    high: float

    @property
    def name(self) -> str:
        """The range for people, without the folder, so that it does not tell where the input lay."""
        share = "" if (self.low, self.high) == (0, 1) else f" share [{self.low:g}:{self.high:g}]"
        file = PurePosixPath(self.path).name.encode("utf-8", "backslashreplace").decode()  # a name may be any bytes
        return f"{file}[{self.start}:{self.stop}]{share}"


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
            source = Source(split, "dataset" if packaged else _format(path), path)
            known = found.setdefault(identity, source)
            if known.split != split:
                alias = "" if known.path == path else f", as {known.path}"
                raise CorpusError(f"{path} stands in corpus.{known.split} and in corpus.{split}{alias}; name it once")
    return list(found.values())


def cut_units(source: Source, corpus: CorpusConfig) -> list[WorkUnit]:
    """The work units of a source, in the order of the text.

    A file is cut after the first line end at or beyond each multiple of `unit_bytes`, parquet between row groups, a
    data set at its own shards; a compressed file is one unit. Where valid and test are cut from train by the hash of
    documents, a range is one unit for each split, except plain text whose documents are files, which goes to one split.

    Raises:
        CorpusError: the source cannot be read or has no column `text_column`.
    """
    with _readable(source.path):
        whole = {"text": _cut_file, "jsonl": _cut_file, "parquet": _cut_parquet, "dataset": _cut_dataset}[
            source.format
        ](source, corpus)
    shares = _shares(corpus)
    if source.split != "train" or len(shares) == 1 or corpus.source == "python_docs":  # which is dealt out by module
        return whole
    if source.format == "text" and corpus.documents == "files":
        position = _position_of_file(source.path)
        (split,) = (split for split, low, high in shares if low <= position < high)
        return [replace(unit, split=split) for unit in whole]
    return [replace(unit, split=split, low=low, high=high) for unit in whole for split, low, high in shares]


def unit_digest(unit: WorkUnit, corpus: CorpusConfig) -> str:
    """sha256 of what the unit holds, as 64 hexadecimal digits: of its bytes as they lie; of a data set, of its text."""
    digest = hashlib.sha256()
    with _readable(unit.path):
        for chunk in _bytes_as_they_lie(unit, corpus):
            digest.update(chunk)
    return digest.hexdigest()


def read_blocks(unit: WorkUnit, corpus: CorpusConfig, *, block_bytes: int = BLOCK_BYTES) -> Iterator[bytes]:
    """The text of a unit as blocks, in order.

    Args:
        unit: what to read.
        corpus: says what a line end, a document and its column are.
        block_bytes: a block is at least this long, and longer only by less than 1 MiB or as one word forces it; the
            last may be shorter.

    Raises:
        CorpusError: the file is damaged or gone, a row holds no text, a word has more than 16 MiB.
    """
    with _readable(unit.path):
        pieces = _pieces_of_text(unit, corpus) if unit.format == "text" else _pieces_of_rows(unit, corpus)
        yield from _cut_blocks(pieces, unit=unit, block_bytes=block_bytes)


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
            if storage.absolute(known) != known and storage.absolute(path) == path:
                filled[status.identity] = path
    if not filled:
        raise CorpusError(f"{key}={pattern}: found 0 bytes in {found[0]}, needed text; fill it or leave it out")
    return dict(sorted(filled.items(), key=lambda item: item[1]))


def _status(path: str) -> storage.FileStatus:
    with _readable(path):
        try:
            return storage.file_status(path)
        except FileNotFoundError as error:
            raise CorpusError(f"{path} is a link that leads to nothing; mend it or remove it") from error


def _format(path: str) -> Format:
    name = path.lower()
    packed = name.endswith(COMPRESSED)
    if packed:
        name = name.rpartition(".")[0]
    if name.endswith(".parquet"):
        if packed:
            raise CorpusError(f"{path} is compressed parquet; decompress it: parquet is compressed within")
        return "parquet"
    return "jsonl" if name.endswith((".jsonl", ".ndjson")) else "text"


def _shares(corpus: CorpusConfig) -> list[tuple[str, float, float]]:
    """The splits that train's documents are dealt to, each with its range of hashes."""
    test, valid = corpus.test_fraction, corpus.test_fraction + corpus.valid_fraction
    shares = [("train", valid, 1.0), ("valid", test, valid), ("test", 0.0, test)]
    return [(split, low, high) for split, low, high in shares if low < high]


def _position(digest: bytes) -> float:
    """A digest as a number in [0, 1), so that duplicates of a document meet in one split."""
    return int.from_bytes(digest[:6], "big") / 2**48


def position_of(document: bytes) -> float:
    """The hash of a document as a number in [0, 1), evenly spread: which split it falls into."""
    return _position(hashlib.sha256(document).digest())


def _position_of_file(path: str) -> float:
    digest = hashlib.sha256()
    with _readable(path):
        for chunk in _chunks(path, 0, storage.size_bytes(path)):
            digest.update(chunk)
    return _position(digest.digest())


@contextmanager
def _readable(path: str) -> Iterator[None]:
    """Turns what a reader says of a missing or damaged file into one line with its name."""
    try:
        yield
    except FileNotFoundError as error:
        raise CorpusError(f"{path} is missing; mend the path") from error
    except (OSError, EOFError, zlib.error, lzma.LZMAError, pa.ArrowException) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CorpusError(
            f"{path} is damaged or cannot be read ({reason}); restore the file or leave it out"
        ) from error


# --- work units ---


def _unit(source: Source, start: int, stop: int, *, size_bytes: int, last: bool) -> WorkUnit:
    return WorkUnit(source.split, source.format, source.path, start, stop, size_bytes, last, low=0.0, high=1.0)


def _cut_file(source: Source, corpus: CorpusConfig) -> list[WorkUnit]:
    size_bytes = storage.size_bytes(source.path)
    if source.path.lower().endswith(COMPRESSED):
        return [_unit(source, 0, size_bytes, size_bytes=size_bytes, last=True)]
    cuts = [0]
    with storage.open_read(source.path) as file:
        while cuts[-1] < size_bytes:
            nominal = (cuts[-1] // corpus.unit_bytes + 1) * corpus.unit_bytes
            cuts.append(_after_line_end(file, nominal, size_bytes=size_bytes))
    return [
        _unit(source, start, stop, size_bytes=stop - start, last=stop == size_bytes)
        for start, stop in itertools.pairwise(cuts)
    ]


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
        _check_column(parquet.schema_arrow, source.path, column=corpus.text_column)
        spans = _spans(parquet.metadata, column=corpus.text_column)
    units = []
    start = size_bytes = 0
    for group, (_, num_bytes) in enumerate(spans):
        size_bytes += num_bytes
        last = group + 1 == len(spans)
        if size_bytes >= corpus.unit_bytes or last:
            units.append(_unit(source, start, group + 1, size_bytes=size_bytes, last=last))
            start, size_bytes = group + 1, 0
    return units


def _spans(metadata: pq.FileMetaData, *, column: str) -> list[tuple[int, int]]:
    """Where the column lies in the file, for each row group: first byte and number of bytes."""
    spans = []
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        chunks = [group.column(index) for index in range(group.num_columns)]
        (chunk,) = (each for each in chunks if each.path_in_schema == column)
        first = chunk.data_page_offset
        if chunk.has_dictionary_page:
            first = min(first, chunk.dictionary_page_offset)
        spans.append((first, chunk.total_compressed_size))
    return spans


def _check_column(schema: pa.Schema, path: str, *, column: str) -> None:
    if column not in schema.names:
        raise CorpusError(
            f"{path} has no column {column}; found {', '.join(schema.names) or 'none'}; use corpus.text_column=NAME"
        )
    kind = schema.field(column).type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if kind not in (pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.null()):
        raise CorpusError(f"{path}: column {column} holds {kind}, needed text; use corpus.text_column=ANOTHER")


def _cut_dataset(source: Source, corpus: CorpusConfig) -> list[WorkUnit]:
    dataset = _stream(source.path, corpus)
    batch = next(iter(dataset.with_format("arrow").iter(batch_size=1)), None)
    if batch is not None:
        _check_column(batch.schema, f"data set {corpus.dataset}", column=corpus.text_column)
    return [
        _unit(source, shard, shard + 1, size_bytes=0, last=shard + 1 == dataset.num_shards)
        for shard in range(dataset.num_shards)
    ]


def _stream(path: str, corpus: CorpusConfig) -> "IterableDataset":
    """One split of the data set, or one file as a packaged builder reads it, not downloaded but read as it goes."""
    import datasets

    assert corpus.dataset is not None
    packaged = corpus.dataset in PACKAGED_BUILDERS
    try:
        if packaged:
            return datasets.load_dataset(corpus.dataset, data_files=[path], split="train", streaming=True)
        return datasets.load_dataset(corpus.dataset, split=path, streaming=True)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split())
        raise CorpusError(
            f"data set {corpus.dataset}, {path}, cannot be opened ({reason}); mend corpus.dataset or the split's name"
        ) from error


# --- bytes ---


def _chunks(path: str, start: int, stop: int) -> Iterator[bytes]:
    """Bytes [start, stop) of a file as they lie, 1 MiB at a time."""
    with storage.open_read(path) as file:
        file.seek(start)
        while start < stop and (chunk := file.read(min(CHUNK_BYTES, stop - start))):
            start += len(chunk)
            yield chunk
    if start < stop:
        raise CorpusError(f"{path} ends {stop - start} bytes early: it changed while it was read; prepare again")


def _text_chunks(unit: WorkUnit) -> Iterator[bytes]:
    """The unit's bytes, decompressed, 1 MiB at a time."""
    suffix = PurePosixPath(unit.path).suffix.lower()
    if suffix not in COMPRESSED:
        yield from _chunks(unit.path, unit.start, unit.stop)
        return
    with storage.open_read(unit.path) as packed, _decompressed(packed, suffix) as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


def _decompressed(packed: BinaryIO, suffix: str) -> BinaryIO:
    if suffix == ".gz":
        return cast(BinaryIO, gzip.GzipFile(fileobj=packed, mode="rb"))
    if suffix == ".bz2":
        return cast(BinaryIO, bz2.BZ2File(packed))
    if suffix == ".xz":
        return cast(BinaryIO, lzma.LZMAFile(packed))
    # Unlike the reader of the package zstandard, Arrow's says when the file was truncated.
    return cast(BinaryIO, pa.CompressedInputStream(pa.PythonFile(packed, mode="r"), "zstd"))


def _bytes_as_they_lie(unit: WorkUnit, corpus: CorpusConfig) -> Iterator[bytes]:
    if unit.format == "dataset":
        yield from _pieces_of_rows(replace(unit, low=0.0, high=1.0), corpus)
    elif unit.format == "parquet":
        with storage.open_read(unit.path) as file, pq.ParquetFile(file) as parquet:
            spans = _spans(parquet.metadata, column=corpus.text_column)[unit.start : unit.stop]
        for first, num_bytes in spans:
            yield from _chunks(unit.path, first, first + num_bytes)
    else:
        yield from _chunks(unit.path, unit.start, unit.stop)


# --- text ---


def _pieces_of_text(unit: WorkUnit, corpus: CorpusConfig) -> Iterator[bytes]:
    """Plain text with its line ends as `eos` wants them, cut anyhow."""
    chunks = _text_chunks(unit)
    if (unit.low, unit.high) != (0, 1):
        for lines in _whole_lines(chunks):
            kept = [
                line for line in lines.removesuffix(b"\n").split(b"\n") if unit.low <= position_of(line) < unit.high
            ]
            yield b"".join(line + b"\n" for line in kept)
        return
    one_end = corpus.eos == "document" and corpus.documents == "files"
    last = b""
    for chunk in chunks:
        last = chunk[-1:]
        yield chunk.replace(b"\n", b" ") if one_end else chunk
    if unit.last and last and (one_end or last != b"\n"):
        yield b"\n"


def _whole_lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes, cut after line ends; the last may lack its own."""
    held: list[bytes] = []
    for chunk in chunks:
        cut = chunk.rfind(b"\n") + 1
        if cut:
            yield b"".join([*held, chunk[:cut]])
            held = []
        held.append(chunk[cut:])
    if rest := b"".join(held):
        yield rest


def _pieces_of_rows(unit: WorkUnit, corpus: CorpusConfig) -> Iterator[bytes]:
    """The documents of the unit that its range of hashes wants, each with its line ends as `eos` wants them."""
    readers = {"jsonl": _rows_of_jsonl, "parquet": _rows_of_parquet, "dataset": _rows_of_dataset}
    everything = (unit.low, unit.high) == (0, 1)
    for documents in readers[unit.format](unit, corpus):
        kept = [each for each in documents if everything or unit.low <= position_of(each) < unit.high]
        yield b"".join(_with_line_ends(each, eos=corpus.eos) for each in kept if each)


def _with_line_ends(document: bytes, *, eos: Literal["line", "document"]) -> bytes:
    if eos == "document":
        return document.replace(b"\n", b" ") + b"\n"
    return document if document.endswith(b"\n") else document + b"\n"


def _rows_of_parquet(unit: WorkUnit, corpus: CorpusConfig) -> Iterator[list[bytes]]:
    with (
        storage.open_read(unit.path) as file,
        pq.ParquetFile(file, pre_buffer=False, buffer_size=CHUNK_BYTES) as parquet,
    ):
        row = sum(parquet.metadata.row_group(group).num_rows for group in range(unit.start))
        groups = list(range(unit.start, unit.stop))
        for batch in parquet.iter_batches(
            BATCH_ROWS, row_groups=groups, columns=[corpus.text_column], use_threads=False
        ):
            yield _documents(batch.column(0), unit.path, first_row=row, column=corpus.text_column)
            row += batch.num_rows


def _rows_of_dataset(unit: WorkUnit, corpus: CorpusConfig) -> Iterator[list[bytes]]:
    dataset = _stream(unit.path, corpus)
    if dataset.num_shards > 1:
        dataset = dataset.shard(num_shards=dataset.num_shards, index=unit.start)
    name, row = f"data set {corpus.dataset}, {unit.path}, shard {unit.start}", 0
    for batch in _batches(dataset, name):
        _check_column(batch.schema, name, column=corpus.text_column)
        for chunk in batch[corpus.text_column].chunks:
            yield _documents(chunk, name, first_row=row, column=corpus.text_column)
            row += len(chunk)


def _batches(dataset: "IterableDataset", name: str) -> Iterator[pa.Table]:
    """The rows of a data set; what its builder says of damaged data is the user's to know."""
    import datasets

    try:
        yield from dataset.with_format("arrow").iter(batch_size=BATCH_ROWS)
    except (ValueError, datasets.exceptions.DatasetsError) as error:
        if isinstance(error, pa.ArrowException):  # `_readable` tells of these
            raise
        raise CorpusError(f"{name} cannot be read ({' '.join(str(error).split())}); mend the data") from error


def _documents(texts: pa.Array, name: str, *, first_row: int, column: str) -> list[bytes]:
    """The texts of a column as bytes; a row without text is refused by its number, counted from 0."""
    if texts.null_count:
        row = first_row + texts.is_null().index(True).as_py()
        raise CorpusError(f"{name}: row {row} has no text in column {column} (null); mend or remove the row")
    return cast(list[bytes], texts.cast(pa.large_binary()).to_pylist())


def _rows_of_jsonl(unit: WorkUnit, corpus: CorpusConfig) -> Iterator[list[bytes]]:
    line = 0  # of the unit: the number in the file is needed for errors only
    for lines in _whole_lines(_text_chunks(unit)):
        texts = _texts_by_arrow(lines, column=corpus.text_column)
        if texts is None:
            yield _texts_by_line(lines, unit=unit, first_line=line, column=corpus.text_column)
        else:
            yield cast(list[bytes], texts.cast(pa.large_binary()).to_pylist())
        line += lines.count(b"\n")


def _texts_by_arrow(lines: bytes, *, column: str) -> pa.ChunkedArray | None:
    """The column's texts; None if a line is something else than an object with a text, or if Arrow cannot tell."""
    if not lines.strip():
        return pa.chunked_array([], pa.string())
    schema = pa.schema([pa.field(column, pa.string())])
    parse = pa.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
    read = pa.json.ReadOptions(use_threads=False, block_size=len(lines) + 1)
    try:
        texts = pa.json.read_json(pa.BufferReader(lines), read_options=read, parse_options=parse)[column]
    except pa.ArrowInvalid:
        return None
    # Arrow also reads two objects from one line.
    return None if texts.null_count or len(texts) > lines.count(b"\n") + 1 else texts


def _texts_by_line(lines: bytes, *, unit: WorkUnit, first_line: int, column: str) -> list[bytes]:
    """What Arrow refused, line by line: the first line that is no object with a text is named."""
    texts = []
    for number, line in enumerate(lines.split(b"\n"), first_line):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8", "replace"))
        except json.JSONDecodeError as error:
            raise CorpusError(
                f"{_place(unit, number)} is no JSON ({error.msg}, column {error.colno}); mend it"
            ) from error
        if not isinstance(row, dict):
            raise CorpusError(f"{_place(unit, number)} holds a JSON {type(row).__name__}, needed an object; mend it")
        if column not in row:
            found = ", ".join(row) or "none"
            raise CorpusError(
                f"{_place(unit, number)} has no column {column}; found {found}; use corpus.text_column=NAME"
            )
        if not isinstance(row[column], str):
            found = json.dumps(row[column])[:40]
            raise CorpusError(f"{_place(unit, number)}: {column} is {found}, needed text; mend or remove the line")
        texts.append(row[column].encode("utf-8", "surrogatepass"))
    return texts


def _place(unit: WorkUnit, line: int) -> str:
    """File and number of a line, counted from 1; only now are the lines before the unit counted."""
    before = sum(chunk.count(b"\n") for chunk in _chunks(unit.path, 0, unit.start))
    return f"{unit.path}, line {before + line + 1},"


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

"""What to read: files and data sets → work units.

In: `CorpusConfig`: files of a known format (paths, globs, folders) on a local disk or in an object store, or a data set
of `datasets`, streamed. Out: work units, each a part of one file (or of one data set) that a task reads by itself.
Refuses: what is missing, empty, damaged, of a kind that is not read, or without the column that holds the text.
"""

import codecs
import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import PurePosixPath

from pipeline import storage
from pipeline.config import CorpusConfig
from pipeline.corpus.readers import READERS
from pipeline.corpus.readers.dataset import reads_files
from pipeline.corpus.readers.reader import cut_whole, text_bytes
from pipeline.corpus.recognition import Recognised, format_by_name, recognise
from pipeline.corpus.units import SPLITS, Source, WorkUnit, chunks, position_of_digest, readable, valid_chunks
from pipeline.errors import CorpusError

BYSTANDER = re.compile(
    r"(readme|licen[sc]e|copying|copyright|notice|authors|contributing|changelog|changes|citation|"
    r"(md5|sha\d+)sums?|checksums?|dataset_infos?)([\W_].*)?|_success|\.ds_store|thumbs\.db|desktop\.ini",
    re.IGNORECASE,
)


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
    if not reads_files(corpus):
        return [Source(split, "dataset", name) for split, name in patterns]
    found: dict[str, Source] = {}
    for split, pattern in patterns:
        for identity, path in _files(pattern, key=f"corpus.{split}").items():
            source = Source(split, format_by_name(path) if corpus.source == "files" else "dataset", path)
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

    A file is cut where the reader of its format cuts it; a packed file is one unit. Where valid and test are cut from
    train by the hash of documents, a range is one unit for each split, except plain text whose documents are files,
    which goes to one split.

    Raises:
        CorpusError: the source cannot be read, is of a kind that is not read, or has no column `text_column`.
    """
    with readable(source.path):
        whole = _whole_units(source, corpus)
        shares = _shares(corpus)
        if source.split != "train" or len(shares) == 1:
            return whole
        if whole and READERS[whole[0].format].documents is None and corpus.documents == "files":
            position = _position_of_file(whole)
            (split,) = (split for split, low, high in shares if low <= position < high)
            return [replace(unit, split=split) for unit in whole]
    return [replace(unit, split=split, low=low, high=high) for unit in whole for split, low, high in shares]


def range_digest(unit: WorkUnit, corpus: CorpusConfig) -> str:
    """sha256, in hexadecimal digits, of what the format's reader says decides the text of a unit's range.

    Where the range is shared out by documents it is the same for every share.
    """
    reader = READERS[unit.format]
    with readable(unit.path):
        return _digest((reader.deciding_bytes or reader.text_of_range)(unit, corpus)).hex()


class ReadDigest:
    """`range_digest`, taken while the range is read for its text.

    It is to be the `observe` of the unit that is read.
    """

    def __init__(self, unit: WorkUnit) -> None:
        as_text = unit.is_share and unit.packing is None and READERS[unit.format].deciding_bytes is text_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace") if as_text else None
        self._digest = hashlib.sha256()
        self.num_bytes = 0

    def __call__(self, piece: bytes) -> None:
        """Takes the next piece."""
        self.num_bytes += len(piece)
        self._digest.update(piece if self._decoder is None else self._decoder.decode(piece).encode())

    def hexdigest(self) -> str:
        """The digest, once all is read."""
        if self._decoder is not None:
            self._digest.update(self._decoder.decode(b"", final=True).encode())
        return self._digest.hexdigest()


def _files(pattern: str, *, key: str) -> dict[str, str]:
    """The files with bytes that a path, glob or folder names: path by identity, in the order of paths.

    Of several names of one file that counts under which it really lies, or else the first.
    """
    found = storage.list_sizes(pattern)
    if not found:
        what = "a folder without files" if storage.is_folder(pattern) else "missing, or a glob that matches no file"
        raise CorpusError(f"{key}={pattern} is {what}; needed text files; mend the path")
    filled: dict[str, str] = {}
    for path, size_bytes in found.items():
        status = _status(path) if size_bytes is None else storage.FileStatus(size_bytes, identity=path)
        if status.size_bytes:
            known = filled.setdefault(status.identity, path)
            if known != path and storage.absolute(known) != known and storage.absolute(path) == path:
                filled[status.identity] = path
    if not filled:
        raise CorpusError(
            f"{key}={pattern}: found 0 bytes in {next(iter(found))}, needed text; fill it or leave it out"
        )
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
    text = READERS[everything.format].text
    content = chunks(everything.path, 0, everything.stop) if packed else valid_chunks(text(everything))
    return position_of_digest(_digest(content))


def _digest(text: Iterable[bytes]) -> bytes:
    digest = hashlib.sha256()
    for chunk in text:
        digest.update(chunk)
    return digest.digest()


def _whole_units(source: Source, corpus: CorpusConfig) -> list[WorkUnit]:
    """The units of a source before its documents are shared out."""
    found, size_bytes = Recognised(source.format, packing=None, has_mark=False), 0
    if READERS[source.format].is_file:
        size_bytes = storage.size_bytes(source.path)
        if not size_bytes:
            return []
        found = recognise(source.path)
    cut = cut_whole if found.packing else READERS[found.format].cut
    spans = cut(source.path, size_bytes, corpus)
    return [
        WorkUnit(
            source.split,
            found.format,
            source.path,
            *span,
            last=span is spans[-1],
            low=0.0,
            high=1.0,
            packing=found.packing,
            has_mark=found.has_mark and span is spans[0],
        )
        for span in spans
    ]

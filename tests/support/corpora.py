"""What tests of prepared corpora share: sections, packings, texts, and tasks that are watched."""

import bz2
import gzip
import hashlib
import json
import lzma
import random
from pathlib import Path

import pyarrow as pa

from pipeline.config import CorpusConfig
from pipeline.corpus.blocks import BLOCK_BYTES, read_blocks
from pipeline.corpus.keys import unit_key
from pipeline.corpus.sources import cut_units, list_sources, range_digest


def words(seed, num_lines):
    draw = random.Random(seed)
    return "".join(
        " ".join(f"w{int(draw.paretovariate(0.6))}" for _ in range(draw.randrange(12))) + "\n" for _ in range(num_lines)
    )


def corpus_config(**changes):
    fields = {
        "source": "files",
        "train": None,
        "valid": None,
        "test": None,
        "dataset": None,
        "text_column": "text",
        "null_rows": "refuse",
        "shard_tokens": None,
        "documents": "files",
        "valid_fraction": 0.0,
        "test_fraction": 0.0,
        "words": "whitespace",
        "lowercase": False,
        "eos": "line",
        "vocabulary": {"size": None, "min_count": 1, "path": None},
        "unit_bytes": 1 << 20,
    }
    return CorpusConfig.model_validate_json(json.dumps(fields | changes))


def key_of(unit, corpus):
    """The key of a unit, of its bytes as they are now."""
    return unit_key(unit, corpus, digest=range_digest(unit, corpus))


def text_of(path, *, block_bytes=BLOCK_BYTES, **changes):
    """Everything that a file yields, by split."""
    corpus = corpus_config(train=str(path), **changes)
    found = {}
    for source in list_sources(corpus):
        for unit in cut_units(source, corpus):
            blocks = list(read_blocks(unit, corpus, block_bytes=block_bytes))
            assert all(block[-1:] in b" \t\n\v\f\r" for block in blocks[:-1])
            found[unit.split] = found.get(unit.split, b"") + b"".join(blocks)
    return found


def zstd(data):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


def lzma_alone(data):
    return lzma.compress(data, format=lzma.FORMAT_ALONE)


PACK = {"gzip": gzip.compress, "bzip2": bz2.compress, "xz": lzma.compress, "zstd": zstd}


class Calls:
    """Runs tasks here, in an order of its own, and keeps what was run; can die before a given task."""

    def __init__(self, *, seed=None, die_before=None):
        self.seed, self.die_before = seed, die_before
        self.names = []

    def __call__(self, function, items):
        order = list(range(len(items)))
        if self.seed is not None:
            random.Random(self.seed).shuffle(order)
        for index in order:
            name = function.function.func.__name__
            if self.die_before == (name, self.names.count(name)):
                raise KeyboardInterrupt
            self.names.append(name)
            yield index, function(items[index])

    def count(self, name):
        return self.names.count(name)


def config(texts, **changes):
    fields = {"train": str(texts), "valid": str(texts.parent / "valid.txt"), "unit_bytes": 2048}
    return corpus_config(**fields | changes)


def digests(data):
    return {
        str(path.relative_to(data)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(Path(data).rglob("*"))
        if path.is_file()
    }

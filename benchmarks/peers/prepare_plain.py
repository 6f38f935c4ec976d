"""Plain Python: a Counter, a dictionary, and an array of ids; the text is read twice."""

from array import array
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from shared import chosen, prepare_main, write_vocabulary

EOS = b"<eos>"


def make(text: Path, out: Path, size: int) -> None:
    counts: Counter[bytes] = Counter()
    with text.open("rb") as file:
        for line in file:
            counts.update(line.split())
            counts[EOS] += 1
    words = chosen(counts, size)
    write_vocabulary(out, words)
    ids = {word: i for i, word in enumerate(words)}
    with text.open("rb") as file, (out / "ids.int32").open("wb") as to:
        for line in file:
            found = array("i", [ids.get(word, 1) for word in line.split()])
            found.append(0)
            found.tofile(to)


def read_ids(out: Path) -> Iterator[bytes]:
    yield (out / "ids.int32").read_bytes()


if __name__ == "__main__":
    prepare_main(make, read_ids)

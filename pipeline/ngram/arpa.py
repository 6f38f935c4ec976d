r"""ARPA, the text format of n-gram models that KenLM, SRILM and Kaldi read and write.

In: the weights of an `NgramModel` and the words, or a file. Out: the other. Where histories begin with their line,
`<eos>` is `</s>` as the last word of an n-gram and `<s>` elsewhere; where they do not, it is a word like any other, and
both marks stand in the file for its readers' sake alone. Refuses: a file that is cut or of another shape or order, one
that lacks a word of the vocabulary, and an n-gram without the shorter one that it ends with. What a file has beyond the
vocabulary is left out, and told.

    \data\
    ngram 1=3
    ...
    \2-grams:
    -0.3 <tab> <s> the <tab> -0.1     log10 of the probability, the words, log10 of the backoff
    \end\
"""

import logging
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from pipeline import storage
from pipeline.corpus.stream import EOS
from pipeline.corpus.vocabulary import EOS_WORD, UNK, UNK_WORD, Vocabulary
from pipeline.errors import ConfigError
from pipeline.ngram.windows import Ints, Resets

log = logging.getLogger(__name__)

LN10 = math.log(10.0)
NEVER = -99.0  # log10 of what has no probability, by custom
BEGIN, END = "<s>", "</s>"
BLOCK_NGRAMS = 1 << 16  # that are written at a time
NUM_NAMED = 3  # words in a message

Weights = Mapping[str, NDArray[np.generic]]


def write_arpa(path: str, weights: Weights, words: Sequence[str], *, order: int, resets: Resets) -> list[int]:
    """Writes a model whole or not at all.

    Args:
        path: of the file.
        weights: of the model, by name.
        words: by id.
        order: of the model.
        resets: where histories end.

    Returns:
        n-grams of each order.

    Raises:
        ConfigError: a word is a mark of the format's own, or the file cannot be written.
    """
    taken = [word for word in words if word in (BEGIN, END)]
    if taken:
        raise ConfigError(
            f"the vocabulary holds {' and '.join(taken)}, which ARPA keeps for the begin and the end of a line;"
            " prepare the corpus without"
        )
    marks = 1 if resets == "line" else 2
    sizes = [len(weights[f"log_probabilities_{each}"]) + (marks if each == 1 else 0) for each in range(1, order + 1)]
    with storage.publish(path) as file:
        counts = [f"ngram {number}={size}\n" for number, size in enumerate(sizes, 1)]
        file.write("".join(["\\data\\\n", *counts]).encode())
        for number in range(1, order + 1):
            file.write(f"\n\\{number}-grams:\n".encode())
            if number == 1:
                file.write(_marks(weights, order=order, resets=resets).encode())
            for lines in _lines(weights, words, number, order=order, resets=resets):
                file.write("".join(lines).encode())
        file.write(b"\n\\end\\\n")
    return sizes


def _marks(weights: Weights, *, order: int, resets: Resets) -> str:
    """The lines of marks that are no words of ours."""
    if resets == "none":
        return f"{NEVER:g}\t{BEGIN}\n{NEVER:g}\t{END}\n"
    backoff = f"\t{weights['log_backoffs_1'][EOS] / LN10:.7g}" if order > 1 else ""
    return f"{NEVER:g}\t{BEGIN}{backoff}\n"


def _lines(weights: Weights, words: Sequence[str], number: int, *, order: int, resets: Resets) -> Iterator[list[str]]:
    """The lines of the n-grams of so many words, some at a time."""
    first_words, last_words = [*words], [*words]
    if resets == "line":
        first_words[EOS], last_words[EOS] = BEGIN, END
    probabilities = weights[f"log_probabilities_{number}"]
    backoffs = weights[f"log_backoffs_{number}"] if number < order else None
    for start in range(0, len(probabilities), BLOCK_NGRAMS):
        places = np.arange(start, min(start + BLOCK_NGRAMS, len(probabilities)))
        columns = []
        ends = places
        for longer in range(number, 1, -1):
            ends, ids = np.divmod(np.asarray(weights[f"keys_{longer}"])[ends], len(words))
            columns.append([first_words[each] for each in ids.tolist()])
        columns.append([last_words[each] for each in ends.tolist()])
        texts = [f"{each:.7g}" for each in (probabilities[places].astype(np.float64) / LN10).tolist()]
        if backoffs is None:
            tails = ["\n"] * len(texts)
        else:
            tails = [f"\t{each:.7g}\n" for each in (backoffs[places].astype(np.float64) / LN10).tolist()]
            if resets == "line":  # nothing follows the end of a line
                tails = ["\n" if end == EOS else tail for end, tail in zip(ends.tolist(), tails, strict=True)]
        yield [
            f"{text}\t{' '.join(ngram)}{tail}"
            for text, ngram, tail in zip(texts, zip(*columns, strict=True), tails, strict=True)
        ]


@dataclass(frozen=True)
class _Section:
    """The n-grams of one order in a file, those that the vocabulary has.

    Attributes:
        ids: their words, [n, order].
        numbers: log10 of their probabilities and of their backoffs, [n, 2].
    """

    ids: Ints
    numbers: NDArray[np.float64]


def read_arpa(path: str, vocabulary: Vocabulary, *, order: int, resets: Resets) -> dict[str, NDArray[np.generic]]:
    """The weights of the model that a file holds; all of them are in memory.

    Args:
        path: of the file.
        vocabulary: gives the words their ids.
        order: that the file must have.
        resets: where histories end.

    Raises:
        ConfigError: it cannot be read or does not fit; names what was found, where, and what is needed.
    """
    words = vocabulary.words.to_pylist()
    ids = {word: number for number, word in enumerate(words)}
    if resets == "line":
        del ids[EOS_WORD]
    try:
        with storage.open_read(path) as file:
            reader = _Reader(path, file, ids=ids, resets=resets)
            sections = reader.sections(order)
    except OSError as error:
        raise ConfigError(f"model.arpa={path} cannot be read ({error.strerror or error}); mend the path") from error
    weights = _word_weights(path, sections[0], words)
    if resets == "line":
        weights["log_backoffs_1"][EOS] = reader.begin_backoff * LN10
    for section in sections[1:]:
        _add(weights, section, path, words)
    del weights[f"log_backoffs_{order}"]
    return weights


class _Reader:
    """Reads a file, line by line.

    Args:
        path: for people.
        file: opened.
        ids: of the words.
        resets: where histories end.

    Attributes:
        begin_backoff: log10 of the backoff of a line's begin, once it is read.
    """

    def __init__(self, path: str, file: BinaryIO, *, ids: Mapping[str, int], resets: Resets) -> None:
        self._path, self._ids, self._resets = path, ids, resets
        self._lines = ((number, line.decode(errors="replace").strip()) for number, line in enumerate(file, 1))
        self._number = 0
        self.begin_backoff = 0.0

    def sections(self, order: int) -> list[_Section]:
        """The n-grams of each order."""
        while self._next() != "\\data\\":
            pass
        counts: list[int] = []
        while (line := self._next()) != "\\1-grams:":
            if match := re.fullmatch(r"ngram\s+(\d+)\s*=\s*(\d+)", line):
                counts.append(int(match[2]))
        if len(counts) != order:
            raise ConfigError(
                f"model.arpa={self._path} has n-grams of up to {len(counts)} words and model.order={order};"
                f" use model.order={len(counts)}"
            )
        found, num_left_out = [], 0
        for number, count in enumerate(counts, 1):
            if number > 1:
                self._need(f"\\{number}-grams:")
            section, left_out = self._section(number, count)
            found.append(section)
            num_left_out += left_out
        self._need("\\end\\")
        if num_left_out:
            log.warning(
                "model.arpa=%s: %s of its n-grams hold words that the vocabulary lacks and are left out, so"
                " probabilities sum to less than 1",
                self._path,
                f"{num_left_out:,}",
            )
        return found

    def _section(self, order: int, count: int) -> tuple["_Section", int]:
        """The n-grams of an order, and how many more there are whose words the vocabulary lacks."""
        ids: list[list[int]] = []
        numbers: list[tuple[float, float]] = []
        num_left_out = 0
        for _ in range(count):
            fields = self._next().split()
            if len(fields) not in (order + 1, order + 2):
                raise self._error(f"{order + 1} or {order + 2} fields", " ".join(fields))
            try:
                number = float(fields[0]), float(fields[order + 1]) if len(fields) == order + 2 else 0.0
            except ValueError:
                raise self._error("numbers before and after the words", " ".join(fields)) from None
            if order == 1 and fields[1] == BEGIN:
                self.begin_backoff = number[1]
            elif order > 1 or fields[1] != END or self._resets == "line":
                own = [self._id(word, place, last=order - 1) for place, word in enumerate(fields[1 : order + 1])]
                if None in own:
                    num_left_out += 1
                    continue
                ids.append([each for each in own if each is not None])
                numbers.append(number)
        array = np.array(ids, dtype=np.int64).reshape(-1, order)
        return _Section(array, np.array(numbers, dtype=np.float64).reshape(-1, 2)), num_left_out

    def _id(self, word: str, place: int, *, last: int) -> int | None:
        """The id of a word at a place in an n-gram; None: the vocabulary has no such word."""
        if word not in (BEGIN, END):
            return self._ids.get(UNK_WORD if word == "<UNK>" else word)
        if self._resets == "line" and (place == 0 if word == BEGIN else place == last):
            return EOS
        where = "not where a line begins or ends" if self._resets == "line" else "and model.resets=none knows no lines"
        raise self._error("n-grams that fit", f"{word} {where}")

    def _next(self) -> str:
        """The next line that is not empty."""
        for number, line in self._lines:
            self._number = number
            if line:
                return line
        raise self._error("a whole ARPA file", "its end")

    def _need(self, expected: str) -> None:
        if (line := self._next()) != expected:
            raise self._error(expected, line)

    def _error(self, needed: str, found: str) -> ConfigError:
        return ConfigError(
            f"model.arpa={self._path}, line {self._number}: found {found[:100]}, needed {needed}; mend the file"
        )


def _word_weights(path: str, section: _Section, words: Sequence[str]) -> dict[str, NDArray[np.generic]]:
    """The weights of single words."""
    numbers = np.full((len(words), 2), np.nan)
    numbers[section.ids[:, 0]] = section.numbers
    lacking = np.flatnonzero(np.isnan(numbers[:, 0])).tolist()
    if lacking == [UNK]:
        log.warning("model.arpa=%s has no %s, which so gets no probability (1e%g)", path, UNK_WORD, NEVER)
        numbers[UNK] = NEVER, 0.0
    elif lacking:
        named = ", ".join(END if each == EOS else words[each] for each in lacking[:NUM_NAMED])
        raise ConfigError(
            f"model.arpa={path} lacks {len(lacking):,} of the vocabulary's {len(words):,} words, as {named};"
            " prepare the corpus with corpus.vocabulary.path=WORDS of the file, or take a file that has them"
        )
    probabilities, backoffs = (numbers.T * LN10).astype(np.float32)
    return {"log_probabilities_1": probabilities, "log_backoffs_1": backoffs}


def _add(weights: dict[str, NDArray[np.generic]], section: _Section, path: str, words: Sequence[str]) -> None:
    """Adds the n-grams of the next order, in the order of their keys."""
    order = section.ids.shape[1]
    places = section.ids[:, -1]
    for shorter in range(2, order):
        keys = weights[f"keys_{shorter}"]
        wanted = places * len(words) + section.ids[:, order - shorter]
        found = np.minimum(np.searchsorted(keys, wanted), max(len(keys) - 1, 0))
        missing = np.flatnonzero(keys[found] != wanted) if len(keys) else np.arange(len(wanted))
        if len(missing):
            ngram = [words[each] for each in section.ids[missing[0]].tolist()]
            raise ConfigError(
                f"model.arpa={path} has {' '.join(ngram)} and not what it ends with, {' '.join(ngram[1:])}; make the"
                " file without pruning, or with all endings"
            )
        places = found
    keys = places * len(words) + section.ids[:, 0]
    rising = np.argsort(keys, kind="stable")
    twice = np.flatnonzero(np.diff(keys[rising]) == 0)
    if len(twice):
        ngram = [words[each] for each in section.ids[rising[twice[0]]].tolist()]
        raise ConfigError(f"model.arpa={path} has {' '.join(ngram)} twice; mend the file")
    probabilities, backoffs = (section.numbers[rising].T * LN10).astype(np.float32)
    weights[f"keys_{order}"] = keys[rising]
    weights[f"log_probabilities_{order}"] = probabilities
    weights[f"log_backoffs_{order}"] = backoffs

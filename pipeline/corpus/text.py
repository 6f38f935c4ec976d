"""The one definition of a word: a block of bytes → its words, in order.

In: a block as the reader of sources cuts it. LF stands where a line (or a document) ends, and nowhere else; a block
ends after an ASCII white-space byte or with its unit, so that neither a word nor a UTF-8 sequence spans two blocks.
Out: an Arrow array of words in which the one-character string "\\n" stands for each line end.
Refuses: nothing. Any bytes are text; what is not valid UTF-8 becomes U+FFFD.

Everything here is whole-array arithmetic, linear in the block's bytes whatever they hold; no word is copied by itself.
"""

import sys
import unicodedata
from functools import cache
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

WordRule = Literal["whitespace", "words"]
Bytes = npt.NDArray[np.uint8]

LINE_END = "\n"
REPLACEMENT = "\N{REPLACEMENT CHARACTER}".encode()

# What a character is to the rule `words`. The order counts: from LETTER on, a character belongs inside a word.
SPACE, OTHER, JOINER, DIGIT_JOINER, LETTER, DIGIT = range(6)


def split_words(block: bytes, *, words: WordRule, lowercase: bool) -> pa.Array:
    """Every word of a block, in order.

    `whitespace`: a word is a maximal run of bytes other than the six of ASCII white space (space, \\t, \\n, \\v, \\f,
    \\r). NUL, U+0085, U+00A0 and U+2028 are characters of a word like any other.

    `words`, for raw text: a word is a maximal run of letters, marks and digits (Unicode's categories L, M and N), and a
    single joiner between two of them belongs to the word: an apostrophe (' or ’) or a hyphen between any two, a period
    or a comma between two digits. White space, as `str.isspace` says, separates; any other character is a word by
    itself.

        don't well-known 3.14 1,000   →   don't  well-known  3.14  1,000
        "U.S." (end.Next) rock 'n' x--y   →   "  U  .  S  .  "  (  end  .  Next  )  rock  '  n  '  x  -  -  y
        <unk> 5th_row 10% A4,5   →   <  unk  >  5th  _  row  10  %  A4,5

    So `words` takes a literal `<eos>` or `<unk>` apart. Categories and lower case are those of this Python's
    Unicode tables.

    Args:
        block: bytes in which LF ends a line; fewer than 2 GiB, also once replaced and lower-cased.
        words: the rule.
        lowercase: whether words are lower-cased as `str.lower` does, before they are split.

    Returns:
        `pa.string()` array without nulls; "\\n" for each line end.
    """
    text = valid_utf8(block)
    if lowercase:
        text = _lower(text)
    assert len(text) < 2**31, f"a block of {len(text)} bytes overflows the offsets of an Arrow string array"
    return _split_whitespace(text) if words == "whitespace" else _split_punctuation(text)


def valid_utf8(block: bytes) -> bytes:
    """The block itself if it is valid UTF-8, else with U+FFFD where Python's "replace" puts it."""
    # Arrow checks some 20 times faster than decoding does.
    buffers = [None, pa.py_buffer(np.array([0, len(block)], dtype=np.int64)), pa.py_buffer(block)]
    try:
        pa.Array.from_buffers(pa.large_string(), 1, buffers).validate(full=True)
    except pa.ArrowInvalid:
        return block.decode("utf-8", "replace").encode()
    return block


def _lower(text: bytes) -> bytes:
    """`str.lower` of valid UTF-8. Arrow's utf8_lower knows neither the final sigma (ς) nor İ → i + U+0307.

    The lower case of a character depends on its neighbours up to white space at most, so lines are taken one by one and
    only those that are not ASCII pay for Unicode.
    """
    if text.isascii():
        return text.lower()
    lines = text.split(b"\n")
    return b"\n".join([line.lower() if line.isascii() else line.decode().lower().encode() for line in lines])


def _split_whitespace(text: bytes) -> pa.Array:
    """The rule `whitespace` on valid UTF-8."""
    data = np.frombuffer(text, dtype=np.uint8)
    separators = np.flatnonzero((data == ord(" ")) | (data - np.uint8(ord("\t")) < 5))
    # Row j: the length of the word that separator j ends, and of the line end that it is; 0 where there is none.
    lengths = np.zeros((len(separators) + 1, 2), dtype=np.int32)
    lengths[:, 0] = np.diff(separators, prepend=-1, append=len(text)) - 1
    lengths[:-1, 1] = data[separators] == ord("\n")
    present = lengths[lengths > 0]
    offsets = np.zeros(len(present) + 1, dtype=np.int32)
    np.cumsum(present, out=offsets[1:])
    return _string_array(offsets, text.translate(None, b" \t\v\f\r"))


def _split_punctuation(text: bytes) -> pa.Array:
    """The rule `words` on valid UTF-8."""
    text = b" " + text + b" "  # so that every joiner has two neighbours
    data = np.frombuffer(text, dtype=np.uint8)
    kinds = _kinds_of_bytes(text, data)
    _join(kinds, data)
    inside = kinds >= LETTER
    starts = (data & 0xC0) != 0x80
    starts[1:] &= ~(inside[1:] & inside[:-1])
    kept = kinds != SPACE
    starts &= kept
    num_kept_before = np.cumsum(kept, dtype=np.int32)
    offsets = np.append(num_kept_before[starts] - 1, num_kept_before[-1]).astype(np.int32)
    return _string_array(offsets, data[kept])


def _kinds_of_bytes(text: bytes, data: Bytes) -> Bytes:
    """The kind of each byte's character; the bytes of one character are all of its kind."""
    kinds = np.frombuffer(text.translate(_kinds_of_characters()[:256].tobytes()), dtype=np.uint8).copy()
    high = np.flatnonzero(data >= 0x80)
    # Valid UTF-8 stays valid when the ASCII bytes between its characters are taken out.
    codes = np.frombuffer(data[high].tobytes().decode().encode("utf-32-le"), dtype="<u4")
    widths = 2 + (codes >= 0x800).astype(np.int8) + (codes >= 0x10000)
    kinds[high] = np.repeat(_kinds_of_characters()[codes], widths)
    return kinds


def _join(kinds: Bytes, data: Bytes) -> None:
    """Makes letters, in place, of the joiners that stand alone between two characters of a word."""
    joiners = np.flatnonzero(((kinds == JOINER) | (kinds == DIGIT_JOINER)) & ((data & 0xC0) != 0x80))
    widths = np.where(data[joiners] < 0x80, 1, 3)  # ’ has three bytes, the others have one
    before, after = kinds[joiners - 1], kinds[joiners + widths]
    needed = np.where(kinds[joiners] == JOINER, LETTER, DIGIT)
    joined = (before >= needed) & (after >= needed)
    firsts, widths = joiners[joined], widths[joined]
    for byte in range(3):
        kinds[firsts[widths > byte] + byte] = LETTER


@cache
def _kinds_of_characters() -> Bytes:
    """The kind of every code point, uint8 [0x110000]; built once per process in some 0.2 s."""
    categories = {"L": LETTER, "M": LETTER, "N": DIGIT}
    characters = map(chr, range(sys.maxunicode + 1))
    kinds = bytearray(
        SPACE if each.isspace() else categories.get(unicodedata.category(each)[0], OTHER) for each in characters
    )
    kinds[ord(LINE_END)] = OTHER
    for joiner in "'’-":
        kinds[ord(joiner)] = JOINER
    for joiner in ".,":
        kinds[ord(joiner)] = DIGIT_JOINER
    return np.frombuffer(bytes(kinds), dtype=np.uint8)


def _string_array(offsets: npt.NDArray[np.int32], data: bytes | Bytes) -> pa.Array:
    """Words that lie one after the other in `data`, word i at [offsets[i], offsets[i + 1]); nothing is copied."""
    return pa.Array.from_buffers(pa.string(), len(offsets) - 1, [None, pa.py_buffer(offsets), pa.py_buffer(data)])

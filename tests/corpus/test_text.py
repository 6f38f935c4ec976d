"""The fast splitting of words equals the plain definition, on any bytes."""

import unicodedata

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.corpus import text
from pipeline.corpus.text import split_words

# Pieces that have tripped other tokenizers: white space that is not ASCII, controls, joiners, marks, astral characters,
# characters whose lower case is longer or depends on their neighbours, and bytes that are not UTF-8.
PIECES = [
    *[b" ", b"\t", b"\n", b"\v", b"\f", b"\r", b"\r\n", b"\n\n", b"\0", b"\x1c", b"\x1f", b"\x7f", b"  "],
    *[each.encode() for each in "\x85\xa0\u2028\u2029\u3000\u200b\u200d\ufeff\ufffd"],
    *[each.encode() for each in "\u0301\u0903\u20dd\u2019\u2018\u2010"],
    *[each.encode() for each in "aZ09é½²٣Σσςİıßẞ中𐐀𝟘😀\U000e0100\U0010ffff"],
    *[each.encode() for each in "'-.,_<>!\"/"],
    *[b"<unk>", b"<eos>", b"don't", b"3.14", b"1,000", b"x--y", "ΑΣ".encode(), "ΑΣ’Σ".encode()],
    *[
        b"\x80",
        b"\xbf",
        b"\xc0\xaf",
        b"\xc3",
        b"\xe2\x80",
        b"\xed\xa0\x80",
        b"\xf0\x9f\x98",
        b"\xf4\x90\x80\x80",
        b"\xff",
    ],
]
BLOCKS = st.one_of(
    st.lists(st.sampled_from(PIECES), max_size=40).map(b"".join),
    st.binary(max_size=60),
    st.text(max_size=40).map(lambda each: each.encode("utf-8", "surrogatepass")),
    st.text(alphabet="aB1½.,'’- \n", max_size=40).map(str.encode),
)


def plain_whitespace(content: str) -> list[str]:
    """The rule `whitespace`, as one would write it down."""
    found: list[bytes] = []
    for line in content.encode().split(b"\n"):
        found += [*line.split(), b"\n"]
    return [word.decode() for word in found[:-1]]


def is_inside(character: str) -> bool:
    return unicodedata.category(character)[0] in "LMN"


def is_digit(character: str) -> bool:
    return unicodedata.category(character)[0] == "N"


def plain_words(content: str) -> list[str]:
    """The rule `words`, character by character."""
    found: list[str] = []
    open_word = False  # whether the last word found may go on
    for before, character, after in zip(" " + content, content, content[1:] + " ", strict=False):
        joins = (character in "'’-" and is_inside(before) and is_inside(after)) or (
            character in ".," and is_digit(before) and is_digit(after)
        )
        if is_inside(character) or joins:
            if open_word:
                found[-1] += character
            else:
                found.append(character)
            open_word = True
        else:
            open_word = False
            if character == "\n" or not character.isspace():
                found.append(character)
    return found


PLAIN = {"whitespace": plain_whitespace, "words": plain_words}


@pytest.mark.parametrize("lowercase", [False, True])
@pytest.mark.parametrize("rule", ["whitespace", "words"])
@given(block=BLOCKS)
@example(block=b"")
@example(block=b"\n")
@example(block=b"a")
@example(block=b"'a-1.2")
@example(block="’".encode())
@example(block=b" a \n\n b")
def test_split_words_equals_the_plain_definition(rule, lowercase, block):
    content = block.decode("utf-8", "replace")
    expected = PLAIN[rule](content.lower() if lowercase else content)
    found = split_words(block, words=rule, lowercase=lowercase)
    found.validate(full=True)
    assert found.type == pa.string()
    assert found.null_count == 0
    assert found.to_pylist() == expected


@pytest.mark.parametrize("rule", ["whitespace", "words"])
@given(blocks=st.lists(BLOCKS, max_size=4), seam=st.sampled_from([b" ", b"\n", b"\t"]))
def test_a_cut_after_white_space_changes_nothing(rule, blocks, seam):
    parts = [split_words(block + seam, words=rule, lowercase=True).to_pylist() for block in blocks]
    whole = split_words(b"".join(block + seam for block in blocks), words=rule, lowercase=True).to_pylist()
    assert [word for part in parts for word in part] == whole


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("don't well-known 3.14 1,000", "don't|well-known|3.14|1,000"),
        ("\"U.S.\" (end.Next) rock 'n' x--y", "\"|U|.|S|.|\"|(|end|.|Next|)|rock|'|n|'|x|-|-|y"),
        ("<unk> 5th_row 10% A4,5", "<|unk|>|5th|_|row|10|%|A4,5"),
        ("l’été naïve’", "l’été|naïve|’"),
        ("1.2.3 1..2 .5 5. a.5 5,a", "1.2.3|1|.|.|2|.|5|5|.|a|.|5|5|,|a"),
        ("a-1 1-a 1'2 a'-b a\u0301-b", "a-1|1-a|1'2|a|'|-|b|a\u0301-b"),
        ("a\u00a0b\u2028c\x1cd\u0085e\u200bf", "a|b|c|d|e|\u200b|f"),
        ("a\0b 😀😀", "a|\0|b|😀|😀"),
    ],
)
def test_words_rule_by_example(content, expected):
    assert split_words(content.encode(), words="words", lowercase=False).to_pylist() == expected.split("|")


def test_every_character_alone_is_a_word_as_its_category_says():
    content = "".join(f"a{chr(code)}b1{chr(code)}2\n" for code in range(0x30000) if not 0xD800 <= code < 0xE000)
    assert split_words(content.encode(), words="words", lowercase=False).to_pylist() == plain_words(content)
    assert split_words(content.encode(), words="whitespace", lowercase=False).to_pylist() == plain_whitespace(content)


def test_lower_case_is_that_of_str_and_not_of_arrow():
    found = split_words("ΟΔΟΣ ΣΑΣ İI ẞ\nABC".encode(), words="whitespace", lowercase=True).to_pylist()
    assert found == ["οδος", "σας", "i̇i", "ß", "\n", "abc"]


def test_invalid_bytes_are_replaced_as_python_does():
    found = split_words(b"a\xffb \xe2\x80 \xed\xa0\x80\n", words="whitespace", lowercase=False).to_pylist()
    assert found == ["a\ufffdb", "\ufffd", "\ufffd\ufffd\ufffd", "\n"]


@pytest.mark.parametrize("rule", ["whitespace", "words"])
@pytest.mark.parametrize("unit", [b"a", "é".encode(), b"\xff", b"a-", b"1.", b"'"])
def test_hostile_megabytes_are_linear(rule, unit):
    block = unit * ((3 << 20) // len(unit) + 1)
    found = split_words(block, words=rule, lowercase=True)
    assert "".join(found.to_pylist()) == block.decode("utf-8", "replace").lower()


def test_words_lie_on_the_text_and_not_in_copies():
    block = b"one two\nthree\n" * 1000
    found = split_words(block, words="whitespace", lowercase=False)
    assert found.nbytes <= len(block) + 4 * (len(found) + 1)


def test_the_table_of_kinds_covers_unicode():
    kinds = text._kinds_of_characters()
    assert kinds.shape == (0x110000,)
    assert kinds.dtype == np.uint8
    assert not kinds.flags.writeable

"""The key of a unit: another as soon as its words are, and that of earlier versions otherwise."""

import gzip
from dataclasses import replace

import pytest
from support.corpora import corpus_config, key_of

from pipeline.corpus.sources import cut_units, list_sources
from pipeline.corpus.units import Source


def test_a_units_key_is_of_all_that_decides_its_words(tmp_path):
    packed = gzip.compress(b'{"text": "one two"}\n', mtime=0)
    for name in ("a.jsonl.gz", "a.bin"):
        (tmp_path / name).write_bytes(packed)
    corpus = corpus_config(train=str(tmp_path))
    (unit,) = cut_units(Source("train", "jsonl", str(tmp_path / "a.jsonl.gz")), corpus)
    changes = [{"format": "text"}, {"last": False}, {"low": 0.5}, {"high": 0.5}, {"has_mark": True}]
    changes.append({"format": "text", "path": str(tmp_path / "a.bin")})
    keys = [key_of(replace(unit, **each), corpus) for each in ({}, *changes)]
    assert len(set(keys)) == len(keys)


KEYS_OF_BEFORE = {  # as the first version made them: what is kept under them is taken as it is
    ("a.txt", "whole"): ["8d4eb6ab4759c168"],
    ("a.txt", "shares"): ["e384fc5b901a9654", "48f855e61fdf3a45"],
    ("l.txt", "whole"): ["67e782a37153e630"],
    ("b.jsonl", "whole"): ["2db67972d86e75bb"],
    ("b.jsonl", "shares"): ["5d5d42ebbb366022", "3af61d9aecff9357"],
    ("c.txt.gz", "whole"): ["333a6d1ad7773c64"],
    ("c.txt.gz", "shares"): ["d4e75e52d0ac9e80", "8750665f9a062659"],
}


@pytest.mark.parametrize(("name", "rule"), KEYS_OF_BEFORE)
def test_keys_of_before_stay(tmp_path, name, rule):
    path = tmp_path / name
    path.write_bytes(
        {
            "a.txt": "one two\nfünf\ntail".encode(),
            "l.txt": b"caf\xe9\n",
            "b.jsonl": b'{"text": "a b"}\n{"text": "c\\nd"}\n',
            "c.txt.gz": bytes.fromhex("1f8b08000000000002034b5448e20200a1e98d2d04000000"),
        }[name]
    )
    rules = {"whole": {}, "shares": {"valid_fraction": 0.25, "documents": "lines"}}[rule]
    corpus = corpus_config(train=str(path), **rules)
    (source,) = list_sources(corpus)
    keys = [key_of(unit, corpus)[:16] for unit in cut_units(source, corpus)]
    assert keys == KEYS_OF_BEFORE[name, rule]


@pytest.mark.parametrize(
    ("name", "content", "before"),
    [
        ("mark.txt", b"\xef\xbb\xbfa b\n", "161b1cb97109140c"),
        ("packed.txt", bytes.fromhex("1f8b08000000000002034b5448e20200a1e98d2d04000000"), "9b332da333d8f9c7"),
        ("mark.gz", bytes.fromhex("1f8b08000000000002037bbf7b7fa2421217004e43d78607000000"), "6c5df6fd93974f59"),
        ("rows.json", b'{"text": "a"}\n', "c33d94c289e63f31"),
    ],
)
def test_keys_of_before_go_where_the_words_are_others_now(tmp_path, name, content, before):
    (tmp_path / name).write_bytes(content)
    corpus = corpus_config(train=str(tmp_path / name))
    (source,) = list_sources(corpus)
    (unit,) = cut_units(source, corpus)
    assert key_of(unit, corpus)[:16] != before

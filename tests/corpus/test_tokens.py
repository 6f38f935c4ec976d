"""Token shards: bytes are a function of the tokens, and a reader sees exactly them or refuses."""

import hashlib
import subprocess
import sys
from contextlib import suppress
from dataclasses import astuple
from importlib.util import find_spec
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.corpus import tokens as module
from pipeline.corpus.manifest import Manifest, Shard, Split
from pipeline.corpus.tokens import (
    BATCH_TOKENS,
    TokenSequence,
    WrittenShard,
    check_counts,
    is_token_shard,
    token_type,
    write_shard,
)
from pipeline.corpus.vocabulary import Vocabulary
from pipeline.errors import CorpusError

FINGERPRINT = "ab" * 32


def write(path, arrays, vocab_size=100, fingerprint=FINGERPRINT, source="train.txt[0:9]"):
    arrays = [np.asarray(each, dtype=np.int32) for each in arrays]
    return write_shard(
        str(path), iter(arrays), vocabulary_fingerprint=fingerprint, vocab_size=vocab_size, source=source
    )


def shard_of(name, receipt):
    return Shard(
        name=name, num_tokens=receipt.num_tokens, size_bytes=receipt.size_bytes, sha256=receipt.sha256, source=""
    )


def sequence_of(data, shards, vocab_size=100, fingerprint=FINGERPRINT):
    return TokenSequence(str(data), shards=shards, vocabulary_fingerprint=fingerprint, vocab_size=vocab_size)


@pytest.fixture
def small_batches(monkeypatch):
    """Batches of 4 tokens, so that small shards have joints."""
    monkeypatch.setattr(module, "BATCH_TOKENS", 4)


def test_two_trials_of_one_task_do_not_write_into_each_other(tmp_path):
    """Ray tries a task again where it takes a worker for dead."""
    path = tmp_path / "00000.arrow"
    write(tmp_path / "alone.arrow", [[1, 2], [3]])
    whole = (tmp_path / "alone.arrow").read_bytes()

    def slow():
        yield np.array([1, 2])
        write(path, [[1, 2], [3]])
        assert path.read_bytes() == whole
        yield np.array([3])

    write_shard(str(path), slow(), vocabulary_fingerprint=FINGERPRINT, vocab_size=100, source="train.txt[0:9]")
    assert path.read_bytes() == whole
    assert len(list(tmp_path.iterdir())) == 2


# --- counting


def counted(folder, shards, *, num_unk, counts):
    """What `check_counts` says of a corpus with these shards as its split train and a copy of them as valid."""
    vocabulary = Vocabulary(words=pa.array(["<eos>", "<unk>", "a", "b"]), counts=np.array(counts))
    splits = {}
    for split, found_unk in zip(("train", "valid"), num_unk, strict=True):
        made = []
        for number, ids in enumerate(shards):
            name = f"{split}/{number:05}.arrow"
            made.append(shard_of(name, write(folder / name, [ids], vocab_size=4, fingerprint=vocabulary.fingerprint)))
        num_tokens = sum(each.num_tokens for each in made)
        splits[split] = Split(shards=tuple(made), num_tokens=num_tokens, num_unk=found_unk)
    manifest = Manifest(
        splits=splits,
        vocab_size=4,
        vocabulary_fingerprint=vocabulary.fingerprint,
        vocabulary_sha256=None,
        configuration={},
        tool_version="0",
    )
    return check_counts(str(folder), manifest, vocabulary)


@pytest.mark.parametrize("counted_tokens", [1, 3, 1 << 22])
def test_counts_that_are_not_those_of_the_tokens_are_named(tmp_path, monkeypatch, counted_tokens):
    monkeypatch.setattr(module, "COUNTED_TOKENS", counted_tokens)
    shards = [[0, 1, 2], [], [3, 3], [1, 0, 0]]
    assert counted(tmp_path / "a", shards, num_unk=(2, 2), counts=[3, 2, 1, 2]) == []
    assert counted(tmp_path / "a", [[]], num_unk=(0, 0), counts=[0, 0, 0, 0]) == []
    assert counted(tmp_path / "a", shards, num_unk=(2, 3), counts=[3, 2, 1, 2]) == [
        "valid: found <unk> 2 times, the manifest counts 3"
    ]
    assert counted(tmp_path / "a", shards, num_unk=(1, 2), counts=[3, 2, 0, 3]) == [
        "train: found <unk> 2 times, the manifest counts 1",
        "train: found a 1 times, vocabulary.arrow counts 0",
    ]


def test_an_id_beyond_the_vocabulary_is_refused_by_its_shard(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_rechunk", lambda ids, vocab_size: (np.uint16(each) for each in ids))
    with pytest.raises(CorpusError, match=r"train/00001\.arrow holds an id beyond 4 words; run "):
        counted(tmp_path, [[3], [4]], num_unk=(0, 0), counts=[0, 0, 0, 1])


def test_a_token_shard_says_so_itself(tmp_path):
    write(tmp_path / "a.arrow", [[1]])
    assert is_token_shard(str(tmp_path / "a.arrow"))
    for name, schema in {
        "b": pa.schema([pa.field("token", pa.uint16())]),
        "c": pa.schema([pa.field("text", pa.string())], metadata={"vocabulary_fingerprint": FINGERPRINT}),
    }.items():
        with pa.ipc.new_file(str(tmp_path / name), schema):
            pass
        assert not is_token_shard(str(tmp_path / name))
    for length in (0, 5, 200):
        (tmp_path / "d").write_bytes((tmp_path / "a.arrow").read_bytes()[:length])
        assert not is_token_shard(str(tmp_path / "d"))
    assert not is_token_shard(str(tmp_path / "absent"))


# --- writing


@pytest.mark.parametrize(("vocab_size", "expected"), [(3, pa.uint16()), (65_536, pa.uint16()), (65_537, pa.int32())])
def test_tokens_are_uint16_if_and_only_if_every_id_fits(tmp_path, vocab_size, expected):
    assert token_type(vocab_size) == expected
    receipt = write(tmp_path / "a.arrow", [[0, vocab_size - 1]], vocab_size)
    found = sequence_of(tmp_path, [shard_of("a.arrow", receipt)], vocab_size).read(0, 2)
    assert found.tolist() == [0, vocab_size - 1]
    assert found.dtype == np.int64
    assert pa.ipc.open_file(str(tmp_path / "a.arrow")).schema.field("token") == pa.field("token", expected, False)


@pytest.mark.parametrize("bad", [-1, 100])
def test_ids_beyond_the_vocabulary_are_our_own_mistake(tmp_path, bad):
    with pytest.raises(AssertionError, match="beyond the vocabulary"):
        write(tmp_path / "a.arrow", [[1], [99, bad]])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("num_tokens", "expected"),
    [
        (0, []),
        (1, [1]),
        (2**20 - 1, [2**20 - 1]),
        (2**20, [2**20]),
        (2**20 + 1, [2**20, 1]),
        (2**21 + 3, [2**20, 2**20, 3]),
    ],
)
def test_record_batches_hold_a_mebi_of_tokens(tmp_path, num_tokens, expected):
    ids = np.arange(num_tokens) % 97
    receipt = write(tmp_path / "a.arrow", [ids])
    reader = pa.ipc.open_file(str(tmp_path / "a.arrow"))
    assert [reader.get_batch(number).num_rows for number in range(reader.num_record_batches)] == expected
    assert receipt.num_tokens == num_tokens
    assert np.array_equal(reader.read_all()["token"].to_numpy(), ids)
    sequence = sequence_of(tmp_path, [shard_of("a.arrow", receipt)])
    assert len(sequence) == num_tokens
    assert np.array_equal(sequence.read(0, num_tokens), ids)


def test_the_receipt_tells_what_was_written(tmp_path):
    receipt = write(tmp_path / "new" / "a.arrow", [[1, 0, 5], [], [1, 1]])
    content = (tmp_path / "new" / "a.arrow").read_bytes()
    assert receipt == WrittenShard(5, len(content), hashlib.sha256(content).hexdigest(), 3)
    assert [each.name for each in (tmp_path / "new").iterdir()] == ["a.arrow"]


def test_the_schema_carries_fingerprint_and_source(tmp_path):
    write(tmp_path / "a.arrow", [[1]], source="ä.txt[0:9]")
    schema = pa.ipc.open_file(str(tmp_path / "a.arrow")).schema
    assert schema.names == ["token"]
    assert not schema.field("token").nullable
    assert schema.metadata == {b"vocabulary_fingerprint": FINGERPRINT.encode(), b"source": "ä.txt[0:9]".encode()}


@given(data=st.data(), ids=st.lists(st.integers(0, 99), max_size=23))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_bytes_do_not_depend_on_how_the_ids_were_cut(tmp_path, small_batches, data, ids):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(ids)), max_size=6)))
    parts = [ids[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(ids)], strict=True)]
    whole, cut = write(tmp_path / "whole", [ids]), write(tmp_path / "cut", parts)
    assert whole == cut
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "cut").read_bytes()
    assert whole.num_unk == ids.count(1)


def test_no_ids_at_all_make_an_empty_shard(tmp_path):
    receipt = write(tmp_path / "a.arrow", [])
    assert astuple(receipt)[::3] == (0, 0)
    sequence = sequence_of(tmp_path, [shard_of("a.arrow", receipt)])
    assert len(sequence) == 0
    assert sequence.read(0, 0).tolist() == []


def test_a_failure_while_writing_leaves_the_old_shard(tmp_path):
    write(tmp_path / "a.arrow", [[1, 2]])
    before = (tmp_path / "a.arrow").read_bytes()

    def failing():
        yield np.array([3])
        raise OSError("lost")

    with pytest.raises(OSError, match="lost"):
        write_shard(str(tmp_path / "a.arrow"), failing(), vocabulary_fingerprint=FINGERPRINT, vocab_size=100, source="")
    assert (tmp_path / "a.arrow").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


# --- reading


@given(lengths=st.lists(st.integers(0, 11), max_size=5), data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_range_equals_the_slice(tmp_path, small_batches, lengths, data):
    total = sum(lengths)
    ids = np.random.default_rng(total).integers(0, 100, total)
    parts = np.split(ids, np.cumsum(lengths)[:-1]) if lengths else []
    shards = [shard_of(f"s/{n}.arrow", write(tmp_path / "s" / f"{n}.arrow", [part])) for n, part in enumerate(parts)]
    sequence = sequence_of(tmp_path, shards)
    assert len(sequence) == total
    for _ in range(4):
        start = data.draw(st.integers(0, total))
        stop = data.draw(st.integers(start, total))
        found = sequence.read(start, stop)
        assert found.dtype == np.int64
        assert found.tolist() == ids[start:stop].tolist()
    assert sequence.read(0, total).tolist() == ids.tolist()


def test_what_is_read_is_a_copy(tmp_path):
    sequence = sequence_of(tmp_path, [shard_of("a", write(tmp_path / "a", [[5, 6, 7]]))])
    sequence.read(0, 3)[:] = 0
    assert sequence.read(0, 3).tolist() == [5, 6, 7]


@pytest.mark.parametrize(("start", "stop"), [(-1, 1), (2, 1), (0, 4), (4, 4)])
def test_ranges_beyond_the_sequence_are_our_own_mistake(tmp_path, start, stop):
    sequence = sequence_of(tmp_path, [shard_of("a", write(tmp_path / "a", [[5, 6, 7]]))])
    with pytest.raises(AssertionError, match="not within"):
        sequence.read(start, stop)


def test_a_sequence_of_no_shards_is_empty():
    assert len(sequence_of("nowhere", [])) == 0


def test_shards_are_opened_when_read_and_once(tmp_path, monkeypatch):
    opened = []
    plain_map = pa.memory_map
    shards = [shard_of(name, write(tmp_path / name, [[5, 6, 7]])) for name in "abc"]
    monkeypatch.setattr(module.pa, "memory_map", lambda path: opened.append(Path(path).name) or plain_map(path))
    sequence = sequence_of(tmp_path, shards)
    assert opened == []
    assert sequence.read(3, 6).tolist() == [5, 6, 7]
    assert opened == ["b"]
    sequence.read(2, 4)
    sequence.read(2, 4)
    assert opened == ["b", "a"]


def test_local_shards_are_mapped_and_not_read(tmp_path):
    receipt = write(tmp_path / "a", [np.arange(3 * BATCH_TOKENS + 1) % 100])
    before = pa.total_allocated_bytes()
    sequence = sequence_of(tmp_path, [shard_of("a", receipt)])
    assert sequence.read(BATCH_TOKENS - 1, BATCH_TOKENS + 1).tolist() == [(BATCH_TOKENS - 1) % 100, BATCH_TOKENS % 100]
    assert pa.total_allocated_bytes() - before < 100_000


def test_a_file_url_and_an_object_store_read_alike(tmp_path):
    receipt = write(tmp_path / "a", [[5, 6, 7]])
    assert sequence_of(f"file://{tmp_path}", [shard_of("a", receipt)]).read(1, 3).tolist() == [6, 7]
    remote = write("memory://tokens/a", [[5, 6, 7]])
    assert remote == receipt
    assert sequence_of("memory://tokens", [shard_of("a", remote)]).read(1, 3).tolist() == [6, 7]
    fsspec.filesystem("memory").rm("/tokens", recursive=True)
    with pytest.raises(CorpusError, match="memory://tokens/a cannot be read"):
        sequence_of("memory://tokens", [shard_of("a", remote)]).read(0, 1)


# --- refusing


def refusal(data, shard, **options):
    with pytest.raises(CorpusError) as refused:
        sequence_of(data, [shard], **options).read(0, 1)
    message = str(refused.value)
    assert "\n" not in message
    assert message.endswith("run `python -m jobs prepare` again")
    assert shard.name in message
    return message


def test_a_shard_with_another_token_count_is_refused(tmp_path):
    shard = shard_of("a.arrow", write(tmp_path / "a.arrow", [[5, 6, 7]]))
    for num_tokens in (2, 4):
        wrong = shard.model_copy(update={"num_tokens": num_tokens})
        assert f"holds 3 tokens, needed {num_tokens}" in refusal(tmp_path, wrong)


def test_a_shard_of_another_vocabulary_is_refused(tmp_path):
    shard = shard_of("a.arrow", write(tmp_path / "a.arrow", [[5, 6, 7]]))
    needed = "cd" * 32
    message = refusal(tmp_path, shard, fingerprint=needed)
    assert f"has vocabulary fingerprint '{FINGERPRINT}', needed '{needed}'" in message


def test_a_shard_of_another_type_is_refused(tmp_path):
    shard = shard_of("a.arrow", write(tmp_path / "a.arrow", [[5, 6, 7]]))
    message = refusal(tmp_path, shard, vocab_size=65_537)
    assert "holds pyarrow.Field<token: uint16 not null>, needed pyarrow.Field<token: int32 not null>" in message


@pytest.mark.parametrize(
    "columns",
    [{}, {"ids": pa.array([5], pa.uint16())}, {"token": pa.array([5], pa.uint16()), "b": pa.array([5], pa.uint16())}],
)
@pytest.mark.parametrize("nullable", [False, True])
def test_other_arrow_files_are_refused(tmp_path, columns, nullable):
    schema = pa.schema([pa.field(name, column.type, nullable) for name, column in columns.items()])
    with pa.ipc.new_file(str(tmp_path / "a.arrow"), schema) as writer:
        writer.write_table(pa.table(list(columns.values()), schema=schema))
    shard = Shard(name="a.arrow", num_tokens=1, size_bytes=1, sha256="0" * 64, source="")
    assert "needed pyarrow.Field<token: uint16 not null>" in refusal(tmp_path, shard)


@pytest.mark.parametrize(
    ("nullable", "metadata", "message"),
    [
        (True, {}, "holds pyarrow.Field<token: uint16>"),
        (False, {}, "has vocabulary fingerprint 'none'"),
        (False, {"vocabulary_fingerprint": FINGERPRINT}, "holds nulls, needed none"),
    ],
)
def test_foreign_token_columns_are_refused(tmp_path, nullable, metadata, message):
    schema = pa.schema([pa.field("token", pa.uint16(), nullable)], metadata=metadata)
    with pa.ipc.new_file(str(tmp_path / "a.arrow"), schema) as writer:
        writer.write_batch(pa.record_batch([pa.array([None], pa.uint16())], schema=schema))
    shard = Shard(name="a.arrow", num_tokens=1, size_bytes=1, sha256="0" * 64, source="")
    assert message in refusal(tmp_path, shard)


def test_a_missing_or_truncated_shard_is_refused(tmp_path):
    path = tmp_path / "a.arrow"
    shard = shard_of("a.arrow", write(path, [np.arange(5000) % 100]))
    whole = path.read_bytes()
    for length in [0, 3, 10, 300, 5000, len(whole) - 1]:
        path.write_bytes(whole[:length])
        assert "cannot be read" in refusal(tmp_path, shard)
    path.unlink()
    assert "cannot be read" in refusal(tmp_path, shard)


def test_any_damaged_byte_is_refused_or_harmless_but_never_a_crash(tmp_path, small_batches):
    """Arrow has no checksums: a damaged token goes unseen here (digests find it), a damaged header must not escape."""
    path = tmp_path / "a.arrow"
    shard = shard_of("a.arrow", write(path, [[5, 6, 7, 8, 9]]))
    whole = path.read_bytes()
    num_refused = 0
    for position in range(len(whole)):
        flip = (0x01, 0x80, 0xFF)[position % 3]
        path.write_bytes(whole[:position] + bytes([whole[position] ^ flip]) + whole[position + 1 :])
        num_refused += 1
        with suppress(CorpusError):
            assert len(sequence_of(tmp_path, [shard]).read(0, 5)) == 5
            num_refused -= 1
    assert num_refused > len(whole) // 20
    path.write_bytes(whole)
    assert sequence_of(tmp_path, [shard]).read(0, 5).tolist() == [5, 6, 7, 8, 9]


WRITTEN_AND_READ = """
import sys
import numpy as np
from pipeline.corpus.lanes import LanePlan
from pipeline.corpus.manifest import Manifest, Shard, Split, check_shards, read_manifest, write_manifest
from pipeline.corpus.order import Order
from pipeline.corpus.stream import read_windows
from pipeline.corpus.tokens import TokenSequence, write_shard

data, size = sys.argv[1], int(sys.argv[2])
made = write_shard(f"{data}/a.arrow", [np.arange(90)], vocabulary_fingerprint="0" * 64, vocab_size=size, source="")
shard = Shard(name="a.arrow", num_tokens=90, size_bytes=made.size_bytes, sha256=made.sha256, source="")
split = Split(shards=(shard,), num_tokens=90, num_unk=1)
known = {"vocab_size": size, "vocabulary_fingerprint": "0" * 64}
write_manifest(Manifest(splits={"train": split}, configuration={}, tool_version="0", **known), data)
manifest = read_manifest(data)
assert check_shards(data, manifest, digests=True) == []
tokens = TokenSequence(data, shards=manifest.splits["train"].shards, **known)
plan, order = LanePlan(num_targets=90, num_lanes=3, bptt=4), Order(num_tokens=90, block_tokens=7)
assert sum(len(window.targets_N) for window in read_windows(tokens, plan, start=0, stop=8, lanes=range(3))) == 90
list(read_windows(tokens, plan, start=0, stop=8, lanes=range(3), order=order))
print("pandas" in sys.modules)
"""


@pytest.mark.parametrize("vocab_size", [100, 70_000])
def test_shards_are_written_and_read_without_pandas(tmp_path, vocab_size):
    """Most conversions of pyarrow load it, which takes each process 0.2 s."""
    assert find_spec("pandas") is not None
    done = subprocess.run(
        [sys.executable, "-c", WRITTEN_AND_READ, str(tmp_path), str(vocab_size)],
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["False"]

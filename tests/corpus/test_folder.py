"""A corpus is prepared where nothing is lost by it, by one process at a time."""

import fcntl
import multiprocessing
import signal
import uuid
from pathlib import Path

import pytest
from support.corpora import Calls, config, corpus_config, digests

from pipeline import storage
from pipeline.cluster.tasks import run_here
from pipeline.corpus.folder import reserved
from pipeline.corpus.manifest import read_manifest, verify_corpus
from pipeline.corpus.prepare import prepare
from pipeline.errors import ConfigError


def contents(folder):
    """Every file and folder below a folder, and what it holds."""
    return {path: path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


def refused(folder, corpus, data, match):
    """Refuses in one line, and touches nothing."""
    before = contents(folder)
    with pytest.raises(ConfigError, match=match) as refusal:
        prepare(corpus, str(data), run_tasks=run_here)
    assert "\n" not in str(refusal.value)
    assert contents(folder) == before


# --- input and output apart


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of text, the working folder, and a link to it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d" / "sub").mkdir(parents=True)
    (tmp_path / "d" / "a.txt").write_text("a b c\n")
    (tmp_path / "d" / "sub" / "b.txt").write_text("a b\n")
    (tmp_path / "link").symlink_to("d")
    (tmp_path / "words").write_text("a\nb\n")
    return tmp_path


@pytest.mark.parametrize(
    ("train", "data"),
    [
        ("d", "d/out"),
        ("d", "d"),
        ("d", "d/sub"),
        ("d/a.txt", "d"),
        ("d/*.txt", "d"),
        ("d/**", "d/out"),
        ("d/*/*", "d/out"),
        ("d/**/*t*", "d/out"),
        ("**/*t*", "out"),
        ("d", "link/out"),
        ("link", "d/out"),
        ("link/**", "d/out"),
        ("link/a.txt", "d"),
        ("d", "./sub/../d/../d/out/"),
        ("{here}/d", "d/out"),
        ("file://{here}/d", "d/out"),
        ("d", "file://{here}/d/out"),
        (".", "out"),
    ],
)
def test_output_within_input_is_refused_at_the_first_call(folder, train, data):
    train, data = (each.format(here=folder) for each in (train, data))
    refused(folder, corpus_config(train=train), data, rf"corpus\.train.* data={data}, .*; use another data=FOLDER")


@pytest.mark.parametrize("split", ["valid", "test"])
def test_held_out_text_is_input_too(folder, split):
    refused(folder, corpus_config(train="words", **{split: "d"}), "d/out", rf"corpus\.{split}=d takes in data=d/out, ")
    refused(folder, corpus_config(train="words", **{split: "d/a.txt"}), "d", rf"corpus\.{split}: .*d/a\.txt lies in ")


def test_files_of_a_packaged_builder_and_a_folder_of_a_data_set_are_input_too(folder):
    made = {"source": "datasets", "words": "words"}
    refused(folder, corpus_config(train="d", dataset="text", **made), "d/out", r"corpus\.train=d takes in data=d/out")
    refused(folder, corpus_config(train="train", dataset="d", **made), "d/out", r"corpus\.dataset=d takes in data=")
    refused(folder, corpus_config(train="train", dataset="d/sub", **made), "d", r"corpus\.dataset: d/sub lies in data=")


def test_a_vocabulary_within_the_output_is_refused(folder):
    prepare(corpus_config(train="d/a.txt"), "out", run_tasks=run_here)
    given = {"size": None, "min_count": 1, "path": "link/../out/vocabulary.arrow"}
    refused(folder, corpus_config(train="d/a.txt", vocabulary=given), "out", r"corpus\.vocabulary\.path: .* lies in ")


@pytest.mark.parametrize(
    ("train", "data"),
    [
        ("d/*.txt", "d/out"),
        ("d/**/*.txt", "d/out"),
        ("d/*", "d/out"),
        ("d/a.txt", "d/out"),
        ("d", "dd"),
        ("d", "d.out"),
        ("d/sub", "d/out"),
        ("d/[ab].txt", "d/out"),
    ],
)
def test_output_beside_input_is_not(folder, train, data):
    for _ in range(3):
        manifest = prepare(corpus_config(train=train), data, run_tasks=run_here)
        verify_corpus(data, read_manifest(data), digests=True)
    assert manifest.splits["train"].num_tokens == {"d": 7, "d/sub": 3, "d/**/*.txt": 7}.get(train, 4)


def test_a_link_in_the_input_that_leads_to_the_output_is_found_once_something_is_there(folder):
    prepare(corpus_config(train="words"), "out", run_tasks=run_here)
    (folder / "d" / "m.json").symlink_to("../out/manifest.json")
    refused(folder, corpus_config(train="d"), "out", r"corpus\.train: .*m\.json lies in data=out")


def test_object_stores_are_compared_by_their_names(s3_bucket):
    bucket = f"{s3_bucket}/{uuid.uuid4().hex}"
    storage.publish_bytes(f"{bucket}/d/a.txt", b"a b c\n")
    for train, data in [("d", "d/out"), ("d/a.txt", "d"), ("d/**", "d/out")]:
        with pytest.raises(ConfigError, match=rf"data={bucket}/{data}, which prepare writes to"):
            prepare(corpus_config(train=f"{bucket}/{train}"), f"{bucket}/{data}", run_tasks=run_here)
    assert storage.list_files(bucket) == [f"{bucket}/d/a.txt"]
    for _ in range(2):
        made = prepare(corpus_config(train=f"{bucket}/d"), f"{bucket}/dd", run_tasks=run_here)
    assert made.splits["train"].num_tokens == 4


# --- the user's own files


def test_a_file_is_no_folder(folder):
    refused(folder, corpus_config(train="d"), "words", "data=words is a file, needed a folder; use another")


@pytest.mark.parametrize("name", ["manifest.json", "vocabulary.arrow", "train/00000.arrow", "test/123456.arrow"])
@pytest.mark.parametrize("content", [b"my own", b"{}", b""])
def test_the_users_own_files_at_names_of_a_corpus_are_refused(folder, name, content):
    own = folder / "out" / name
    own.parent.mkdir(parents=True)
    own.write_bytes(content)
    refused(folder, corpus_config(train="d"), "out", rf"data=out holds {name}, which no preparation wrote there; move")


@pytest.mark.parametrize("name", ["train/1.arrow", "train/notes.txt", "train/mine/00000.arrow", "train/0.arrow.bak"])
def test_the_users_own_files_at_other_names_stay(folder, name):
    own = folder / "out" / name
    own.parent.mkdir(parents=True)
    own.write_bytes(b"my own")
    for text in ("d", "words", "d"):
        prepare(corpus_config(train=text), "out", run_tasks=run_here)
    assert own.read_bytes() == b"my own"


def test_the_users_own_shard_in_a_corpus_is_refused_too(folder):
    prepare(corpus_config(train="d"), "out", run_tasks=run_here)
    for number in (7, 8):
        (folder / "out" / "train" / f"0000{number}.arrow").write_bytes(b"my own")
    refused(folder, corpus_config(train="words"), "out", r"data=out holds train/00007\.arrow and 1 more, which no")


def test_what_a_preparation_wrote_is_known_without_manifest_or_work_folder(folder):
    prepare(corpus_config(train="d", valid="words"), "whole", run_tasks=run_here)
    for lost in ([], ["manifest.json"], [".work"], ["manifest.json", ".work"], ["manifest.json", ".work", "train"]):
        prepare(corpus_config(train="d", valid="words"), "out", run_tasks=run_here)
        for name in lost:
            (folder / "out" / name).rename(folder / uuid.uuid4().hex)
        prepare(corpus_config(train="words"), "out", run_tasks=run_here)
        prepare(corpus_config(train="d", valid="words"), "out", run_tasks=run_here)
        assert digests(folder / "out") == digests(folder / "whole")


def test_a_damaged_shard_without_a_manifest_is_known_by_its_receipt(folder):
    prepare(corpus_config(train="d"), "whole", run_tasks=run_here)
    prepare(corpus_config(train="d"), "out", run_tasks=run_here)
    (folder / "out" / "manifest.json").unlink()
    (folder / "out" / "train" / "00000.arrow").write_bytes(b"damaged")
    prepare(corpus_config(train="d"), "out", run_tasks=run_here)
    assert digests(folder / "out") == digests(folder / "whole")


# --- one process at a time


def test_two_at_once_in_one_folder(texts, tmp_path):
    prepare(config(texts), str(tmp_path / "whole"), run_tasks=run_here)
    (tmp_path / "link").symlink_to("data")
    refusals = []

    def run_tasks(function, items):
        for data in ("data", "link"):
            with pytest.raises(ConfigError) as refusal:
                prepare(config(texts, lowercase=True), str(tmp_path / data), run_tasks=run_here)
            refusals.append(str(refusal.value))
        return run_here(function, items)

    prepare(config(texts), str(tmp_path / "data"), run_tasks=run_tasks)
    mend = "is being prepared by another process; wait for it or use another data=FOLDER"
    assert set(refusals) == {f"data={tmp_path / each} {mend}" for each in ("data", "link")}
    assert digests(tmp_path / "data") == digests(tmp_path / "whole")
    prepare(config(texts, lowercase=True), str(tmp_path / "data"), run_tasks=run_here)


def hold_and_wait(data, ready):
    with reserved(data):
        ready.set()
        signal.pause()


def test_a_killed_process_holds_nothing(tmp_path):
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    other = context.Process(target=hold_and_wait, args=(str(tmp_path), ready))
    other.start()
    assert ready.wait(60)
    with pytest.raises(ConfigError, match="is being prepared by another process"), reserved(str(tmp_path)):
        pass
    other.kill()
    other.join()
    with reserved(str(tmp_path)):
        pass


def test_a_refused_or_failed_preparation_holds_nothing(texts, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        prepare(config(texts), str(tmp_path / "data"), run_tasks=Calls(die_before=("read_portion", 0)))
    with reserved(str(tmp_path / "data")):
        pass


def test_a_folder_below_a_file_is_refused_before_the_text_is_read(folder):
    calls = Calls()
    with pytest.raises(ConfigError, match=r"words/out/\.work cannot be written \(Not a directory\); mend the path"):
        prepare(corpus_config(train="d"), "words/out", run_tasks=calls)
    assert calls.names == []


def test_where_there_are_no_locks_a_corpus_is_prepared(folder, monkeypatch):
    def no_lock(descriptor, operation):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_lock)
    prepare(corpus_config(train="d"), "out", run_tasks=run_here)
    assert Path("out/manifest.json").exists()

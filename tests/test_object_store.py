"""Storage on S3's own interface: whole or absent whatever fails, nothing stale, errors in one line."""

import contextlib
import gc
import hashlib
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import boto3
import fsspec
import pytest
import torch
from support.corpora import config, words
from support.web_server import standing_before

from pipeline import storage
from pipeline.cluster.tasks import run_here
from pipeline.corpus.prepare import prepare
from pipeline.errors import ConfigError
from pipeline.storage import DigestingFile, list_files, publish, publish_bytes, read_bytes

MANY_BYTES = 12 << 20
MULTIPART_BYTES = 101 << 20  # s3fs uploads in parts from 100 MiB on


@pytest.fixture
def folder(s3_bucket):
    """A place of the test's own."""
    return f"{s3_bucket}/{uuid.uuid4().hex}"


@pytest.fixture
def other(s3_bucket):
    """Another process's view of the bucket."""
    return boto3.resource("s3").Bucket(urlsplit(s3_bucket).netloc)


@pytest.fixture
def connect_anew():
    """Called after a change of the environment, which a connection that is held would not see."""
    fsspec.filesystem("s3").clear_instance_cache()
    yield fsspec.filesystem("s3").clear_instance_cache
    fsspec.filesystem("s3").clear_instance_cache()


@pytest.fixture
def failing(s3_bucket, monkeypatch, connect_anew):
    """The same store behind a server that fails when told to, and counts what is sent."""
    with standing_before(os.environ["AWS_ENDPOINT_URL_S3"]) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server.url)
        connect_anew()
        yield server


@pytest.fixture
def full_temporary_folder(monkeypatch):
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda: Path("/dev/full").open("w+b"))  # noqa: SIM115


class BrokenError(Exception):
    pass


def key(path):
    return urlsplit(path).path.lstrip("/")


def on_call(path, operation, do):
    """Does something before each call of an operation on the wire."""
    events = storage.resolve(path)[0].s3.meta.events
    events.register(f"before-call.s3.{operation}", do)
    return lambda: events.unregister(f"before-call.s3.{operation}", do)


# --- what another process does is seen at once


def test_a_file_that_another_process_wrote_or_removed_is_seen_at_once(folder, other):
    publish_bytes(f"{folder}/a", b"one")
    assert list_files(folder) == [f"{folder}/a"]
    assert list_files(f"{folder}/*") == [f"{folder}/a"]
    assert not storage.exists(f"{folder}/b")
    assert not storage.is_folder(f"{folder}/sub")

    other.put_object(Key=key(f"{folder}/b"), Body=b"two")
    other.put_object(Key=key(f"{folder}/sub/c"), Body=b"three")
    other.put_object(Key=key(f"{folder}/a"), Body=b"longer")
    assert list_files(folder) == [f"{folder}/a", f"{folder}/b", f"{folder}/sub/c"]
    assert list_files(f"{folder}/*") == [f"{folder}/a", f"{folder}/b"]
    assert storage.exists(f"{folder}/b")
    assert storage.is_folder(f"{folder}/sub")
    assert storage.size_bytes(f"{folder}/a") == 6
    assert read_bytes(f"{folder}/a") == b"longer"

    other.objects.filter(Prefix=key(folder)).delete()
    assert not storage.exists(f"{folder}/a")
    assert not storage.exists(folder)
    assert not storage.is_folder(f"{folder}/sub")
    assert list_files(folder) == list_files(f"{folder}/*") == []


def test_a_file_of_this_process_is_what_others_see(folder, other):
    publish_bytes(f"{folder}/a", b"one")
    assert other.Object(key(f"{folder}/a")).get()["Body"].read() == b"one"
    storage.remove(f"{folder}/a")
    assert list(other.objects.filter(Prefix=key(folder))) == []


def test_the_marks_of_a_console_are_no_files(folder, other):
    other.put_object(Key=key(f"{folder}/"))
    other.put_object(Key=key(f"{folder}/sub/"))
    other.put_object(Key=key(f"{folder}/sub/a"), Body=b"x")
    assert list_files(folder) == [f"{folder}/sub/a"]
    assert list_files(f"{folder}/*") == []


def test_a_glob_takes_no_request_for_each_name(folder):
    for number in range(6):
        publish_bytes(f"{folder}/{number}", b"x")
    heads = []
    stop = on_call(folder, "HeadObject", lambda **_: heads.append(1))
    assert len(list_files(f"{folder}/*")) == 6
    stop()
    assert len(heads) < 6


# --- the small ones


def test_kinds_of_paths(folder):
    publish_bytes(f"{folder}/a", b"abc")
    filesystem, name = storage.resolve(f"{folder}/a")
    assert filesystem.cat_file(name) == b"abc"
    assert not storage.is_local(folder)
    assert storage.absolute(folder) == folder
    assert storage.join(folder, "a") == f"{folder}/a"
    assert storage.exists(folder)
    assert storage.exists(f"{folder}/a")
    assert storage.is_folder(folder)
    assert not storage.is_folder(f"{folder}/a")
    assert storage.is_folder("s3://bucket")
    assert storage.size_bytes(f"{folder}/a") == 3


def test_a_folder_needs_no_making_and_no_bucket_is_made(folder, other):
    storage.make_folder(folder)
    assert not storage.exists(folder)
    publish_bytes(f"{folder}/a", b"x")
    storage.make_folder(folder)
    storage.make_folder("s3://bucket")
    assert list_files(folder) == [f"{folder}/a"]
    storage.make_folder("s3://mistyped/run")
    assert [bucket.name for bucket in boto3.resource("s3").buckets.all()] == ["bucket"]


def test_what_is_missing_is_missing(folder):
    path = f"{folder}/a"
    storage.remove(path)
    assert list_files(path) == []
    for call in (storage.open_read, read_bytes, storage.sha256, storage.size_bytes):
        with pytest.raises(FileNotFoundError):
            call(path)


# --- publish


@pytest.mark.parametrize("size_bytes", [0, 1, MANY_BYTES, pytest.param(MULTIPART_BYTES, marks=pytest.mark.slow)])
def test_what_was_written_is_what_is_read(folder, size_bytes):
    content = os.urandom(1 << 20) * (size_bytes >> 20) + b"x" * (size_bytes % (1 << 20))
    path = f"{folder}/a"
    with publish(path) as file:
        digesting = DigestingFile(file)
        for start in range(0, size_bytes, 3_000_000):
            digesting.write(content[start : start + 3_000_000])
        digesting.flush()
        assert not storage.exists(path)
    assert digesting.sha256() == hashlib.sha256(content).hexdigest() == storage.sha256(path)
    assert storage.size_bytes(path) == size_bytes
    assert read_bytes(path) == content


def test_a_checkpoint_passes_through(folder):
    path = f"{folder}/step-1.ckpt"
    checkpoint = {"weights": torch.randn(1000, 1500), "small": [torch.arange(5)] * 3, "step": 1}
    checkpoint |= {f"layer{i}": torch.randn(100, 1500) for i in range(10)}
    with publish(path) as file:
        digesting = DigestingFile(file)
        torch.save(checkpoint, digesting)
    assert storage.size_bytes(path) > MANY_BYTES - (2 << 20)
    assert storage.sha256(path) == digesting.sha256()
    with storage.open_read(path) as file:
        loaded = torch.load(file, map_location="cpu", weights_only=True)
    assert torch.equal(loaded["weights"], checkpoint["weights"])
    assert torch.equal(loaded["layer9"], checkpoint["layer9"])
    assert loaded["step"] == 1


@pytest.mark.parametrize("error", [BrokenError, KeyboardInterrupt])
@pytest.mark.parametrize("size_bytes", [5, MANY_BYTES])
def test_a_body_that_raises_changes_nothing_even_when_its_file_is_collected(folder, other, error, size_bytes):
    publish_bytes(f"{folder}/a", b"old")
    for path in (f"{folder}/a", f"{folder}/b"):
        with pytest.raises(error), publish(path) as file:
            file.write(b"x" * size_bytes)
            raise error
    del file
    gc.collect()
    assert list_files(folder) == [f"{folder}/a"]
    assert read_bytes(f"{folder}/a") == b"old"
    assert other.meta.client.list_multipart_uploads(Bucket=other.name).get("Uploads", []) == []


KILLED = """
import os, signal, sys
from pipeline import storage
path, operation, size_bytes = sys.argv[1:]
events = storage.resolve(path)[0].s3.meta.events
events.register(f"before-call.s3.{operation}", lambda **_: os.kill(os.getpid(), signal.SIGKILL))
with storage.publish(path) as file:
    file.write(bytes(int(size_bytes)))
print("not killed")
"""


@pytest.mark.parametrize(
    ("operation", "size_bytes"),
    [
        ("PutObject", MANY_BYTES),
        ("UploadPart", MULTIPART_BYTES),
        pytest.param("CompleteMultipartUpload", MULTIPART_BYTES, marks=pytest.mark.slow),
    ],
)
def test_a_kill_during_the_upload_leaves_the_old_object_and_nothing_new(folder, tmp_path, operation, size_bytes):
    publish_bytes(f"{folder}/a", b"old")
    for path in (f"{folder}/a", f"{folder}/b"):
        command = [sys.executable, "-c", KILLED, path, operation, str(size_bytes)]
        child = subprocess.run(command, capture_output=True, env=os.environ | {"TMPDIR": str(tmp_path)}, check=False)
        assert child.returncode == -signal.SIGKILL, child.stderr.decode()
    assert list_files(folder) == [f"{folder}/a"]
    assert read_bytes(f"{folder}/a") == b"old"
    assert list(tmp_path.iterdir()) == []  # nor does the temporary folder keep anything
    publish_bytes(f"{folder}/b", b"new")
    assert read_bytes(f"{folder}/b") == b"new"


@pytest.mark.parametrize("operation", ["UploadPart", "CompleteMultipartUpload"])
def test_an_upload_that_fails_leaves_the_old_object_and_no_parts(folder, other, operation):
    publish_bytes(f"{folder}/a", b"old")

    def fail(**_):
        raise OSError(5, "line is cut")

    stop = on_call(folder, operation, fail)
    with pytest.raises(ConfigError, match=rf"{folder}/a cannot be reached \(.*line is cut.*\)"):
        publish_bytes(f"{folder}/a", bytes(MULTIPART_BYTES))
    stop()
    assert read_bytes(f"{folder}/a") == b"old"
    uploads = other.meta.client.list_multipart_uploads(Bucket=other.name).get("Uploads", [])
    assert [upload for upload in uploads if upload["Key"].startswith(key(folder))] == []


@pytest.mark.parametrize("kind", ["memory", "s3"])
def test_publishing_from_many_threads_at_once_keeps_each_to_itself(kind, folder):
    if kind == "memory":
        folder = f"memory:///{uuid.uuid4().hex}"
    num_threads = 8
    together = threading.Barrier(num_threads, timeout=60)

    def write(number):
        with publish(f"{folder}/{number}") as file:
            file.write(b"half")
            together.wait()  # all are in the middle: those that fail end while the others go on
            if number % 2:
                raise BrokenError
            time.sleep(0.05 * number)
            assert not storage.exists(f"{folder}/{number}")
            file.write(b"whole")

    with ThreadPoolExecutor(num_threads) as threads:
        errors = [future.exception() for future in [threads.submit(write, number) for number in range(num_threads)]]
    assert [type(error) for error in errors] == [type(None), BrokenError] * (num_threads // 2)
    assert list_files(folder) == [f"{folder}/{number}" for number in range(0, num_threads, 2)]
    assert {read_bytes(path) for path in list_files(folder)} == {b"halfwhole"}


def fork_child(folder):
    assert read_bytes(f"{folder}/a") == b"parent"
    publish_bytes(f"{folder}/b", b"child")


@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_a_forked_process_has_connections_of_its_own(folder):
    publish_bytes(f"{folder}/a", b"parent")
    child = multiprocessing.get_context("fork").Process(target=fork_child, args=(folder,))
    child.start()
    child.join(60)
    assert child.exitcode == 0
    assert read_bytes(f"{folder}/b") == b"child"


@pytest.mark.parametrize("size_bytes", [1, MANY_BYTES])
def test_a_full_temporary_folder_is_told_and_nothing_is_uploaded(folder, full_temporary_folder, size_bytes):
    with pytest.raises(ConfigError, match=rf"^the temporary folder \(TMPDIR\).* {folder}/a .*No space left on device"):
        publish_bytes(f"{folder}/a", bytes(size_bytes))
    assert not storage.exists(f"{folder}/a")


def test_a_write_that_failed_unheard_uploads_nothing(folder, full_temporary_folder):
    """A cut artifact must not be published because the body went on."""
    with (
        pytest.raises(ConfigError, match="No space left on device"),
        publish(f"{folder}/a") as file,
        contextlib.suppress(OSError),
    ):
        file.write(bytes(MANY_BYTES))
    assert not storage.exists(f"{folder}/a")


# --- what passes, and what is sent: s3fs and botocore try again


@pytest.mark.parametrize("fault", [500, 503, "reset"])
def test_a_store_that_fails_once_is_asked_again(folder, failing, fault):
    path = f"{folder}/a"
    for call, expected in [
        (lambda: publish_bytes(path, b"abc"), None),
        (lambda: storage.exists(path), True),
        (lambda: storage.size_bytes(path), 3),
        (lambda: list_files(folder), [path]),
        (lambda: read_bytes(path), b"abc"),
        (lambda: storage.read_head(path, 2), b"ab"),
    ]:
        failing.fail(fault)
        assert call() == expected
        assert failing.faults == []


def test_a_reader_goes_on_where_it_was(folder, failing):
    content = os.urandom(20 << 20)
    publish_bytes(f"{folder}/a", content)
    failing.fail(None, "cut", "cut", "short", spare=("HEAD",))
    assert storage.sha256(f"{folder}/a") == hashlib.sha256(content).hexdigest()
    starts = [int(each.range.removeprefix("bytes=").partition("-")[0]) >> 20 for each in failing.of("GET")]
    assert starts == [0, 8, 8, 8, 12, 16]


def test_what_will_not_pass_is_asked_once(folder, failing):
    publish_bytes(f"{folder}/a", b"abc")
    failing.fail(*[403] * 100, spare=("HEAD",))
    with pytest.raises(ConfigError, match="cannot be reached"):
        read_bytes(f"{folder}/a")
    assert len(failing.of("GET")) == 1


def test_only_what_is_asked_for_is_sent(folder, failing):
    content = os.urandom(20 << 20)
    publish_bytes(f"{folder}/a", content)
    failing.fail()
    with storage.open_read(f"{folder}/a", stop=9_000_000) as file:
        file.seek(1000)
        assert b"".join(iter(lambda: file.read(1 << 20), b"")) == content[1000:9_000_000]
    assert sum(each.num_bytes for each in failing.asked) == 9_000_000 - 1000
    assert len(failing.of("GET")) == 2
    failing.fail()
    with storage.open_read(f"{folder}/a", ahead=False) as file:
        file.seek(10_000_000)
        assert file.read(4096) == content[10_000_000:10_004_096]
    assert [each.num_bytes for each in failing.of("GET")] == [4096]


def test_an_object_that_changes_while_it_is_read_is_refused(folder, other):
    publish_bytes(f"{folder}/a", os.urandom(9 << 20))
    with storage.open_read(f"{folder}/a") as file:
        file.read(1 << 20)
        other.put_object(Key=key(f"{folder}/a"), Body=os.urandom(9 << 20))
        with pytest.raises(ConfigError, match=rf"^{folder}/a cannot be reached \("):
            file.read(8 << 20)


def test_a_corpus_from_and_to_a_store_that_fails_now_and_then_is_the_same(folder, failing, tmp_path):
    (tmp_path / "texts").mkdir()
    text, valid = words(1, 300), words(2, 40)
    (tmp_path / "texts" / "a.txt").write_text(text)
    (tmp_path / "valid.txt").write_text(valid)
    expected = prepare(config(tmp_path / "texts", unit_bytes=4096), str(tmp_path / "data"), run_tasks=run_here)
    publish_bytes(f"{folder}/texts/a.txt", text.encode())
    publish_bytes(f"{folder}/valid.txt", valid.encode())
    corpus = config(tmp_path / "texts", train=f"{folder}/texts", valid=f"{folder}/valid.txt", unit_bytes=4096)
    failing.fail(*([None] * 40 + [503]) * 8)
    found = prepare(corpus, f"{folder}/data", run_tasks=run_here)
    assert len(failing.faults) < 8 * 41 - 2 * 41  # it met two or more
    assert found.vocabulary_fingerprint == expected.vocabulary_fingerprint
    assert found.splits == expected.splits


# --- errors


READING = [storage.open_read, read_bytes, storage.sha256, storage.size_bytes]
WRITING = [lambda path: publish_bytes(path, b"x"), lambda path: storage.append_line(path, "x"), storage.remove]
ASKING = [storage.exists, storage.is_folder, list_files, lambda path: list_files(f"{path}*")]


def check_told(call, path, reason):
    """One line that names the path, the reason and the mend, soon."""
    since = time.perf_counter()
    with pytest.raises(ConfigError, match=reason) as caught:
        call(path)
    message = str(caught.value)
    assert message.startswith(path)
    assert "\n" not in message
    assert message.endswith("; mend its bucket, the credentials or the endpoint")
    assert time.perf_counter() - since < 60


@pytest.mark.parametrize("call", [read_bytes, storage.sha256])
def test_a_line_that_is_cut_while_reading_is_told(folder, call):
    publish_bytes(f"{folder}/a", b"abc")

    def fail(**_):
        raise OSError(5, "line is cut")

    stop = on_call(folder, "GetObject", fail)
    check_told(call, f"{folder}/a", "line is cut")
    stop()
    assert read_bytes(f"{folder}/a") == b"abc"


@pytest.mark.parametrize("call", [*READING, *WRITING])
def test_a_missing_bucket_is_told(s3_bucket, call):
    check_told(call, "s3://mistyped/run/a", "bucket does not exist")


def test_a_missing_bucket_holds_nothing(s3_bucket):
    assert not storage.exists("s3://mistyped/run")
    assert not storage.is_folder("s3://mistyped/run")
    assert list_files("s3://mistyped/run") == []


@pytest.mark.parametrize("call", [*READING, *WRITING, *ASKING])
def test_credentials_that_the_store_does_not_know_are_told(folder, call):
    def demand_credentials(count):
        url = f"{os.environ['AWS_ENDPOINT_URL_S3']}/moto-api/reset-auth"
        headers = {"Content-Type": "text/plain"}
        urllib.request.urlopen(urllib.request.Request(url, data=count, headers=headers, method="POST")).close()

    publish_bytes(f"{folder}/a", b"old")
    demand_credentials(b"0")
    try:
        check_told(call, f"{folder}/a", "Forbidden|Access Key Id you provided does not exist")
    finally:
        demand_credentials(b"inf")
    assert read_bytes(f"{folder}/a") == b"old"


@pytest.mark.parametrize("call", [read_bytes, WRITING[0], storage.exists])
def test_that_there_are_no_credentials_is_told(folder, call, monkeypatch, connect_anew):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    connect_anew()
    check_told(call, f"{folder}/a", "Unable to locate credentials")


@pytest.mark.parametrize("call", [*READING, *WRITING, *ASKING])
def test_a_store_that_does_not_answer_is_told(s3_bucket, call, monkeypatch, connect_anew):
    with socket.socket() as free:  # bound, but nobody listens
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{free.getsockname()[1]}")
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        connect_anew()
        check_told(call, "s3://bucket/run/a", "Could not connect to the endpoint")


@pytest.mark.slow
def test_a_store_that_does_not_answer_is_told_within_seconds_of_tries(s3_bucket, monkeypatch, connect_anew):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{free.getsockname()[1]}")
        connect_anew()
        check_told(WRITING[0], "s3://bucket/run/a", "Could not connect to the endpoint")


@pytest.mark.parametrize("path", ["s3://No_Bucket!/a", "s3://bucket"])
def test_a_name_that_cannot_be_is_told(s3_bucket, path):
    check_told(WRITING[0], path, ".")


def test_the_environment_is_enough_for_a_child(folder):
    """As `python -m jobs` has it."""
    code = "import sys; from pipeline import storage; storage.publish_bytes(sys.argv[1], b'child')"
    subprocess.run([sys.executable, "-c", code, f"{folder}/a"], check=True)
    assert read_bytes(f"{folder}/a") == b"child"

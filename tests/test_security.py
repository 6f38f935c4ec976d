"""What neither an attacker nor a typed secret must get: into a file, out of a folder, into memory, to run code."""

import base64
import json
import os
import pickle
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from support.checkpoints import mark
from support.typed import made_lines, prepare_typed, train_typed, typed, write_texts

from jobs.__main__ import main
from pipeline import storage
from pipeline.config import Config
from pipeline.corpus.manifest import read_manifest
from pipeline.errors import ConfigError, CorpusError
from pipeline.masking import holds_secret, last_name, masked, masked_tree, without_secrets
from pipeline.run.folder import read_config, write_config
from pipeline.run.ledger import Ledger, read_events
from pipeline.run.tracking import tracking_id
from pipeline.training.tiling import run_identity

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:lightning.pytorch.utilities._pytree")  # 2.6, every fit

KEY = "wJalrXUtnFEMI+K7MDENGbPxRfiCY"  # as S3 makes them
SLASHED = "wJalrXUtnFEMI/K7MDENG/bPxRfiCY"
VARIABLES = ["WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN", "RAY_AUTH_TOKEN", "MY_PASSWORD"]
OTHER_VARIABLES = [
    "MINIO_SECRET_KEY",
    "S3_SECRET_KEY",
    "DJANGO_SECRET_KEY",
    "MYSQL_PWD",
    "B2_APPLICATION_KEY",
    "PASSPHRASE",
    "gpg_passphrase",
]

MASKED = [
    (f"s3://AKIA:{SLASHED}@bucket/x", "s3://***@bucket/x"),
    (f"run=http://user:{KEY}@host:80/a b", "run=http://***@host:80/a b"),
    (f"https://{KEY}@host/x", "https://***@host/x"),
    (f"'http://user:p@{KEY}@host/x'", "'http://***@host/x'"),
    (f"zip://a::http://u:{SLASHED}@host/b.zip", "zip://a::http://***@host/b.zip"),
    (f"https://host/a?x=1&X-Amz-Signature={KEY}&y=2", "https://host/a?x=1&X-Amz-Signature=***&y=2"),
    (f"https://host/a?token={SLASHED}", "https://host/a?token=***"),
    (f"a.txt?sig={KEY}", "a.txt?sig=***"),
    (f'{{"a": "http://u:{KEY}@host"}}', '{"a": "http://***@host"}'),
]


@pytest.mark.parametrize(("text", "found"), MASKED)
def test_a_secret_of_a_url_is_masked(text: str, found: str) -> None:
    assert masked(text) == found
    assert masked(found) == found
    assert holds_secret(text)
    assert not holds_secret(found)


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/user@host/x",
        "http://host:80/a?b=c",
        "/data/a@b:c",
        "a:b@c",
        "12:30 @ x",
        "file:///a/b@c",
        "k=v",
        "",
    ],
)
def test_what_holds_no_secret_stays(text: str) -> None:
    assert masked(text) == text


@pytest.mark.parametrize(
    ("place", "name"),
    [
        (f"http://user:{KEY}@host:80", "***@host:80"),
        (f"sftp://user:{SLASHED}@host/runs/a/", "a"),
        (f"https://host/a?token={SLASHED}", "a?token=***"),
        ("s3://bucket/runs/a", "a"),
        ("/runs/a//", "a"),
        ("a", "a"),
    ],
)
def test_the_last_name_of_a_place_holds_no_secret(place: str, name: str) -> None:
    assert last_name(place) == name


@pytest.mark.parametrize("name", [*VARIABLES, *OTHER_VARIABLES])
def test_the_value_of_a_secret_variable_is_masked(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert masked(f"a {KEY} b") == f"a {KEY} b"
    monkeypatch.setenv(name, KEY)
    assert masked(f"a {KEY} b") == "a *** b"
    assert name not in without_secrets()
    monkeypatch.setenv(name, "short")
    assert masked("a short b") == "a short b"
    monkeypatch.setenv(name, "")
    assert masked("ab") == "ab"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, KEY) for name in ("PWD", "OLDPWD", "SLURM_JOB_ID", "KEY", "SORT_KEY", "TOKENIZER")),
        ("ORIGINAL_PWD", "/usr/share"),
    ],
)
def test_the_value_of_a_harmless_variable_stays(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    assert masked(f"a {value} b") == f"a {value} b"
    assert without_secrets()[name] == value


@pytest.mark.parametrize("text", ["://" + "a" * 1_000_000, "://x:" * 10_000, "?token" * 10_000, "http://x:" * 10_000])
def test_no_text_takes_long(text: str) -> None:
    began = time.process_time()
    masked(text)
    assert time.process_time() - began < 10


def test_errors_ledger_and_configuration_hold_no_secret(small_config: type[Config], tmp_path: Path) -> None:
    place = f"http://user:{KEY}@host/data"
    assert str(ConfigError(f"{place} is not there")) == "http://***@host/data is not there"
    Ledger(str(tmp_path), attempt=1).write("fault", kind="disk", cause=f"{place} is full", rank=None, fatal=False)
    assert read_events(str(tmp_path))[0]["cause"] == "http://***@host/data is full"
    config = small_config(f"data={place}", f"run={tmp_path}", f"corpus.train=[a,{place}]")
    write_config(config)
    kept = read_config(str(tmp_path))
    assert kept.data == "http://***@host/data"
    assert kept.corpus.train == ("a", "http://***@host/data")
    assert KEY not in (tmp_path / "config.yaml").read_text()
    assert config.data == place
    assert masked_tree({"a": [1, None, (place,)]}) == {"a": [1, None, ("http://***@host/data",)]}


def test_the_identity_of_a_run_has_a_place_without_its_credentials(
    make_corpus: type[str], small_config: type[Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stays the same with another key, and whatever variables are set."""
    manifest = read_manifest(make_corpus())
    places = [f"http://user:{KEY}@host/run", "http://other:word@host/run"]
    found = [run_identity(small_config(f"init_from={each}"), manifest, total_steps=1) for each in places]
    monkeypatch.setenv("HF_TOKEN", "host/run")
    again = run_identity(small_config(f"init_from={places[0]}"), manifest, total_steps=1)
    assert found[0] == found[1] == again
    assert json.loads(found[0]["init_from"]) == "http://***@host/run"


@pytest.mark.parametrize("path", [f"s3://AKIA:{SLASHED}@bucket/x", f"s3a://AKIA:{KEY}@bucket", f"s3://{KEY}@bucket/x"])
def test_a_key_in_a_url_of_s3_is_refused(path: str) -> None:
    """s3fs takes it for a part of the bucket's name, and tells it in its errors."""
    with pytest.raises(ConfigError, match=r"s3a?://\*\*\*@bucket.* set AWS_ACCESS_KEY_ID") as caught:
        storage.exists(path)
    assert "K7MDENG" not in str(caught.value)


# --- a planted key


class Guarded(BaseHTTPRequestHandler):
    """Serves files of a folder to whoever has the password."""

    folder: Path

    def log_message(self, *arguments: object) -> None:
        """Says nothing."""

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.wfile.write(self.answer())

    def answer(self) -> bytes:
        """The head, and what is to follow it."""
        path = self.folder / self.path.partition("?")[0].strip("/")
        allowed = self.headers.get("Authorization") == "Basic " + base64.b64encode(f"user:{KEY}".encode()).decode()
        code = 401 if not allowed else 404 if not path.is_file() else 200
        body = path.read_bytes() if code == 200 else b""
        if part := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            code, size = 206 if code == 200 else code, len(body)
            first, last = int(part[1]), min(int(part[2] or size), size - 1)
            body = body[first : last + 1]
        self.send_response(code)
        if code == 206:
            self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        return body


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    handler = type("Here", (Guarded,), {"folder": folder})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://user:{KEY}@127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def holding(folder: Path, *secrets: str) -> list[Path]:
    """The files below a folder that hold one of some secrets, and the names that do."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    named = [path for path in folder.rglob("*") if any(each in path.name for each in secrets)]
    return named + [path for path in files if any(each.encode() in path.read_bytes() for each in secrets)]


@pytest.mark.slow
@pytest.mark.each_commit
def test_a_planted_key_is_found_in_no_file_and_no_output(
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    texts, data, run = write_texts(tmp_path / "texts"), tmp_path / "data", tmp_path / "run"
    secrets = {name: f"{name.lower()}-{KEY[::-1]}" for name in VARIABLES}
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    temporary = tmp_path_factory.mktemp("t")  # a short path, for sockets lie there
    monkeypatch.setenv("TMPDIR", str(temporary))
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR", "HOME"):
        (tmp_path / "kept" / name).mkdir(parents=True)
        monkeypatch.setenv(name, str(tmp_path / "kept" / name))
    tracked = ["tracking.kind=wandb", "tracking.mode=offline", "stream.num_lanes=4"]
    training = partial(train_typed, data, run, *tracked, "cluster.num_workers=2")
    with serving(texts) as place, serving(data) as corpus:  # a place without a name, whose last part is its host
        prepared = prepare_typed(texts, data, f"corpus.train={place}/train.txt?token={KEY}")
        commands = [
            (0, prepared),
            (0, training(f"corpus.train={place}/train.txt")),
            (0, ["evaluate", f"run={run}"]),
            (0, train_typed(corpus, tmp_path / "read", *tracked)),
            (2, training(f"init_from={place}", f"run={tmp_path / 'other'}")),
        ]
        mistakes = [
            prepare_typed(texts, data, f"corpus.train={place}/missing.txt"),
            training(f"run=s3://user:{KEY}@bucket/run"),
            ["evaluate", f"run={place}/run"],
            ["status", f"run={place}/run", f"xyzzy={KEY}://u:{KEY}@h"],
            ["verify", f"data={place}?token={KEY}"],
            ["train", f"data={secrets['HF_TOKEN']}", f"run={run}"],
        ]
        told = ""
        for code, arguments in commands:
            done = typed(*arguments)
            assert done.returncode == code, done.stderr
            told += done.stdout + done.stderr
        assert main(prepared) == 0
        assert main(["status", f"run={run}"]) == 0
        assert [main(arguments) for arguments in mistakes] == [2] * len(mistakes)
        told += "".join(capsys.readouterr())
    assert "Traceback" not in told
    assert "***" in told
    assert all(each not in told for each in [KEY, *secrets.values()])
    assert "user:***" not in (run / "config.yaml").read_text()
    assert "***@127.0.0.1" in (run / "config.yaml").read_text()
    for each in (run, tmp_path / "read"):
        assert list(each.glob("wandb/offline-run-*/*.wandb"))
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) > 20
    assert [*holding(tmp_path, KEY, *secrets.values()), *holding(temporary, KEY, *secrets.values())] == []


# --- names


@pytest.mark.parametrize(
    "name", ["../../etc/x", "/etc/x", "a/../../x", "s3://bucket/x", "a::file:///etc/passwd", "a::b", "\0", ""]
)
@pytest.mark.parametrize("place", ["shard", "split"])
def test_a_name_in_a_manifest_that_leads_elsewhere_is_refused(name: str, place: str, make_corpus: type[str]) -> None:
    data = make_corpus()
    path = Path(data, "manifest.json")
    tree = json.loads(path.read_text())
    if place == "shard":
        tree["splits"]["train"]["shards"][0]["name"] = name
    else:
        tree["splits"][name] = tree["splits"].pop("train")
    path.write_text(json.dumps(tree))
    with pytest.raises(CorpusError, match="is no manifest"):
        read_manifest(data)


def test_a_dashboards_name_that_leads_elsewhere_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tracking-id").write_text("../../x")
    with pytest.raises(ConfigError, match="needed letters"):
        tracking_id(str(tmp_path))


# --- what is made to take all memory


BOMBS = {
    "aliases": "a: &a [x,x,x,x,x,x,x,x,x]\n"
    + "".join(f"{to}: &{to} [{','.join([f'*{of}'] * 9)}]\n" for of, to in zip("abcdefghij", "bcdefghijk", strict=True)),
    "depth": "[" * 100_000,
    "flow": "a: " + "{a: " * 50_000,
    "size": "a: " + "x" * 5_000_000,
    "a date": "data: 9999-99-99",
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_in_a_configuration_is_refused_in_a_line(
    bomb: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "config.yaml").write_text(BOMBS[bomb])
    began = time.process_time()
    assert main(["evaluate", f"run={tmp_path}"]) == 2
    assert time.process_time() - began < 30
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path}/config.yaml is not the configuration of a run: ")
    assert error.count("\n") == 1
    assert len(error) < 2000


# --- checkpoints


class Intruder:
    """Unpickled without care, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    assert main(prepare_typed(write_texts(folder / "texts"), folder / "data")) == 0
    assert main(train_typed(folder / "data", folder / "run")) == 0
    return folder


@pytest.mark.parametrize("kind", ["pickle", "text", "empty", "deep mark"])
def test_a_foreign_checkpoint_ends_in_a_line_and_runs_nothing(
    kind: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    made = tmp_path / "made"
    checkpoint = trained / "run" / "checkpoints" / "step-30.ckpt"
    sound = {path: path.read_bytes() for path in (checkpoint, checkpoint.with_suffix(".json"))}
    for path in (trained / "run" / "checkpoints").glob("*"):
        assert path in sound, path
    pickled = pickle.dumps({"state_dict": Intruder(made)})
    content = {"pickle": pickled, "text": made_lines(3, seed=0).encode(), "empty": b""}.get(kind)
    try:
        if content is None:
            checkpoint.with_suffix(".json").write_text("[" * 100_000)
        else:
            mark(checkpoint, content)
        more = train_typed(trained / "data", trained / "run", "max_steps=60")
        anew = train_typed(trained / "data", tmp_path / "new", f"init_from={trained / 'run'}")
        capsys.readouterr()
        for arguments in (more, anew, ["evaluate", f"run={trained / 'run'}"]):
            assert main(arguments) == 2
            error = capsys.readouterr().err
            assert error.startswith("error: ")
            assert error.count("\n") == 1
            assert "step-30" in error
        assert not made.exists()
        assert not (tmp_path / "new").exists()
    finally:
        for path, before in sound.items():
            path.write_bytes(before)
    if kind == "pickle":
        pickle.loads(pickled)
        assert made.exists()

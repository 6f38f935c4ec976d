"""`prepare` and `verify` as they are typed: with Ray and without, what they print, and what they refuse."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.typed import over

from jobs import prepare, verify
from pipeline.corpus.manifest import read_manifest
from pipeline.errors import ConfigError, CorpusError

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "a b=c.txt"
    path.write_text("".join(f"line {number} of w{number % 97}\n" for number in range(2000)))
    return path


def typed(text, data, *more):
    return [
        f"data={data}",
        f"corpus.train={text}",
        f"corpus.valid={text.parent}/v.txt",
        "corpus.unit_bytes=4096",
        *more,
    ]


@pytest.fixture
def arguments(text, tmp_path):
    (tmp_path / "v.txt").write_text("line 1 of unheard\n")
    return typed(text, tmp_path / "data")


def digest(data):
    files = sorted(path for path in Path(data).rglob("*") if path.is_file())
    return [(path.relative_to(data), hashlib.sha256(path.read_bytes()).hexdigest()) for path in files]


def test_prepare_prints_what_it_made_and_verify_says_ok(arguments, tmp_path, capsys):
    prepare.main([*arguments, "cluster=none"])
    printed = capsys.readouterr().out
    assert "10,000" in printed and "20.0000%" in printed and f"data: {tmp_path / 'data'}" in printed
    assert "vocabulary: 2,101 words" in printed and "MB/s" in printed and "encode:" in printed
    prepare.main([*arguments, "cluster=none"])
    assert "unchanged: all" in capsys.readouterr().out
    verify.main([f"data={tmp_path / 'data'}"])
    assert capsys.readouterr().out.startswith("ok: ")


def test_prepare_tells_what_is_odd_in_the_text(arguments, text, tmp_path, capsys):
    prepare.main([*arguments, "cluster=none"])
    assert "U+FFFD" not in capsys.readouterr().out
    (tmp_path / "v.txt").write_bytes(b"caf\xe9 \0 \0\n")
    (tmp_path / "rows.jsonl").write_text('{"text": null}\n' * 1234)
    (tmp_path / "README").write_text("none\n")
    sources = f"corpus.train=[{text},{tmp_path}/*.jsonl,{tmp_path}/READ*]"
    prepare.main(over(arguments, sources, "corpus.null_rows=skip", "cluster=none"))
    lines = capsys.readouterr().out.splitlines()
    assert "train: 1,234 rows without text passed over" in lines
    assert "valid: 1 U+FFFD, put in for bytes that are no UTF-8 or there before, 2 NUL bytes" in lines
    assert lines[0] == (f"read as text like the rest: {tmp_path}/README; to leave them out, name the others by a glob")


def test_verify_names_every_bad_shard(arguments, tmp_path, capsys):
    prepare.main([*arguments, "cluster=none"])
    shards = sorted((tmp_path / "data" / "train").glob("*.arrow"))
    flipped = bytearray(shards[1].read_bytes())
    flipped[600] ^= 1
    shards[1].write_bytes(flipped)
    shards[3].unlink()
    capsys.readouterr()
    with pytest.raises(CorpusError, match=rf"2 of {len(shards) + 1} token shards are bad; run"):
        verify.main([f"data={tmp_path / 'data'}"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["train/00001.arrow", "train/00003.arrow"]


def test_data_is_required():
    for job in (prepare, verify):
        with pytest.raises(ConfigError, match="data=null is not given; use data=FOLDER"):
            job.main([])


@pytest.mark.slow
def test_ray_with_two_tasks_writes_the_same_bytes_also_after_a_kill(arguments, text, tmp_path):
    prepare.main([*typed(text, tmp_path / "here"), "cluster=none"])
    command = [sys.executable, "-c", f"from jobs.prepare import main; main({[*arguments, 'cluster.num_cpus=2']!r})"]
    environment = os.environ | ENVIRONMENT
    killed = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (tmp_path / "data" / "train" / "00001.arrow").exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    time.sleep(1)  # its workers end once they notice
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert digest(tmp_path / "data") == digest(tmp_path / "here")
    assert read_manifest(str(tmp_path / "data")).splits["train"].num_tokens == 10000

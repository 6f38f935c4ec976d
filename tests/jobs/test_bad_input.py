"""What a user gets wrong: one clear line on stderr, exit code 2, no stack trace, and nothing lost.

Each case breaks a copy of a small world (texts, two prepared corpora, a trained run), types a command, and names what
its line must hold: the value found and the mend.
"""

import bz2
import gzip
import hashlib
import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from support.checkpoints import mark
from support.typed import made_lines, prepare_typed, train_typed, typed, write_texts
from support.vocabularies import write_vocabulary

from jobs.__main__ import VERBS, main
from pipeline.corpus.manifest import read_manifest
from pipeline.corpus.vocabulary import Vocabulary, read_vocabulary

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:lightning.pytorch.utilities._pytree")  # 2.6, every fit


@dataclass(frozen=True)
class World:
    """Everything a user may have: texts, a prepared corpus, a run on it, and a corpus of other words."""

    folder: Path

    @property
    def texts(self) -> Path:
        return self.folder / "texts"

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def other(self) -> Path:
        return self.folder / "other"

    @property
    def run(self) -> Path:
        return self.folder / "run"

    @property
    def checkpoint(self) -> Path:
        return self.run / "checkpoints" / "step-30.ckpt"

    def prepare(self, *more: str) -> list[str]:
        """Prepares once more into the folder of the corpus that is there."""
        return prepare_typed(self.texts, self.data, *more)

    def train(self, *more: str) -> list[str]:
        """Goes on with the run."""
        return train_typed(self.data, self.run, "max_steps=60", *more)

    def train_anew(self, *more: str) -> list[str]:
        """Begins a run that is not there yet."""
        return train_typed(self.data, self.folder / "new", *more)

    def evaluate(self, *more: str) -> list[str]:
        return ["evaluate", f"run={self.run}", f"data={self.data}", *more]

    def verify(self) -> list[str]:
        return ["verify", f"data={self.data}"]


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    """The world before anything goes wrong, made once."""
    world = World(tmp_path_factory.mktemp("intact") / "world")
    write_texts(world.texts)
    assert main(world.prepare()) == 0
    (world.folder / "others.txt").write_text(made_lines(30, seed=5, num_types=31))
    others = ["prepare", f"data={world.other}", f"corpus.train={world.folder / 'others.txt'}", "cluster=none"]
    assert main(others) == 0
    assert main(train_typed(world.data, world.run)) == 0
    return world


@pytest.fixture
def world(intact, tmp_path):
    """A copy to break, in a place of its own."""
    copy = World(tmp_path / "world")
    shutil.copytree(intact.folder, copy.folder)
    config = copy.run / "config.yaml"
    config.write_text(config.read_text().replace(str(intact.folder), str(copy.folder)))
    return copy


def digests(folder):
    return {
        path.relative_to(folder): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def refused(world, capsys, arguments):
    """The line that a command is refused with; what stood in the world stands there still.

    But for the run's ledger and what goes with it, where the workers find that a checkpoint is damaged.
    """
    before = digests(world.folder)
    capsys.readouterr()
    assert main(arguments) == 2
    captured = capsys.readouterr()
    after = digests(world.folder)
    if "step-30.ckpt is " in captured.err and arguments[0] == "train":
        told = {Path("run", name) for name in ("attempt", "config.yaml", "events.jsonl")}
        before, after = ({path: each for path, each in some.items() if path not in told} for some in (before, after))
    assert {path: after.get(path) for path in before} == before
    if arguments[0] != "prepare":  # which may keep what it has digested and counted
        assert after.keys() == before.keys()
    lines = [line for line in captured.err.splitlines() if line.strip()]
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("error: ")
    assert "Traceback" not in captured.out + captured.err
    return lines[0].removeprefix("error: ")


# --- what is typed


TYPED = {
    "unknown verb": (["prepair"], ["unknown verb prepair; did you mean prepare?", "`python -m jobs` lists them"]),
    "unknown verb like none": (["xyzzy"], ["unknown verb xyzzy; `python -m jobs` lists them"]),
    "unknown flag": (["train", "--resume"], ["unknown flag --resume of train; it knows --help and key=value"]),
    "another verb's flag": (["verify", "--json"], ["unknown flag --json of verify"]),
    "unknown flag of evaluate": (["evaluate", "--jsn"], ["unknown flag --jsn", "it knows --help --json"]),
    "another verb's short flag": (["status", "-f"], ["unknown flag -f of status; it knows --help --json and"]),
    "unknown short flag": (["logs", "-x"], ["unknown flag -x of logs; it knows --help -f and key=value"]),
    "misspelt flag of submit": (
        ["submit", "train", "--dry"],
        ["--dry of submit; it knows --help --dry-run --json and"],
    ),
    "misspelt key": (["train", "optim.lrr=1"], ["unknown key optim.lrr; did you mean optim.lr?"]),
    "misspelt key of evaluate": (["evaluate", "splt=valid"], ["unknown key splt; did you mean split?"]),
    "misspelt choice": (["train", "optim=adagard"], ["optim=adagard is not one of", "did you mean adagrad?"]),
    "another experiment of the demo": (["demo", "experiment=ptb_small"], ["experiment=ptb_small", "leave it out"]),
    "no value": (["train", "model.dropout"], ["argument 'model.dropout' is not of the form key=value"]),
    "bptt=0": (["train", "stream.bptt=0"], ["stream.bptt=0: it must be greater than or equal to 1"]),
    "max_epochs=null": (["train", "max_epochs=null"], ["max_epochs=null and max_steps=null", "give one of them"]),
    "prepare without data": (["prepare"], ["data=null is not given; use data=FOLDER"]),
    "verify without data": (["verify"], ["data=null is not given; use data=FOLDER"]),
    "train without data": (["train", "run=x"], ["data=null is not given; use data=FOLDER"]),
    "train without run": (["train", "data=x"], ["run=null is not given; use run=FOLDER"]),
    "evaluate without run": (["evaluate"], ["run=null is not given; use run=FOLDER"]),
    "prepare without text": (["prepare", "data=x", "cluster=none"], ["corpus.train=null", "use corpus.train=PATH"]),
}


@pytest.mark.parametrize(("arguments", "named"), TYPED.values(), ids=TYPED.keys())
def test_what_is_typed_wrong(arguments, named, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = refused(World(tmp_path), capsys, arguments)
    for part in named:
        assert part in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["prepair"], "unknown verb prepair; did you mean prepare?"),
        (["train", "optim.lrr=1"], "unknown key optim.lrr; did you mean optim.lr?"),
        (["train", "data=/nowhere", "run=/nowhere/run"], "data=/nowhere holds no manifest.json; prepare the corpus"),
    ],
    ids=["verb", "key", "data"],
)
def test_a_process_of_its_own_ends_so_too(arguments, named):
    ended = typed(*arguments)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith(f"error: {named}") and ended.stderr.count("\n") == 1


# --- what is there


@dataclass(frozen=True)
class Case:
    """How the world is broken, what is then typed, and parts of the line that it must be refused with.

    In these parts `{data}`, `{run}` and the like stand for the world's places.
    """

    spoil: Callable[[World], object]
    arguments: Callable[[World], list[str]]
    named: tuple[str, ...]


def nothing(_):
    """The world is whole; what is typed does not fit it."""


def flip_bit(path, *, at):
    """Changes one bit; `at` is a share of the file."""
    content = bytearray(path.read_bytes())
    content[int(at * len(content))] ^= 1
    path.write_bytes(content)


def flipped(split, at=0.5):
    return lambda world: flip_bit(world.data / split / "00000.arrow", at=at)


def halve_lines(path):
    """The first half of a file's lines alone."""
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[: len(lines) // 2]))


def halve(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def foreign_vocabulary(world):
    shutil.copyfile(world.other / "vocabulary.arrow", world.data / "vocabulary.arrow")


def flipped_count(world):
    """One bit of the count of <unk>."""
    path = str(world.data / "vocabulary.arrow")
    found = read_vocabulary(path)
    write_vocabulary(Vocabulary(words=found.words, counts=found.counts ^ np.eye(found.size, dtype=int)[1] << 20), path)


def truncated_gzip(path, num_lines):
    packed = gzip.compress(made_lines(num_lines, seed=3).encode())
    path.write_bytes(packed[: len(packed) // 2])


def parquet_without_text(world):
    pq.write_table(pa.table({"content": ["a b c", "d"]}), world.texts / "rows.parquet")


TEXT = {
    "missing file": Case(
        nothing,
        lambda w: w.prepare(f"corpus.train={w.texts}/absent.txt"),
        ("{texts}/absent.txt is missing", "mend"),
    ),
    "glob that matches nothing": Case(
        nothing, lambda w: w.prepare(f"corpus.test={w.texts}/*.csv"), ("corpus.test={texts}/*.csv", "mend the path")
    ),
    "empty file": Case(
        lambda w: (w.texts / "none.txt").touch(),
        lambda w: w.prepare(f"corpus.train={w.texts}/none.txt"),
        ("found 0 bytes in {texts}/none.txt, needed text; fill it or leave it out",),
    ),
    "empty held-out file": Case(
        lambda w: (w.texts / "none.txt").touch(),
        lambda w: w.prepare(f"corpus.valid={w.texts}/none.txt"),
        ("corpus.valid=", "found 0 bytes in {texts}/none.txt"),
    ),
    "file of white space": Case(
        lambda w: (w.texts / "blank.txt").write_text("  \n\n \n"),
        lambda w: w.prepare(f"corpus.train={w.texts}/blank.txt"),
        ("holds no words", "corpus.train"),
    ),
    "empty folder": Case(
        lambda w: (w.texts / "folder").mkdir(),
        lambda w: w.prepare(f"corpus.train={w.texts}/folder"),
        ("corpus.train={texts}/folder is a folder without files; needed text files; mend the path",),
    ),
    "folder with an empty file": Case(
        lambda w: ((w.texts / "folder").mkdir(), (w.texts / "folder" / "a.txt").touch()),
        lambda w: w.prepare(f"corpus.train={w.texts}/folder"),
        ("corpus.train={texts}/folder: found 0 bytes in {texts}/folder/a.txt",),
    ),
    "parquet without the column": Case(
        parquet_without_text,
        lambda w: w.prepare(f"corpus.train={w.texts}/rows.parquet"),
        ("{texts}/rows.parquet has no column text; found content; use corpus.text_column=NAME",),
    ),
    "jsonl without the column": Case(
        lambda w: (w.texts / "rows.jsonl").write_text('{"text": "a b"}\n{"body": "c"}\n'),
        lambda w: w.prepare(f"corpus.train={w.texts}/rows.jsonl"),
        ("{texts}/rows.jsonl, line 2", "has no column text; found body; use corpus.text_column=NAME"),
    ),
    "truncated gzip": Case(
        lambda w: truncated_gzip(w.texts / "cut.txt.gz", 20_000),
        lambda w: w.prepare(f"corpus.train={w.texts}/cut.txt.gz"),
        ("{texts}/cut.txt.gz is damaged", "restore the file or leave it out"),
    ),
    "truncated gzip held out": Case(
        lambda w: truncated_gzip(w.texts / "cut.txt.gz", 100),
        lambda w: w.prepare(f"corpus.valid={w.texts}/cut.txt.gz"),
        ("{texts}/cut.txt.gz is damaged", "restore the file or leave it out"),
    ),
    "no gzip": Case(
        lambda w: (w.texts / "plain.txt.gz").write_text("a b c\n"),
        lambda w: w.prepare(f"corpus.train={w.texts}/plain.txt.gz"),
        ("{texts}/plain.txt.gz is damaged", "restore the file or leave it out"),
    ),
    "second stream of bzip2 damaged": Case(
        lambda w: (w.texts / "c.bz2").write_bytes(
            bz2.compress(b"one two\n") + b"BZx9" + bz2.compress(b"three\n")[4:] + bz2.compress(b"one two\n")
        ),
        lambda w: w.prepare(f"corpus.train={w.texts}/c.bz2"),
        ("{texts}/c.bz2 is damaged", "restore the file or leave it out"),
    ),
    "array of JSON": Case(
        lambda w: (w.texts / "a.json").write_text('[{"text": "a"}]'),
        lambda w: w.prepare(f"corpus.train={w.texts}/a.json"),
        ("{texts}/a.json holds a JSON array, needed one object a line; use jq -c '.[]'",),
    ),
    "UTF-16 held out": Case(
        lambda w: (w.texts / "a.txt").write_bytes("one two\n".encode("utf-16")),
        lambda w: w.prepare(f"corpus.valid={w.texts}/a.txt"),
        ("{texts}/a.txt holds UTF-16", "convert it: iconv -f UTF-16 -t UTF-8"),
    ),
    "link to nothing": Case(
        lambda w: ((w.texts / "folder").mkdir(), (w.texts / "folder" / "a").symlink_to("nowhere")),
        lambda w: w.prepare(f"corpus.train={w.texts}/folder"),
        ("{texts}/folder/a is a link that leads to nothing; mend it or remove it",),
    ),
    "null in a row": Case(
        lambda w: (w.texts / "rows.jsonl").write_text('{"text": "a b"}\n{"text": null}\n'),
        lambda w: w.prepare(f"corpus.train={w.texts}/rows.jsonl"),
        ("{texts}/rows.jsonl, line 2", "text is null", "or use corpus.null_rows=skip"),
    ),
    "no row with text": Case(
        lambda w: (w.texts / "rows.jsonl").write_text('{"txt": "a b"}\n'),
        lambda w: w.prepare(f"corpus.train={w.texts}/rows.jsonl", "corpus.null_rows=skip"),
        ("holds no text in corpus.text_column=text; give text",),
    ),
    "file of two splits": Case(
        nothing,
        lambda w: w.prepare(f"corpus.test={w.texts}/train.txt"),
        ("{texts}/train.txt stands in corpus.train and in corpus.test; name it once",),
    ),
    "vocabulary with a word twice": Case(
        lambda w: (w.folder / "words").write_text("one\ntwo\none\n"),
        lambda w: w.prepare(f"corpus.vocabulary.path={w.folder}/words"),
        ("{folder}/words, line 3: found 'one' again, as in line 1; remove one",),
    ),
    "vocabulary that is missing": Case(
        nothing,
        lambda w: w.prepare(f"corpus.vocabulary.path={w.folder}/absent"),
        ("corpus.vocabulary.path={folder}/absent is missing; name a vocabulary.arrow or a text file",),
    ),
    "vocabulary with CR LF": Case(
        lambda w: (w.folder / "words").write_bytes(b"one\r\ntwo\r\n"),
        lambda w: w.prepare(f"corpus.vocabulary.path={w.folder}/words"),
        ("{folder}/words, line 1: found 'one\\r', needed one word", "save the file with LF line ends, not CR LF"),
    ),
    "vocabulary above its size": Case(
        lambda w: (w.folder / "words").write_text("one\ntwo\n"),
        lambda w: w.prepare(f"corpus.vocabulary.path={w.folder}/words", "corpus.vocabulary.size=3"),
        ("corpus.vocabulary.path={folder}/words holds 4 words", "size=3; use corpus.vocabulary.size=null"),
    ),
    "min_count above every count": Case(
        nothing, lambda w: w.prepare("corpus.vocabulary.min_count=9999"), ("vocabulary.min_count=9999 cuts every word",)
    ),
    "output within the input": Case(
        nothing,
        lambda w: prepare_typed(w.texts, w.texts / "out", f"corpus.train={w.texts}"),  # which holds valid.txt too
        ("corpus.train={texts} takes in data={texts}/out, which prepare writes to; use another data=FOLDER",),
    ),
    "output in a file": Case(
        nothing,
        lambda w: prepare_typed(w.texts, w.data / "manifest.json"),
        ("data={data}/manifest.json is a file, needed a folder; use another data=FOLDER",),
    ),
    "output in a run folder": Case(
        nothing,
        lambda w: prepare_typed(w.texts, w.run),
        ("data={run} is a run folder, as it holds metrics.jsonl; use another data=FOLDER",),
    ),
}

CORPUS = {
    f"{verb}: {name}": Case(spoil, arguments, named)
    for name, spoil, named in (
        (
            "no manifest",
            lambda w: (w.data / "manifest.json").unlink(),
            ("data={data} holds no manifest.json",),
        ),
        (
            "manifest cut in half",
            lambda w: halve(w.data / "manifest.json"),
            ("{data}/manifest.json is no manifest", "run `python -m jobs prepare` again"),
        ),
        (
            "vocabulary missing",
            lambda w: (w.data / "vocabulary.arrow").unlink(),
            ("{data}/vocabulary.arrow",),
        ),
        (
            "vocabulary with other counts",
            flipped_count,
            ("{data}/vocabulary.arrow has other counts than the manifest's: found sha256", "needed", "prepare"),
        ),
        (
            "vocabulary of another corpus",
            foreign_vocabulary,
            (
                "{data}/vocabulary.arrow is not the vocabulary of the manifest: found 33 words",
                "needed 52 words",
                "prepare",
            ),
        ),
    )
    for verb, arguments in (
        ("verify", World.verify),
        ("train", World.train_anew),
        ("train on", World.train),
        ("evaluate", World.evaluate),
    )
}

SHARDS = {
    f"{verb}: {name}": Case(spoil, arguments, named)
    for name, spoil, named in (
        ("shard missing", lambda w: (w.data / "test/00000.arrow").unlink(), ("found no file, needed",)),
        ("shard cut in half", lambda w: halve(w.data / "test/00000.arrow"), ("bytes, needed",)),
        ("a bit of the tokens flipped", flipped("test", 0.5), ("found sha256", "needed")),
        ("a bit of the head flipped", flipped("test", 0.01), ("found sha256", "needed")),
        ("a bit of the foot flipped", flipped("test", 0.95), ("found sha256", "needed")),
    )
    for verb, arguments in (("train", World.train_anew), ("train on", World.train), ("evaluate", World.evaluate))
}

RUN = {
    "a folder for Prometheus that is not there": Case(
        nothing,
        lambda w: w.train_anew(f"tracking.prometheus_folder={w.folder / 'nowhere'}"),
        ("tracking.prometheus_folder=", "nowhere is no folder that can be written to; give the one that node-exporter"),
    ),
    "more lanes than targets": Case(
        nothing,
        lambda w: w.train_anew("stream.num_lanes=5000"),
        ("stream.num_lanes=5000 is more than the corpus has targets, 1080; use stream.num_lanes=154 or a larger",),
    ),
    "cutoffs beyond the vocabulary": Case(
        nothing,
        lambda w: w.train_anew("model.softmax.cutoffs=[10,52]"),
        ("cutoff 52 is not below the vocabulary's 52 words; use model.softmax.cutoffs=[10]",),
    ),
    "all cutoffs beyond the vocabulary": Case(
        nothing,
        lambda w: w.train_anew("model.softmax.cutoffs=[2000]"),
        ("cutoff 2000 is not below the vocabulary's 52 words; use model.softmax.kind=full",),
    ),
    "no split train": Case(
        nothing,
        lambda w: w.evaluate("split=dev"),
        ("split=dev is not in data={data}; use one of test, train, valid",),
    ),
    "evaluate without a run": Case(
        nothing,
        lambda w: ["evaluate", f"run={w.data}"],
        ("run={data} holds no config.yaml; give the folder that `python -m jobs train` wrote",),
    ),
    "evaluate a folder that is not there": Case(
        nothing, lambda w: ["evaluate", f"run={w.folder}/absent"], ("run={folder}/absent holds no config.yaml",)
    ),
    "evaluate before the first checkpoint": Case(
        lambda w: shutil.rmtree(w.run / "checkpoints"),
        World.evaluate,
        ("run={run} holds no committed checkpoint; run `python -m jobs train` until its first",),
    ),
    "evaluate: checkpoint cut in half": Case(
        lambda w: halve(w.checkpoint), World.evaluate, ("{run}/checkpoints/step-30.ckpt is damaged", "remove it and")
    ),
    "train: checkpoint cut in half": Case(
        lambda w: halve(w.checkpoint), World.train, ("{run}/checkpoints/step-30.ckpt is damaged", "remove it and")
    ),
    "train: checkpoint with a bit flipped": Case(
        lambda w: flip_bit(w.checkpoint, at=0.5), World.train, ("step-30.ckpt is damaged: found sha256", "needed")
    ),
    "train: checkpoint gone, its mark left": Case(
        lambda w: w.checkpoint.unlink(), World.train, ("{run}/checkpoints/step-30.ckpt does not exist",)
    ),
    "train: run of another model": Case(
        nothing,
        lambda w: w.train("model.hidden_size=8", "optim.lr=0.02"),
        (
            "step-30.ckpt is of another run: ",
            "model.recurrence.hidden_size was 6 and is 8",
            "optim.lr was 0.01 and is 0.02",
            "set it back or use another run=FOLDER",
        ),
    ),
    "train: run of other lanes": Case(
        nothing,
        lambda w: w.train("stream.num_lanes=4", "stream.seed=2"),
        ("stream.num_lanes was 3 and is 4", "stream.seed was 1 and is 2"),
    ),
    "train: run on another corpus": Case(
        nothing, lambda w: w.train(f"data={w.other}"), ("corpus was ", "vocabulary was ", "another run=FOLDER")
    ),
    "train: run is the corpus": Case(
        nothing,
        lambda w: train_typed(w.data, w.data),
        ("run={data} is the same folder as data={data}; use a run=FOLDER of its own",),
    ),
    "train: run is another corpus": Case(
        nothing, lambda w: train_typed(w.data, w.other), ("/other holds a prepared corpus (manifest.json); use a run",)
    ),
    "train: run is a file": Case(
        lambda w: (w.folder / "new").write_text("mine"), World.train_anew, ("new is no folder; use another run=FOLDER",)
    ),
    "train: run where nothing can be made": Case(
        nothing,
        lambda w: train_typed(w.data, Path("/proc/nowhere/run")),
        ("/proc/nowhere/run cannot be written (No such file or directory); mend the path",),
    ),
    **{
        f"{verb}: checkpoint that is {name}": Case(spoil, arguments, named)
        for name, spoil, named in (
            ("no checkpoint", lambda w: mark(w.checkpoint, b"text"), ("step-30.ckpt is no checkpoint: torch cannot",)),
            (
                "of something else",
                lambda w: (torch.save({"state_dict": {}}, w.checkpoint), mark(w.checkpoint)),
                ("step-30.ckpt is no checkpoint of a run of this pipeline: found nothing at", "remove it and"),
            ),
        )
        for verb, arguments in (("train", World.train), ("evaluate", World.evaluate))
    },
    **{
        f"train: {name} is a folder": Case(
            lambda w, name=name: ((w.run / name).unlink(), (w.run / name).mkdir()),
            World.train,
            (f"{{run}}/{name} is a folder, where a run has a file; remove it or use another run=FOLDER",),
        )
        for name in ("metrics.jsonl", "events.jsonl", "config.yaml", "attempt", ".lock")
    },
    "evaluate: configuration of the run spoilt": Case(
        lambda w: (w.run / "config.yaml").write_text((w.run / "config.yaml").read_text().replace("bptt: 7", "bptt: 0")),
        World.evaluate,
        ("{run}/config.yaml is not", "stream.bptt=0: it must be greater than or equal to 1", "writes it anew"),
    ),
    "evaluate: configuration of the run cut": Case(
        lambda w: halve_lines(w.run / "config.yaml"), World.evaluate, ("{run}/config.yaml is not", "is not given")
    ),
    "evaluate: configuration of the run is no YAML": Case(
        lambda w: (w.run / "config.yaml").write_text("{data: [\n"), World.evaluate, ("{run}/config.yaml is not",)
    ),
}


@pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in (TEXT | CORPUS | SHARDS | RUN).items()])
def test_what_is_there_does_not_fit(case, world, capsys):
    case.spoil(world)
    places = {name: getattr(world, name) for name in ("folder", "texts", "data", "run")}
    line = refused(world, capsys, case.arguments(world))
    for part in case.named:
        assert part.format(**places) in line, line
    if "bad token shard" in line:
        assert "test/00000.arrow: " in line


@pytest.mark.parametrize("at", [0.01, 0.3, 0.5, 0.7, 0.95])
@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_verify_names_the_shard_with_one_flipped_bit(split, at, world, capsys):
    flip_bit(world.data / split / "00000.arrow", at=at)
    capsys.readouterr()
    assert main(world.verify()) == 2
    captured = capsys.readouterr()
    assert captured.out.startswith(f"{split}/00000.arrow: found sha256 ") and captured.out.count("\n") == 1
    assert captured.err == (
        f"error: data={world.data}: 1 of 3 token shards are bad; run `python -m jobs prepare` again\n"
    )


def changed_manifest(world, change):
    path = world.data / "manifest.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_verify_counts_unk_anew(split, world, capsys):
    found = read_manifest(str(world.data)).splits[split].num_unk
    changed_manifest(world, lambda content: content["splits"][split].update(num_unk=found ^ 1))
    line = refused(world, capsys, world.verify())
    assert f"{split}: found <unk> {found} times, the manifest counts {found ^ 1}; run `python -m jobs prepare`" in line


def test_verify_counts_the_words_of_a_corpus_of_before_anew(world, capsys):
    changed_manifest(world, lambda content: content.pop("vocabulary_sha256"))
    assert main(world.verify()) == 0
    flipped_count(world)
    unk = read_vocabulary(str(world.data / "vocabulary.arrow")).counts[1]
    line = refused(world, capsys, world.verify())
    assert f"train: found <unk> {unk - (1 << 20)} times, vocabulary.arrow counts {unk}; run `python -m jobs" in line


def test_preparing_again_mends_a_flipped_bit(world, capsys):
    assert main(world.prepare()) == 0  # the manifest names the places of the texts, which are the copy's now
    before = digests(world.data)
    flip_bit(world.data / "train" / "00000.arrow", at=0.5)
    assert main(world.prepare()) == 0
    assert digests(world.data) == before
    assert main(world.verify()) == 0


def test_only_the_split_that_is_scored_must_be_whole(world, capsys):
    flip_bit(world.data / "train" / "00000.arrow", at=0.5)
    assert main(world.evaluate("split=test")) == 0
    assert "train/00000.arrow" in refused(world, capsys, world.evaluate("split=train"))


def test_cuda_that_is_not_there(world, capsys):
    if torch.cuda.is_available():
        pytest.skip("CUDA is there")
    for arguments in (world.train_anew, world.train, world.evaluate):
        line = refused(world, capsys, arguments("accelerator=cuda"))
        assert line == "accelerator=cuda finds no CUDA device; use accelerator=auto or accelerator=cpu"


@pytest.mark.parametrize("name", ["config.yaml", "attempt", "metrics.jsonl", "events.jsonl"])
@pytest.mark.parametrize("content", [b"", b"\xff\xfe\0", b"{", b"[" * 100_000 + b"\n", b'{"step": 1}\n{"event": 1}\n'])
def test_what_is_damaged_in_a_run_folder_costs_no_training(name, content, world, capsys):
    (world.run / name).write_bytes(content)
    assert main(world.train()) == 0
    assert capsys.readouterr().out.endswith("is trained to step 60 (from step 30)\n")


def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_is_taken(world, capsys, caplog):
    assert main(world.train()) == 0
    newest = world.run / "checkpoints" / "step-60.ckpt"
    halve(newest)
    assert main(world.train()) == 0
    assert f"{newest} is damaged: found sha256" in caplog.text
    assert "going on from step 52, which is whole" in caplog.text
    assert capsys.readouterr().out.endswith("is trained to step 60 (from step 52)\n")


@pytest.mark.parametrize("name", ["long.txt.gz", "long.jsonl"])
def test_a_held_out_file_that_is_damaged_far_within_costs_no_corpus(name, world, capsys):
    path = world.texts / name
    if name.endswith(".gz"):
        packed = gzip.compress(random.Random(0).randbytes(3_000_000).hex(" ", 4).encode(), compresslevel=1)
        path.write_bytes(packed[: len(packed) * 3 // 4])
    else:
        path.write_text('{"text": "w1 w2 w3"}\n' * 150_000 + '{"text": 5}\n')
    refused(world, capsys, world.prepare(f"corpus.valid={path}"))


@pytest.mark.parametrize("verb", ["prepare", "verify", "train", "evaluate"])
def test_a_protocol_that_nobody_knows(verb, tmp_path, capsys):
    place = ["run=nosuch://x"] if verb == "evaluate" else ["data=nosuch://x"]
    more = {"prepare": [f"corpus.train={tmp_path}/a.txt", "cluster=none"], "train": [f"run={tmp_path}/run"]}
    (tmp_path / "a.txt").write_text("a b\n")
    assert "nosuch://x" in refused(World(tmp_path), capsys, [verb, *place, *more.get(verb, [])])


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_refuses_an_unknown_key_an_unknown_flag_and_a_key_given_twice(verb, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    typed = [verb, *(["train", "via=slurm"] if verb == "submit" else [])]
    assert f"unknown flag --xyzzy of {verb}" in refused(World(tmp_path), capsys, [*typed, "--xyzzy"])
    assert refused(World(tmp_path), capsys, [*typed, "xyzzy=1"]) == "unknown key xyzzy"
    key = {"verify": "data", "inspect": "data", "compare": "data", "report": "runs", "synthesize": "to"}.get(
        verb, "run"
    )
    told = refused(World(tmp_path), capsys, [*typed, f"{key}={tmp_path}/a", f"{key}={tmp_path}/b"])
    assert told == f"{key} is given twice, as {tmp_path}/a and as {tmp_path}/b; give it once"
    assert list(tmp_path.iterdir()) == []

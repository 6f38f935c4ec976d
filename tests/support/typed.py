"""Commands as they are typed, on small texts that are made here."""

import os
import random
import subprocess
import sys
from pathlib import Path

from pipeline.upgrades import RENAMED

ROOT = Path(__file__).resolve().parents[2]

STEPS = 30


MODEL = [
    "model.embedding_size=6",
    "model.hidden_size=6",
    "model.softmax.cutoffs=[10,30]",
    "stream.num_lanes=3",
    "stream.bptt=7",
    "optim=adam",
    "optim.lr=0.01",
    "accelerator=cpu",
    "logging.every_steps=1",
    "logging.progress=false",
]


QUIET = ["cluster=none", "tracking.kind=none"]


def over(defaults, *more):
    """The defaults and what is typed over them: of each key the last, a former name counting as the one of today."""
    found = {}
    for each in (*defaults, *more):
        key = each.partition("=")[0]
        found[RENAMED.get(key, key)] = each
    return list(found.values())


def made_lines(num_lines, *, seed, num_types=50):
    """Eight words a line, of which each says which two may follow."""
    draw = random.Random(seed)
    lines, word = [], 0
    for _ in range(num_lines):
        words = []
        for _ in range(8):
            word = (3 * word + draw.choice([1, 2])) % num_types
            words.append(f"w{word}")
        lines.append(" ".join(words) + "\n")
    return "".join(lines)


def write_texts(folder):
    """Three files, one for each split; the held-out ones hold a word that train lacks."""
    folder.mkdir(parents=True)
    (folder / "train.txt").write_text(made_lines(120, seed=0))
    (folder / "valid.txt").write_text(made_lines(20, seed=1) + "unheard\n")
    (folder / "test.txt").write_text(made_lines(25, seed=2) + "unheard unheard\n")
    return folder


def prepare_typed(texts, data, *more):
    files = [f"corpus.{split}={texts / split}.txt" for split in ("train", "valid", "test")]
    return ["prepare", *over([f"data={data}", *files, "corpus.vocabulary.size=null", "cluster=none"], *more)]


def train_typed(data, run, *more):
    return ["train", *over([f"data={data}", f"run={run}", *MODEL, *QUIET, f"max_steps={STEPS}"], *more)]


def typed(*arguments):
    """What `python -m jobs` does with the arguments, in a process of its own."""
    command = [sys.executable, "-m", "jobs", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)

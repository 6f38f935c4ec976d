"""Words per second of `train` by where and on how many workers it runs, two ways side by side in one run.

`python benchmarks/workers.py` trains on made text, on the CPU, in pairs of commands:

- `local`, `none`: one worker under Ray on this machine and as a plain process, each computing on one core;
- `local_all`, `none_all`: the same on all cores, so that none is left for the processes that Ray itself runs, in two
  shapes: the small one, and `local_large`, `none_large` that compute more in each step;
- `none_again`, `none_all`: two of the same, which shows what a ratio of this machine is worth;
- `two`, `pinned`: two workers on one core each that exchange gradients over gloo, and one on one core; large shape.

Both commands of a pair are started, and take turns of some seconds: while one trains, all processes of the other stand
still. So both see the same machine, whatever else it does meanwhile. A rate is taken from a turn's first record to its
last. The ratio is the median of the turns' ratios, for a turn in which the machine is slow would weigh most in a mean;
beside it stand their quartiles. Results, with the rates of all turns, go to benchmarks/results/ with --save.
"""

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import date
from pathlib import Path
from typing import NamedTuple

import torch
from step import make_corpus

ROOT = Path(__file__).resolve().parents[1]
SETTLE_SECONDS = 0.5  # of a turn, in which what has piled up while all stood still is done
WARM_UP_RECORDS = 3
PATIENCE_SECONDS = 300.0


class Shape(NamedTuple):
    """What is trained."""

    width: int
    num_lanes: int
    bptt: int
    record_steps: int
    turn_seconds: float

    @property
    def record_words(self) -> int:
        """From one record to the next."""
        return self.num_lanes * self.bptt * self.record_steps


SHAPES = {
    "small": Shape(width=200, num_lanes=20, bptt=35, record_steps=5, turn_seconds=5.0),
    "large": Shape(width=512, num_lanes=128, bptt=35, record_steps=1, turn_seconds=15.0),
}


class Way(NamedTuple):
    """How a command is started."""

    shape: str
    overrides: tuple[str, ...]
    prefix: tuple[str, ...] = ()


ONE_OF_RAY = ("cluster=local", "cluster.num_workers=1")
WAYS = {
    "none": Way("small", ("cluster=none", "cluster.cpus_per_worker=1")),
    "local": Way("small", (*ONE_OF_RAY, "cluster.cpus_per_worker=1")),
    "none_all": Way("small", ("cluster=none",)),
    "none_again": Way("small", ("cluster=none",)),
    "local_all": Way("small", ONE_OF_RAY),
    "none_large": Way("large", ("cluster=none",)),
    "local_large": Way("large", ONE_OF_RAY),
    "pinned": Way("large", ("cluster=none", "cluster.cpus_per_worker=1"), ("taskset", "--cpu-list", "0")),
    "two": Way("large", ("cluster=none", "cluster.num_workers=2", "cluster.cpus_per_worker=1")),
}
PAIRS = (
    ("local", "none"),
    ("local_all", "none_all"),
    ("local_large", "none_large"),
    ("none_again", "none_all"),
    ("two", "pinned"),
)


class Training:
    """A command that trains without end, in a session of its own, of which all processes can be made to stand still."""

    def __init__(self, way: Way, *, data: str, run: str) -> None:
        self._shape = SHAPES[way.shape]
        self._metrics = Path(run, "metrics.jsonl")
        command = [*way.prefix, sys.executable, "-m", "jobs", "train", f"data={data}", f"run={run}", *way.overrides]
        command += [f"model.recurrence.hidden_size={self._shape.width}", f"model.embedding_size={self._shape.width}"]
        command += [f"stream.num_lanes={self._shape.num_lanes}", f"stream.bptt={self._shape.bptt}"]
        command += ["model.softmax.cutoffs=[2000]", "optim=adagrad", "max_steps=1000000", "max_epochs=100000"]
        command += ["checkpoint.every_steps=1000000", "checkpoint.validate_every_steps=1000000"]
        command += [f"logging.every_steps={self._shape.record_steps}", "logging.progress=false"]
        command += ["tracking.kind=none", "accelerator=cpu"]
        environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def await_records(self, number: int) -> float:
        """Waits for so many records in all; the time of the last."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while self.num_records() < number:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"error: {' '.join(map(str, self._process.args))} trains no more")
            time.sleep(0.005)
        return time.monotonic()

    def num_records(self) -> int:
        """That are written."""
        return self._metrics.read_bytes().count(b"\n") if self._metrics.exists() else 0

    def signal_all(self, number: int) -> None:
        """Signals all processes of the session."""
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(ProcessLookupError):
                if os.getsid(int(folder.name)) == self._process.pid:
                    os.kill(int(folder.name), number)

    def words_per_second(self) -> float:
        """Of a turn, after which all stand still."""
        self.signal_all(signal.SIGCONT)
        time.sleep(SETTLE_SECONDS)
        first = self.num_records() + 1
        began = self.await_records(first)
        time.sleep(self._shape.turn_seconds)
        last = self.num_records() + 1
        ended = self.await_records(last)
        self.signal_all(signal.SIGSTOP)
        return (last - first) * self._shape.record_words / (ended - began)

    def end(self) -> None:
        """Kills all."""
        self.signal_all(signal.SIGKILL)
        self._process.wait()


@contextmanager
def training(name: str, *, data: str, run: str) -> Iterator[Training]:
    """One that is warm and stands still."""
    command = Training(WAYS[name], data=data, run=run)
    try:
        command.await_records(WARM_UP_RECORDS)
        command.signal_all(signal.SIGSTOP)
        yield command
    finally:
        command.end()


def turns(one: str, other: str, *, folder: str, number: int) -> list[tuple[float, float]]:
    """The rates of both ways, turn by turn; each begins every second time."""
    rates = []
    data = f"{folder}/data"
    with (
        training(one, data=data, run=f"{folder}/{one}-beside-{other}") as left,
        training(other, data=data, run=f"{folder}/{other}-beside-{one}") as right,
    ):
        for i in range(number):
            if i % 2:
                rates.append((left.words_per_second(), right.words_per_second()))
            else:
                rates.append((right.words_per_second(), left.words_per_second())[::-1])
    return rates


def main() -> None:
    """Measures the pairs and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=12, help="of each command of a pair")
    parser.add_argument("--pairs", nargs="+", choices=[f"{one}/{other}" for one, other in PAIRS])
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/workers-<date>.json")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # which ends what has been started
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        make_corpus(f"{folder}/data", num_tokens=1_000_000)
        print(f"{'pair':<24}{'words/s':>17}{'ratio':>8}   quartiles of its turns")
        for one, other in PAIRS:
            if options.pairs and f"{one}/{other}" not in options.pairs:
                continue
            rates = turns(one, other, folder=folder, number=options.turns)
            left, right = (statistics.harmonic_mean(side) for side in zip(*rates, strict=True))
            low, ratio, high = statistics.quantiles([mine / theirs for mine, theirs in rates], n=4)
            found[f"{one}/{other}"] = {"ratio": ratio, "quartiles": [low, high], "words_per_second": rates}
            print(
                f"{one + '/' + other:<24}{left:>8,.0f}/{right:>8,.0f}{ratio:>8.3f}   {low:.3f} {high:.3f}", flush=True
            )
    if options.save:
        result = {
            "date": date.today().isoformat(),
            "machine": f"{len(os.sched_getaffinity(0))} CPU cores",
            "python": platform.python_version(),
            "torch": torch.__version__,
            "shapes": {name: shape._asdict() for name, shape in SHAPES.items()},
            "pairs": found,
        }
        path = Path(__file__).parent / "results" / f"workers-{date.today().isoformat()}.json"
        path.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""Words per second of `train` by where and on how many workers it runs, interleaved in one run.

`python benchmarks/workers.py` trains on made text, on the CPU, each way for some steps in turn:

- `none`, `local`: one worker that computes on one core, as a plain process and under Ray on this machine; first shape;
- `none_all`, `local_all`: the same on all cores, so that none is left for the dozen processes that Ray itself runs;
- `pinned`, `two`: one worker on one core, and two on one core each that exchange gradients over gloo; second shape, in
  which a step computes far more than it exchanges.

A rate is taken over the records of a command but the first, so that starting is left out. The table shows each round,
the ratios are of all rounds. Results go to benchmarks/results/ with --save.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path
from typing import NamedTuple

import torch
from step import make_corpus

ROOT = Path(__file__).resolve().parents[1]
RECORD_STEPS = {"small": 25, "large": 2}
SHAPES = {
    "small": ["model.hidden_size=200", "model.embedding_size=200", "stream.num_lanes=20", "stream.bptt=35"],
    "large": ["model.hidden_size=512", "model.embedding_size=512", "stream.num_lanes=128", "stream.bptt=35"],
}


class Way(NamedTuple):
    """How a command is started."""

    shape: str
    prefix: tuple[str, ...]
    overrides: tuple[str, ...]


WAYS = {
    "none": Way("small", (), ("cluster=none", "cluster.cpus_per_worker=1")),
    "local": Way("small", (), ("cluster=local", "cluster.num_workers=1", "cluster.cpus_per_worker=1")),
    "none_all": Way("small", (), ("cluster=none",)),
    "local_all": Way("small", (), ("cluster=local", "cluster.num_workers=1")),
    "pinned": Way("large", ("taskset", "--cpu-list", "0"), ("cluster=none", "cluster.cpus_per_worker=1")),
    "two": Way("large", (), ("cluster=none", "cluster.num_workers=2", "cluster.cpus_per_worker=1")),
}

RATIOS = (("local", "none"), ("local_all", "none_all"), ("two", "pinned"))


def words_per_second(way: Way, *, data: str, run: str, num_records: int) -> float:
    """Runs a command of its own; the rate over all its records but the first."""
    record_steps = RECORD_STEPS[way.shape]
    command = [*way.prefix, sys.executable, "-m", "jobs", "train", f"data={data}", f"run={run}"]
    command += [
        *SHAPES[way.shape],
        *way.overrides,
        "model.softmax.cutoffs=[2000]",
        "optim=adagrad",
        "tracking.kind=none",
    ]
    command += [f"max_steps={(num_records + 1) * record_steps}", f"logging.every_steps={record_steps}"]
    command += ["accelerator=cpu", "logging.progress=false"]
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    subprocess.run(command, check=True, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    records = [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]
    speeds = [record["speed/tokens_per_second"] for record in records if "speed/tokens_per_second" in record][1:]
    return len(speeds) / sum(1 / speed for speed in speeds)


def main() -> None:
    """Runs the rounds and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--records", type=int, default=10, help="of a command, without the first")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/workers-<date>.json")
    options = parser.parse_args()
    rounds: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        make_corpus(f"{folder}/data", num_tokens=1_000_000)
        print(f"{'round':>5}" + "".join(f"{name:>11}" for name in WAYS))
        for i in range(1, options.rounds + 1):
            found = {
                name: words_per_second(
                    way, data=f"{folder}/data", run=f"{folder}/{name}{i}", num_records=options.records
                )
                for name, way in WAYS.items()
            }
            rounds.append(found)
            print(f"{i:>5}" + "".join(f"{rate:>11,.0f}" for rate in found.values()), flush=True)
    seconds = {name: sum(1 / each[name] for each in rounds) for name in WAYS}
    ratios = {f"{one}/{other}": seconds[other] / seconds[one] for one, other in RATIOS}
    print("of all rounds:", ", ".join(f"{name} {ratio:.3f}" for name, ratio in ratios.items()))
    if options.save:
        result = {
            "date": date.today().isoformat(),
            "machine": f"{len(os.sched_getaffinity(0))} CPU cores",
            "python": platform.python_version(),
            "torch": torch.__version__,
            "shapes": SHAPES,
            "words_per_second": rounds,
            "ratios": ratios,
        }
        path = Path(__file__).parent / "results" / f"workers-{date.today().isoformat()}.json"
        path.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()

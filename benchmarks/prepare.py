"""What it costs to prepare a text, beside what a user would take instead, in turns on one file.

`python benchmarks/prepare.py [--text FILE] [--rounds 3] [--tasks] [--sizes 20 80 320] [--save]`: words by white space,
`<eos>` for each line, the 50,000 most frequent words, ids on disk. Each side is a whole command, imports and all:

- `wordlanes`: `python -m jobs prepare ... cluster=none` of this checkout;
- `numpy_pyarrow`: numpy and pyarrow by hand, ids kept in memory;  `plain`: the standard library alone;
- `datasets`, `datatrove`, `ray_data`: as benchmarks/peers/prepare_*.py use them, one process each, but for Ray Data,
  which takes all cores.

The peers live in virtual environments of their own, made once. What came out of each is compared: the same words in the
same order and the same ids, else the table says what differs. Without --text the text is made by `synthesize`; a real
one should hold no literal `<eos>` or `<unk>`, which peers do not know as tokens.

--tasks: beside the peers, two tasks at a time beside one on a text of 600 MB, both by Ray. --sizes: peak memory at
these sizes of made text, in MB. How CPU seconds and memory are counted: benchmarks/measuring.py.
"""

import argparse
import hashlib
import math
import re
import sys
import tempfile
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
from measuring import (
    COST_HEADER,
    PEERS,
    ROOT,
    Cost,
    cost_cells,
    each_round,
    environment,
    fresh,
    last_json,
    measure,
    medians,
    reached,
    save,
    show,
)

from pipeline.corpus.manifest import read_manifest

OURS = "wordlanes"
NAMES = ("numpy_pyarrow", "plain", "datasets", "datatrove", "ray_data")
AIMS = {"numpy_pyarrow": 1.0, "datasets": 3.0, "ray_data": 5.0}  # their CPU seconds by ours, at least
VOCAB_SIZE = 50_000
BYTES_A_WORD = 5.55  # of made text
TASKS_MEGABYTES = 600
ENVIRONMENT = {"PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0", "HF_HUB_OFFLINE": "1"}


def make_text(folder: Path, *, megabytes: int) -> Path:
    """One file of made text."""
    num_words = math.ceil(megabytes * 1e6 / BYTES_A_WORD)
    command = [sys.executable, "-m", "jobs", "synthesize", f"to={folder}", f"num_words={num_words}", "cluster=none"]
    measure(command, environment=ENVIRONMENT)
    text = folder.with_suffix(".txt")
    with text.open("wb") as file:
        for part in sorted(folder.glob("*.txt")):
            file.write(part.read_bytes())
            part.unlink()
    return text


def our_command(text: Path, data: Path, *more: str) -> list[str]:
    """The command as it is typed."""
    keys = ["corpus.words=whitespace", f"corpus.vocabulary.size={VOCAB_SIZE}"]
    return [sys.executable, "-m", "jobs", "prepare", f"data={data}", f"corpus.train={text}", *keys, *more]


def prepare(name: str, python: Path, text: Path, out: Path) -> Cost:
    """Prepares the text by one side."""
    if name == OURS:
        command = our_command(text, out, "cluster=none")
    else:
        command = [str(python), f"{PEERS}/prepare_{name}.py", "make", str(text), str(fresh(out)), str(VOCAB_SIZE)]
    return measure(command, environment=ENVIRONMENT)[0]


def came_out(name: str, python: Path, out: Path) -> dict[str, object]:
    """The number of ids, and the digests of ids and vocabulary."""
    if name != OURS:
        return last_json(measure([python, f"{PEERS}/prepare_{name}.py", "digest", out], environment=ENVIRONMENT)[1])
    manifest = read_manifest(str(out))
    digest = hashlib.sha256()
    for shard in manifest.splits["train"].shards:
        digest.update(column(out / shard.name, "token").to_numpy().astype(np.int32).tobytes())
    words = column(out / "vocabulary.arrow", "word").to_pylist()
    return {
        "num_tokens": manifest.splits["train"].num_tokens,
        "ids": digest.hexdigest(),
        "vocabulary": hashlib.sha256("".join(f"{word}\n" for word in words).encode()).hexdigest(),
    }


def column(path: Path, name: str) -> pa.ChunkedArray:
    """A column of an Arrow file."""
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()[name]


def compare(options: argparse.Namespace, folder: Path) -> dict[str, object]:
    """The peers' table."""
    pythons = {OURS: Path(sys.executable)}
    pythons |= {name: found for name in options.peers if (found := environment(name, options.environments))}
    text = options.text or make_text(folder / "text", megabytes=options.megabytes)
    text_bytes = text.stat().st_size
    costs: dict[str, list[Cost]] = {name: [] for name in pythons}
    results: dict[str, dict[str, object]] = {}

    def one(name: str, number: int) -> None:
        out = folder / f"{name}-{number}"
        costs[name].append(prepare(name, pythons[name], text, out))
        if name not in results:
            results[name] = came_out(name, pythons[name], out)
        fresh(out).rmdir()
        print(f"round {number + 1}: {name} {costs[name][-1].cpu_seconds:.1f} CPU s", flush=True)

    done = each_round(options.rounds, {name: partial(one, name) for name in pythons})
    middle = {name: medians(costs[name]) for name in done}
    ours = middle[OURS]["cpu_seconds"]
    rows = []
    for name in done:
        ratio = middle[name]["cpu_seconds"] / ours
        aim = reached(ratio >= AIMS[name], AIMS[name]) if name in AIMS else ""
        differs = [key for key, value in results[OURS].items() if results[name][key] != value]
        same = f"other {' and '.join(differs)}" if differs else "same"
        speed = f"{text_bytes / middle[name]['cpu_seconds'] / 1e6:.1f}"
        rows.append([name, *cost_cells(middle[name]), speed, f"{ratio:.2f}", aim, same])
    print(f"{text_bytes / 1e6:.0f} MB, {results[OURS]['num_tokens']:,} tokens; medians of {options.rounds} rounds")
    show(["", *COST_HEADER, "MB/CPU s", "CPU by ours", "aim", "result"], rows)
    return {
        "text": "given" if options.text else "synthesize",
        "text_bytes": text_bytes,
        "num_tokens": results[OURS]["num_tokens"],
        "rounds": options.rounds,
        "medians": middle,
        "cpu_by_ours": {name: middle[name]["cpu_seconds"] / ours for name in done},
        "same_result": {name: results[name] == results[OURS] for name in done},
    }


def compare_tasks(options: argparse.Namespace, folder: Path) -> dict[str, object]:
    """Two tasks at a time beside one; of the preparation as the command tells it, and of the whole command."""
    text = options.text or make_text(folder / "big", megabytes=TASKS_MEGABYTES)
    seconds: dict[str, list[tuple[float, float]]] = {"1": [], "2": []}

    def one(num_tasks: str, number: int) -> None:
        data = folder / f"tasks-{num_tasks}-{number}"
        more = ["cluster=local", f"cluster.num_cpus={num_tasks}"]
        cost, printed = measure(our_command(text, data, *more), environment=ENVIRONMENT)
        told = re.search(r"time: ([\d.]+) s", printed)
        assert told, printed
        seconds[num_tasks].append((float(told[1]), cost.wall_seconds))
        print(f"round {number + 1}: {num_tasks} at a time {told[1]} s ({cost.wall_seconds:.1f} in all)", flush=True)
        fresh(data).rmdir()

    each_round(options.rounds, {name: partial(one, name) for name in seconds})
    middle = {
        name: [float(np.median(column)) for column in zip(*found, strict=True)] for name, found in seconds.items()
    }
    inner, whole = (middle["1"][k] / middle["2"][k] for k in (0, 1))
    print(
        f"{text.stat().st_size / 1e6:.0f} MB, two tasks beside one, aim 1.7: preparation {inner:.2f}, all {whole:.2f}"
    )
    return {
        "text_bytes": text.stat().st_size,
        "seconds_preparation_and_whole_by_tasks": middle,
        "ratio_preparation": inner,
        "ratio_whole_command": whole,
    }


def show_sizes(options: argparse.Namespace, folder: Path) -> dict[str, object]:
    """Peak memory of our command at several sizes of made text."""
    found = {}
    for megabytes in options.sizes:
        text = make_text(folder / f"size-{megabytes}", megabytes=megabytes)
        found[megabytes] = asdict(measure(our_command(text, folder / "sized", "cluster=none"))[0])
        fresh(folder / "sized").rmdir()
        text.unlink()
    rows = [
        [f"{megabytes} MB", *cost_cells(cost), f"{cost['process_peak_bytes'] / 1e6:,.0f}"]
        for megabytes, cost in found.items()
    ]
    show(["text", *COST_HEADER, "as time -v, MB"], rows)
    return {f"{megabytes} MB": cost for megabytes, cost in found.items()}


def main() -> None:
    """Runs what is asked for and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, help="a real text, UTF-8; default: made text")
    parser.add_argument("--megabytes", type=int, default=80, help="of made text")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", nargs="*", choices=NAMES, default=NAMES)
    parser.add_argument("--environments", type=Path, default=PEERS, help="folder of the peers' virtual environments")
    parser.add_argument("--tasks", action="store_true", help=f"two tasks beside one, on {TASKS_MEGABYTES} MB")
    parser.add_argument("--sizes", type=int, nargs="*", default=[], help="peak memory at these sizes in MB")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/prepare-<date>.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result: dict[str, object] = {"peers": compare(options, Path(folder))}
        if options.sizes:
            result["peak_by_size"] = show_sizes(options, Path(folder))
        if options.tasks:
            result["tasks"] = compare_tasks(options, Path(folder))
    if options.save:
        save("prepare", result)


if __name__ == "__main__":
    main()

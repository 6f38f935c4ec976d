"""What it costs to read windows of 128 × 70 from disk, beside the loaders that a user would take instead, in turns.

`python benchmarks/stream.py [--text FILE] [--rounds 3] [--passes 1] [--save]`: the text is prepared by this project,
and its windows are read as lanes, by a fresh process for each measurement:

- `wordlanes`: `pipeline.training.data.read_batches` on the prepared corpus, targets dealt to the clusters besides;
- `torch_tensor`: the whole text as a tensor in memory, the bound;
- `datasets_torch`, `litdata`, `mosaicml_streaming`: as benchmarks/peers/stream_*.py use them. They have no lanes: the
  windows are written beforehand, outside the timing, in the order in which they will be read. As `rows` a sample is a
  lane's part of a window, which is how these loaders are meant; as `batches` it is a whole window, so that their files
  serve that one number of lanes and that length alone.

All give inputs and targets as int64 tensors, in this process and without workers, and all give the same ids, else the
table says so. Tokens a CPU second are those of reading alone, after imports and opening. The first batch, opening
included, is one in the middle of an epoch for this project, and the very first for the others; the files were written
just before, so the system has all of them in memory. CPU seconds, wall time and memory are those of the whole command;
how they are counted: benchmarks/measuring.py.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from measuring import (
    COST_HEADER,
    PEERS,
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
from prepare import ENVIRONMENT, OURS, column, make_text, our_command

from pipeline.corpus.manifest import read_manifest

LANES, BPTT = 128, 70
BOUND = "torch_tensor"
NAMES = ("datasets_torch", "litdata", "mosaicml_streaming")
SAMPLES = ("rows", "batches")
AIM, AIM_OURS = 5.0, 60.0  # our tokens a CPU second by theirs; and in millions
AIM_FIRST_MS = 50.0


@dataclass
class Reader:
    """A loader, what it reads, and what was measured of it."""

    name: str
    command: list[str | Path]  # without what follows
    place: list[str]
    after: list[str]
    costs: list[Cost] = field(default_factory=list)
    told: list[dict[str, float]] = field(default_factory=list)
    digest: str = ""

    def run(self, what: str, *more: str) -> tuple[Cost, dict]:
        """`read` or `digest`: what it costs, and what the script says."""
        cost, printed = measure([*self.command, what, *self.place, *more, *self.after], environment=ENVIRONMENT)
        return cost, last_json(printed)


def make_windows(corpus: Path, to: Path) -> int:
    """Writes the full windows of an epoch with the input before each first target, int32 [windows, lanes, 71]."""
    shards = read_manifest(str(corpus)).splits["train"].shards
    ids = np.concatenate([column(corpus / shard.name, "token").to_numpy() for shard in shards])
    with_input = np.append(0, ids).astype(np.int32)  # before the first target comes <eos>
    num_windows = len(ids) // LANES // BPTT
    found_WLT = np.lib.format.open_memmap(to, "w+", dtype=np.int32, shape=(num_windows, LANES, BPTT + 1))
    for lane in range(LANES):
        start = lane * len(ids) // LANES
        rows = np.lib.stride_tricks.sliding_window_view(with_input[start:], BPTT + 1)
        found_WLT[:, lane] = rows[: num_windows * BPTT : BPTT]
    found_WLT.flush()
    return num_windows


def readers(options: argparse.Namespace, folder: Path) -> list[Reader]:
    """Prepares the text, and writes its windows for the peers that can be installed."""
    corpus, windows = folder / "corpus", folder / "windows.npy"
    text = options.text or make_text(folder / "text", megabytes=options.megabytes)
    measure(our_command(text, corpus, "cluster=none"), environment=ENVIRONMENT)
    num_windows = make_windows(corpus, windows)
    ours: list[str | Path] = [sys.executable, PEERS / f"stream_{OURS}.py"]
    found = [Reader(OURS, ours, [str(corpus)], [str(num_windows)])]
    for name in (BOUND, *options.peers):
        python = environment(name, options.environments)
        for samples in SAMPLES[: 1 if name == BOUND else 2] if python else ():
            assert python
            command = [python, PEERS / f"stream_{name}.py"]
            out = fresh(folder / f"{name}-{samples}")
            label = name if name == BOUND else f"{name}, {samples}"
            try:
                measure([*command, "write", samples, windows, out], environment=ENVIRONMENT)
            except RuntimeError as error:
                print(f"{label} is left out, it failed: {error}", flush=True)
                continue
            found.append(Reader(label, command, [samples, str(out)], []))
    return found


def read(reader: Reader, number: int, *, passes: int) -> None:
    """A measurement."""
    if number == 0:
        reader.digest = reader.run("digest")[1]["windows"]
    cost, told = reader.run("read", str(passes))
    reader.costs.append(cost)
    reader.told.append(told)
    speed = told["num_tokens"] / told["cpu_seconds"] / 1e6
    print(f"round {number + 1}: {reader.name} {speed:.1f} million tokens a CPU second", flush=True)


def main() -> None:
    """Runs the rounds and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, help="a real text, UTF-8; default: made text")
    parser.add_argument("--megabytes", type=int, default=80, help="of made text")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--passes", type=int, default=1, help="over the text in each measurement")
    parser.add_argument("--peers", nargs="*", choices=NAMES, default=NAMES)
    parser.add_argument("--environments", type=Path, default=PEERS, help="folder of the peers' virtual environments")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/stream-<date>.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = {each.name: each for each in readers(options, Path(folder))}
        runs = {name: partial(read, each, passes=options.passes) for name, each in found.items()}
        done = [found[name] for name in each_round(options.rounds, runs)]
    result = table(done, rounds=options.rounds)
    if options.save:
        save("stream", {"text": "given" if options.text else "synthesize", "passes": options.passes, **result})


def table(done: list[Reader], *, rounds: int) -> dict[str, object]:
    """Prints the medians; returns them."""
    speeds = {each.name: median(each, lambda told: told["num_tokens"] / told["cpu_seconds"] / 1e6) for each in done}
    firsts = {each.name: median(each, lambda told: 1000 * told["first_batch_seconds"]) for each in done}
    rows = []
    for each in done:
        ratio = speeds[OURS] / speeds[each.name]
        aim = "" if each.name == OURS else "bound" if each.name == BOUND else reached(ratio >= AIM, AIM)
        same = "same" if each.digest == done[0].digest else "other windows"
        numbers = [f"{speeds[each.name]:.1f}", f"{ratio:.2f}", aim, f"{firsts[each.name]:.0f}"]
        rows.append([each.name, *numbers, *cost_cells(medians(each.costs)), same])
    num_tokens = done[0].told[0]["num_tokens"]
    print(f"{num_tokens:,.0f} tokens in windows of {LANES} × {BPTT}; medians of {rounds} rounds")
    show(["", "Mtok/CPU s", "ours by it", "aim", "first batch ms", *COST_HEADER, "result"], rows)
    fast, soon = speeds[OURS] >= AIM_OURS, firsts[OURS] < AIM_FIRST_MS
    print(f"aims: Mtok/CPU s {reached(fast, AIM_OURS)}; ms to the first batch {reached(soon, AIM_FIRST_MS)}")
    return {
        "num_tokens": num_tokens,
        "rounds": rounds,
        "million_tokens_per_cpu_second": speeds,
        "first_batch_ms": firsts,
        "whole_command": {each.name: medians(each.costs) for each in done},
        "same_windows": {each.name: each.digest == done[0].digest for each in done},
    }


def median(reader: Reader, part: Callable[[dict[str, float]], float]) -> float:
    """Over a reader's rounds."""
    return statistics.median(map(part, reader.told))


if __name__ == "__main__":
    main()

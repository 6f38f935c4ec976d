"""How much faster two tasks at a time prepare one big file than one does, interleaved in one run.

`python benchmarks/prepare.py [--text FILE] [--rounds 3]`: each side is the whole command `python -m jobs prepare`;
without --text the file is 150 MB of made words with punctuation. Two ratios: of what the command reports for the
preparation itself, and of the whole command, in which starting and stopping Ray weighs the same on both sides.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import numpy as np


def make_text(path: Path, *, size_bytes: int) -> None:
    """Lines of made words by Zipf's law, with a full stop and a comma in each."""
    generator = np.random.default_rng(0)
    shares = 1 / np.arange(3, 200_003)
    shares /= shares.sum()
    names = np.array([f"word{i:x}" for i in range(len(shares))])
    with path.open("w") as file:
        while file.tell() < size_bytes:
            words = names[generator.choice(len(names), size=100_000, p=shares)]
            for line in words.reshape(-1, 20):
                file.write(f"{' '.join(line[:9])}, {' '.join(line[9:])}.\n")


def prepare(text: Path, data: Path, *, num_cpus: int) -> tuple[float, float]:
    """Seconds of the preparation as the command reports them, and of the whole command."""
    begun = time.perf_counter()
    done = subprocess.run(
        [
            *(sys.executable, "-m", "jobs", "prepare", f"data={data}"),
            *(f"corpus.train={text}", "corpus.words=words", f"cluster.num_cpus={num_cpus}"),
        ],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ,
    )
    whole = time.perf_counter() - begun
    reported = re.search(r"time: ([\d.]+) s", done.stdout)
    assert reported, done.stdout
    return float(reported[1]), whole


def main() -> None:
    """Runs the rounds and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/prepare-<date>.json")
    options = parser.parse_args()
    rounds = []
    with tempfile.TemporaryDirectory() as folder:
        text = options.text or Path(folder, "made.txt")
        if options.text is None:
            make_text(text, size_bytes=150_000_000)
        print(f"{text.stat().st_size / 1e6:.0f} MB; seconds of the preparation (of the whole command)")
        for i in range(options.rounds):
            times = {n: prepare(text, Path(folder, f"{i}-{n}"), num_cpus=n) for n in (1, 2)}
            rounds.append(times)
            shown = "   ".join(f"{n} at a time {inner:6.1f} ({whole:5.1f})" for n, (inner, whole) in times.items())
            print(f"round {i + 1}: {shown}   ratio {times[1][0] / times[2][0]:.2f} ({times[1][1] / times[2][1]:.2f})")
    ratios = [sum(times[1][k] for times in rounds) / sum(times[2][k] for times in rounds) for k in (0, 1)]
    print(f"ratio of all rounds: preparation {ratios[0]:.2f}, whole command {ratios[1]:.2f}")
    if options.save:
        result = {
            "date": date.today().isoformat(),
            "machine": f"{os.cpu_count()} CPU cores",
            "python": platform.python_version(),
            "text_bytes": options.text.stat().st_size if options.text else 150_000_000,
            "seconds_preparation_and_whole_by_tasks": rounds,
            "ratio_preparation": ratios[0],
            "ratio_whole_command": ratios[1],
        }
        path = Path(__file__).parent / "results" / f"prepare-{date.today().isoformat()}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()

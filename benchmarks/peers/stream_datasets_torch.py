"""`datasets`: samples of a fixed length in a memory-mapped table, read as arrays."""

from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import numpy as np
import torch
from shared import BPTT, LANES, halves, stream_main


def write(windows: Path, out: Path, by_rows: bool) -> None:
    samples = np.load(windows, mmap_mode="r").reshape(-1, (1 if by_rows else LANES) * (BPTT + 1))
    features = datasets.Features({"ids": datasets.Sequence(datasets.Value("int32"), length=samples.shape[1])})
    datasets.disable_progress_bars()
    with datasets.arrow_writer.ArrowWriter(path=str(out / "ids.arrow"), features=features) as writer:
        for part in np.array_split(samples, 100):
            writer.write_batch({"ids": part})
        writer.finalize()


def opened(out: Path, by_rows: bool) -> Callable[[], Iterator]:
    samples = datasets.Dataset.from_file(str(out / "ids.arrow")).with_format("numpy")

    def read() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for batch in samples.iter(batch_size=LANES if by_rows else 1):
            yield halves(torch.from_numpy(np.asarray(batch["ids"])).view(LANES, BPTT + 1))

    return read


if __name__ == "__main__":
    stream_main(write, opened)

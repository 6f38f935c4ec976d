"""litData: its tokens loader, whose block is a sample, and its data loader without workers."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from litdata import StreamingDataLoader, StreamingDataset, TokensLoader, optimize
from shared import BPTT, LANES, halves, stream_main

CHUNK_WINDOWS = 800  # some 30 MB


def window(number: int, windows: Path) -> torch.Tensor:
    return torch.from_numpy(np.array(np.load(windows, mmap_mode="r")[number]).reshape(-1))


def write(windows: Path, out: Path, _: bool) -> None:
    optimize(
        partial(window, windows=windows),
        list(range(len(np.load(windows, mmap_mode="r")))),
        str(out / "chunks"),
        chunk_size=CHUNK_WINDOWS * LANES * (BPTT + 1),
        num_workers=1,
        item_loader=TokensLoader(),
        reorder_files=False,
    )


def opened(out: Path, by_rows: bool) -> Callable[[], Iterator]:
    block = (1 if by_rows else LANES) * (BPTT + 1)
    samples = StreamingDataset(str(out / "chunks"), item_loader=TokensLoader(block_size=block), shuffle=False)
    loader = StreamingDataLoader(samples, batch_size=LANES if by_rows else 1, num_workers=0, shuffle=False)

    def read() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for batch in loader:
            yield halves(batch.view(LANES, BPTT + 1))

    return read


if __name__ == "__main__":
    stream_main(write, opened)

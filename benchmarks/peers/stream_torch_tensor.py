"""A tensor in memory, cut into lanes: the bound of what is possible, for text that fits."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from shared import BPTT, LANES, stream_main


def write(windows: Path, out: Path, _: bool) -> None:
    found_WLT = np.load(windows, mmap_mode="r")
    inputs_LN = found_WLT[:, :, :-1].transpose(1, 0, 2).reshape(LANES, -1)
    np.save(out / "lanes.npy", np.concatenate([inputs_LN, found_WLT[-1, :, -1:]], axis=1).astype(np.int64))


def opened(out: Path, _: bool) -> Callable[[], Iterator]:
    lanes_LN = torch.from_numpy(np.load(out / "lanes.npy"))

    def read() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for start in range(0, lanes_LN.shape[1] - 1, BPTT):
            stop = start + BPTT
            yield lanes_LN[:, start:stop].contiguous(), lanes_LN[:, start + 1 : stop + 1].contiguous()

    return read


if __name__ == "__main__":
    stream_main(write, opened)

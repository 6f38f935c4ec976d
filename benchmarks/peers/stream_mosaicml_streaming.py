"""mosaicml-streaming: samples as arrays of a fixed shape, and torch's data loader without workers."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from shared import BPTT, LANES, halves, stream_main
from torch.utils.data import DataLoader

# its image data sets, of no use here, import torchvision, which does not load beside another build of torch
sys.modules["streaming.vision"] = ModuleType("streaming.vision")

from streaming import MDSWriter, StreamingDataset  # noqa: E402
from streaming.base.util import clean_stale_shared_memory  # noqa: E402


def write(windows: Path, out: Path, by_rows: bool) -> None:
    samples = np.load(windows, mmap_mode="r").reshape(-1, (1 if by_rows else LANES) * (BPTT + 1))
    columns = {"ids": f"ndarray:int32:{samples.shape[1]}"}
    with MDSWriter(out=str(out / "shards"), columns=columns, compression=None) as writer:
        for sample in samples:
            writer.write({"ids": np.array(sample)})


def opened(out: Path, by_rows: bool) -> Callable[[], Iterator]:
    clean_stale_shared_memory()
    batch_size = LANES if by_rows else 1
    samples = StreamingDataset(local=str(out / "shards"), shuffle=False, batch_size=batch_size)
    loader = DataLoader(samples, batch_size=batch_size, collate_fn=together)

    def read() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for batch in loader:
            yield halves(batch.view(LANES, BPTT + 1))

    return read


def together(samples: list[dict[str, np.ndarray]]) -> torch.Tensor:
    return torch.from_numpy(np.stack([sample["ids"] for sample in samples]))


if __name__ == "__main__":
    stream_main(write, opened)

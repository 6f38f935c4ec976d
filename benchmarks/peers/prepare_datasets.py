"""`datasets`: lines as rows, words counted over batches of them, ids by `map` with a dictionary."""

from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import datasets
import numpy as np
from shared import EOS, chosen, prepare_main, write_vocabulary

FEATURES = datasets.Features({"ids": datasets.Sequence(datasets.Value("int32"))})


def make(text: Path, out: Path, size: int) -> None:
    datasets.disable_progress_bars()
    lines = datasets.load_dataset("text", data_files=str(text), split="train", cache_dir=str(out / "cache"))
    counts: Counter[str] = Counter()
    for batch in lines.iter(batch_size=10_000):
        counts.update(chain.from_iterable(line.split() for line in batch["text"]))
        counts[EOS] += len(batch["text"])
    words = chosen(counts, size)
    write_vocabulary(out, words)
    ids = {word: i for i, word in enumerate(words)}

    def encode(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        return {"ids": [[*(ids.get(word, 1) for word in line.split()), 0] for line in batch["text"]]}

    lines.map(
        encode,
        batched=True,
        batch_size=10_000,
        remove_columns=["text"],
        features=FEATURES,
        cache_file_name=str(out / "ids.arrow"),
    )


def read_ids(out: Path) -> Iterator[np.ndarray]:
    for chunk in datasets.Dataset.from_file(str(out / "ids.arrow")).data["ids"].chunks:
        yield chunk.flatten().to_numpy()


if __name__ == "__main__":
    prepare_main(make, read_ids)

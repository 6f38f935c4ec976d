"""This project: batches as training takes them, from a prepared corpus, targets dealt to the softmax's clusters.

`read CORPUS PASSES NUM_WINDOWS` and `digest CORPUS NUM_WINDOWS`; the windows are read from the corpus as it lies. The
first batch is that of a step in the middle of an epoch, shards checked by their size as with `stream.verify=size`.
"""

import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from functools import partial

from shared import BPTT, LANES, time_reading

from pipeline.corpus.lanes import LanePlan
from pipeline.corpus.manifest import check_shards, read_manifest
from pipeline.model.adaptive_softmax import split_targets
from pipeline.training.data import Batch, read_batches
from pipeline.training.parts import open_split

CUTOFFS = (2000, 10_000)


def opened(
    corpus: str, num_windows: int, *, first: int = 0, cutoffs: tuple[int, ...] = CUTOFFS
) -> Callable[[], Iterator[Batch]]:
    """What reads an epoch's full windows, from one of them on and around."""
    manifest = read_manifest(corpus)
    assert check_shards(corpus, manifest, digests=False) == []
    tokens = open_split(corpus, manifest, "train")
    plan = LanePlan(num_targets=len(tokens), num_lanes=LANES, bptt=BPTT)
    read = partial(
        read_batches,
        tokens,
        plan,
        lanes=range(LANES),
        seed=1,
        prepare_targets=partial(split_targets, cutoffs=cutoffs),
        num_sites=4,
    )

    def epoch() -> Iterator[Batch]:
        yield from read(start=first, stop=num_windows)
        yield from read(start=0, stop=first)

    return epoch


def main() -> None:
    """Runs the script."""
    corpus = sys.argv[2]
    if sys.argv[1] == "read":
        num_windows = int(sys.argv[4])
        time_reading(lambda: opened(corpus, num_windows, first=num_windows // 2), num_passes=int(sys.argv[3]))
        return
    digest = hashlib.sha256()
    for batch in opened(corpus, int(sys.argv[3]), cutoffs=())():  # the full softmax takes the targets as they are
        for ids_TL in (batch.inputs_TL, batch.targets[0].view(BPTT, LANES)):
            digest.update(ids_TL.t().contiguous().numpy().tobytes())
    print(json.dumps({"windows": digest.hexdigest()}))


if __name__ == "__main__":
    main()

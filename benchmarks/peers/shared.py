"""What the scripts of peers share; the standard library alone, for each runs in an environment of its own.

`prepare_<peer>.py make TEXT OUT SIZE` prepares a text, and that is what is measured: words by ASCII white space and
`<eos>` for each line; a vocabulary of SIZE words, `<eos>`, `<unk>` and then the most frequent ones; ids on disk.
`prepare_<peer>.py digest OUT` says what came out, which must be what the others have.

`stream_<peer>.py write SAMPLES WINDOWS OUT` writes windows in the peer's own format, outside the timing; `read SAMPLES
OUT PASSES` reads all of them that often, and says how long it took; `digest SAMPLES OUT` says what is read. These
loaders have no lanes, so the windows are written in the order of batches. SAMPLES is `rows`, a sample for each lane's
part of a window and batches made of LANES of them, which is how the loaders are meant; or `batches`, a sample for a
whole window, which is cheaper, and binds the files to that number of lanes and that length.
"""

import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

EOS, UNK = "<eos>", "<unk>"
LANES, BPTT = 128, 70  # a window, stored with the input before its first target: LANES rows of BPTT + 1 ids


def chosen(counts: Mapping, size: int) -> list:
    """The words of a vocabulary in the order of their ids; of words as often, the one first by its letters.

    Args:
        counts: by word, `str` or `bytes`.
        size: of the vocabulary, with `<eos>` and `<unk>`.
    """
    as_is = EOS in counts or not any(isinstance(word, bytes) for word in counts)
    eos, unk = (EOS, UNK) if as_is else (EOS.encode(), UNK.encode())
    words = sorted((word for word in counts if word not in (eos, unk)), key=lambda word: (-counts[word], word))
    return [eos, unk, *words[: size - 2]]


def write_vocabulary(out: Path, words: Iterable) -> None:
    """`vocabulary.txt`, one word a line."""
    encoded = [word if isinstance(word, bytes) else word.encode() for word in words]
    (out / "vocabulary.txt").write_bytes(b"\n".join(encoded) + b"\n")


def prepare_main(make: Callable[[Path, Path, int], None], read_ids: Callable[[Path], Iterator]) -> None:
    """Runs a script of the first kind.

    Args:
        make: (text, folder, size of the vocabulary) → nothing.
        read_ids: (folder) → pieces of the ids, as buffers of int32.
    """
    if sys.argv[1] == "make":
        make(Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
        return
    out = Path(sys.argv[2])
    digest, num_tokens = hashlib.sha256(), 0
    for piece in read_ids(out):
        view = memoryview(piece).cast("B")
        digest.update(view)
        num_tokens += len(view) // 4
    vocabulary = hashlib.sha256((out / "vocabulary.txt").read_bytes()).hexdigest()
    print(json.dumps({"num_tokens": num_tokens, "ids": digest.hexdigest(), "vocabulary": vocabulary}))


def stream_main(
    write: Callable[[Path, Path, bool], None], opened: Callable[[Path, bool], Callable[[], Iterator]]
) -> None:
    """Runs a script of the second kind.

    Args:
        write: (windows.npy, folder, whether a sample is a row) → nothing.
        opened: (folder, whether a sample is a row) → a function that gives (inputs, targets) of each batch in the
            order of the windows, as int64 tensors of LANES × BPTT.
    """
    by_rows = sys.argv[2] == "rows"
    if sys.argv[1] == "write":
        write(Path(sys.argv[3]), Path(sys.argv[4]), by_rows)
        return
    out = Path(sys.argv[3])
    if sys.argv[1] == "read":
        time_reading(lambda: opened(out, by_rows), num_passes=int(sys.argv[4]))
        return
    digest = hashlib.sha256()
    for inputs, targets in opened(out, by_rows)():
        assert tuple(inputs.shape) == tuple(targets.shape) == (LANES, BPTT)
        assert str(inputs.dtype) == str(targets.dtype) == "torch.int64"
        digest.update(inputs.numpy().tobytes() + targets.numpy().tobytes())
    print(json.dumps({"windows": digest.hexdigest()}))


def time_reading(opened: Callable[[], Callable[[], Iterator]], *, num_passes: int) -> None:
    """Says how long it took: to the first batch, opening included, and for all passes after the opening.

    The CPU seconds are those of this process with its threads; none of the loaders has workers here.
    """
    begun = time.perf_counter()
    read = opened()
    opened_at, opened_cpu = time.perf_counter(), time.process_time()
    first_seconds, num_batches = 0.0, 0
    for _ in range(num_passes):
        for _ in read():
            first_seconds = first_seconds or time.perf_counter() - begun
            num_batches += 1
    found = {
        "first_batch_seconds": first_seconds,
        "num_tokens": num_batches * LANES * BPTT,
        "cpu_seconds": time.process_time() - opened_cpu,
        "wall_seconds": time.perf_counter() - opened_at,
    }
    print(json.dumps(found))


def halves(window: Any) -> tuple[Any, Any]:  # noqa: ANN401  (a tensor; not every environment has torch)
    """Inputs and targets, int64, of a window of LANES × (BPTT + 1) ids of any integer type."""
    return window[:, :-1].long(), window[:, 1:].long()

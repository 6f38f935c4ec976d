"""What the scripts of peers share; the standard library alone, for each runs in an environment of its own.

`prepare_<peer>.py make TEXT OUT SIZE` prepares a text, and that is what is measured: words by ASCII white space and
`<eos>` for each line; a vocabulary of SIZE words, `<eos>`, `<unk>` and then the most frequent ones; ids on disk.
`prepare_<peer>.py digest OUT` says what came out, which must be what the others have.

`stream_<peer>.py write WINDOWS OUT` writes windows in the peer's own format, outside the timing; `read OUT PASSES`
reads all of them that often, and says how long it took; `digest OUT` says what is read.
"""

import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

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


def stream_main(write: Callable[[Path, Path], None], read: Callable[[Path], Iterator]) -> None:
    """Runs a script of the second kind.

    Args:
        write: (windows.npy, folder) → nothing.
        read: (folder) → (inputs, targets) of each batch in the order of the windows, int64 tensors, LANES × BPTT.
    """
    if sys.argv[1] == "write":
        write(Path(sys.argv[2]), Path(sys.argv[3]))
        return
    out = Path(sys.argv[2])
    if sys.argv[1] == "digest":
        digest = hashlib.sha256()
        for inputs, targets in read(out):
            assert tuple(inputs.shape) == tuple(targets.shape) == (LANES, BPTT)
            assert str(inputs.dtype) == str(targets.dtype) == "torch.int64"
            digest.update(inputs.numpy().tobytes() + targets.numpy().tobytes())
        print(json.dumps({"windows": digest.hexdigest()}))
        return
    time_reading(lambda: read(out), num_passes=int(sys.argv[3]))


def time_reading(read: Callable[[], Iterator], *, num_passes: int) -> None:
    """Says how long it took: the first batch from the opening on, and all of them, in CPU seconds of this process."""
    begun, begun_cpu = time.perf_counter(), time.process_time()
    first_seconds, num_batches = 0.0, 0
    for _ in range(num_passes):
        for _ in read():
            first_seconds = first_seconds or time.perf_counter() - begun
            num_batches += 1
    found = {
        "first_batch_seconds": first_seconds,
        "num_tokens": num_batches * LANES * BPTT,
        "cpu_seconds": time.process_time() - begun_cpu,
        "wall_seconds": time.perf_counter() - begun,
    }
    print(json.dumps(found))

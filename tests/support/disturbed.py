"""`python -m jobs` with workers that are slow, leave their process ids, and fail if they are asked to.

Run as the command itself. `DISTURBED` in the environment names a folder, whose files say how, also while they work:

    pace      seconds that a worker waits before each step
    bug       "RANK STEP", where that rank raises an error of nobody's making, each time it comes there
    missing   a file that is removed before a worker begins: its machine does not see it
    0, 1, ... written: the process id of each rank
"""

import os
import sys
import time
from functools import partial
from pathlib import Path

import jobs.__main__
import pipeline.runner


def disturbed(folder, place, job):
    """`work`, but for what the folder asks for. The command itself has no use for Lightning."""
    from pipeline.training.module import LanguageModelModule
    from pipeline.training.worker import work

    undisturbed = getattr(LanguageModelModule, "undisturbed", LanguageModelModule.on_train_batch_start)

    def on_train_batch_start(self, batch, batch_idx):
        rank = self.ranks.rank
        if said(folder, str(rank)) != str(os.getpid()):
            Path(folder, f"{rank}.new").write_text(str(os.getpid()))
            Path(folder, f"{rank}.new").rename(Path(folder, str(rank)))
        if said(folder, "bug") == f"{rank} {self.global_step}":
            raise RuntimeError("a bug whose text\nhas two lines")
        time.sleep(float(said(folder, "pace") or 0))
        undisturbed(self, batch, batch_idx)

    LanguageModelModule.undisturbed = undisturbed
    LanguageModelModule.on_train_batch_start = on_train_batch_start
    if missing := said(folder, "missing"):
        Path(missing).unlink(missing_ok=True)
    return work(place, job)


def said(folder, name):
    """What a file of the folder says; nothing if it is not there."""
    path = Path(folder, name)
    return path.read_text() if path.exists() else ""


if __name__ == "__main__":
    pipeline.runner._work = partial(disturbed, os.environ["DISTURBED"])
    jobs.__main__._set_up(sys.argv[1:])
    sys.exit(jobs.__main__.main(sys.argv[1:]))

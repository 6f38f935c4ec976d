"""`python -m jobs`, whose workers take their time over each step, leave their process ids, and fail where asked to.

Run as the command itself, it stands for it in tests of faults. `DISTURBED` in the environment holds, as JSON:

    folder         where each rank's process id stands, in a file of the rank's name
    step_seconds   that a worker waits before each step
    raises         optional: [rank, step], where that rank raises an error of nobody's making, each time it comes there
"""

import json
import os
import sys
import time
from functools import partial
from pathlib import Path

import jobs.__main__
import jobs.train
from pipeline.training.module import LanguageModelModule
from pipeline.training.worker import work


def disturbed(how, place, job):
    """`work`, but for what is asked for."""
    before = getattr(LanguageModelModule, "undisturbed", LanguageModelModule.on_train_batch_start)

    def on_train_batch_start(self, batch, batch_idx):
        if self.global_step == 0 or not Path(how["folder"], str(self.peers.rank)).exists():
            pass
        Path(how["folder"], str(self.peers.rank)).write_text(str(os.getpid()))
        if how.get("raises") == [self.peers.rank, self.global_step]:
            raise RuntimeError("a bug that shows\nin the last line")
        time.sleep(how["step_seconds"])
        before(self, batch, batch_idx)

    LanguageModelModule.undisturbed = before
    LanguageModelModule.on_train_batch_start = on_train_batch_start
    return work(place, job)


if __name__ == "__main__":
    jobs.train.work = partial(disturbed, json.loads(os.environ["DISTURBED"]))
    jobs.__main__._set_up(sys.argv[1:])
    sys.exit(jobs.__main__.main(sys.argv[1:]))

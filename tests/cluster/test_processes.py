"""Workers as processes of this machine: what befalls their start."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from pipeline.cluster import processes
from pipeline.config import Config
from pipeline.run.job import Job, Result
from pipeline.run.stop import StopSignals


@pytest.mark.parametrize("num_failures", [1, processes.START_TRIALS])
def test_a_start_that_meets_a_dying_nursery_is_tried_again(
    num_failures: int, small_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials: list[Any] = []

    class Group:
        processes: tuple[()] = ()

        def join(self, **how: Any) -> bool:
            return True

    def start(*arguments: Any, **how: Any) -> Group:
        trials.append(arguments)
        if len(trials) <= num_failures:
            raise EOFError("unexpected EOF")
        return Group()

    monkeypatch.setattr(import_module("torch.multiprocessing.spawn"), "start_processes", start)
    monkeypatch.setattr(processes, "START_SECONDS", 0.0)
    config = small_config(f"run={tmp_path}", f"data={tmp_path}", "cluster.num_workers=2")
    job = Job(config=config, total_steps=1, steps_per_epoch=1, attempt=1, corpus="")
    group = processes._Group(lambda place, job: Result(step=0), job, StopSignals())
    if num_failures < processes.START_TRIALS:
        group._start()
        assert len(trials) == 2
    else:
        with pytest.raises(EOFError):
            group._start()
        assert len(trials) == processes.START_TRIALS

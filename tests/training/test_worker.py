"""One worker's part of a run, in this process."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch import Trainer

from pipeline.config import Config
from pipeline.run.ledger import Event, read_events
from pipeline.runner import train
from pipeline.training import worker
from pipeline.training.dashboards import GuardedTracker, NoTracker

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:lightning.pytorch.utilities._pytree")


@pytest.mark.parametrize("job", [{}, {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "1", "SLURM_JOB_NAME": "mine"}])
def test_lightning_looks_for_no_launcher_where_slurm_is_installed(
    job: dict[str, str],
    make_corpus: Callable[..., str],
    small_config: Callable[..., Config],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It would warn of `srun`, and a warning is an error here."""
    srun = tmp_path / "bin" / "srun"
    srun.parent.mkdir()
    srun.write_text("#!/bin/sh\n")
    srun.chmod(0o755)
    monkeypatch.setenv("PATH", str(srun.parent), prepend=":")
    for name, value in job.items():
        monkeypatch.setenv(name, value)
    common = [f"data={make_corpus()}", f"run={tmp_path / 'run'}"]
    for steps in (3, 5):
        assert train(small_config(*common, f"max_steps={steps}")).step == steps


@pytest.mark.filterwarnings("ignore:The `srun` command is available")  # where Slurm is installed
def test_what_is_replaced_of_lightnings_own_is_there() -> None:
    """Two private names, of which it has no public ones; where they go, so does the reason to replace them."""
    trainer = Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu")
    assert callable(trainer._signal_connector.register_signal_handlers)
    assert callable(trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor)


# --- a hang


@pytest.mark.parametrize("stuck", ["alert", "finish"])
def test_a_dashboard_that_never_answers_keeps_no_hang_from_its_end(
    stuck: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers, told = threading.Event(), list[tuple[str, ...]]()

    class Dashboard(NoTracker):
        def alert(self, title: str, text: str) -> None:
            told.append((title, text))
            assert stuck != "alert" or answers.wait(60)

        def finish(self) -> None:
            told.append(("finish",))
            assert stuck != "finish" or answers.wait(60)

    monkeypatch.setattr(worker, "LAST_WORDS_SECONDS", 0.3)
    job: Any = SimpleNamespace(run=str(tmp_path), attempt=2)
    reporter: Any = SimpleNamespace(tracker=GuardedTracker(Dashboard))
    began = time.monotonic()
    worker._report_hang(job, reporter, 1, "rank 1 stood still")
    assert time.monotonic() - began < 30
    assert told == [("training hangs", "rank 1 stood still"), ("finish",)][: 1 if stuck == "alert" else 2]
    (fault,) = read_events(str(tmp_path))
    assert (fault["kind"], fault["rank"], fault["attempt"], fault["fatal"]) == ("hang", 1, 2, True)
    answers.set()


def group(size: int) -> Event:
    return {"event": "group", "world_size": size}


def fault(kind: str, *, fatal: bool = True) -> Event:
    return {"event": "fault", "kind": kind, "cause": f"a {kind}", "fatal": fatal}


@pytest.mark.parametrize(
    ("events", "found"),
    [
        ([], None),
        ([fault("hang")], None),
        ([group(2), fault("hang")], "a hang"),
        ([group(2), fault("hang"), fault("worker"), {"event": "start"}], "a hang"),
        ([group(2), fault("hang"), group(2)], None),
        ([group(2), fault("worker")], None),
        ([group(2), fault("hang", fatal=False)], None),
        ([group(1), fault("hang")], None),
    ],
)
def test_the_next_group_tells_of_a_hang_that_its_dashboard_may_not_know(events: list[Event], found: str | None) -> None:
    assert worker._hang_before(events) == found

"""One worker's part of a run, in this process."""

from collections.abc import Callable
from pathlib import Path

import pytest
from lightning.pytorch import Trainer

from pipeline.config import Config
from pipeline.runner import train

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

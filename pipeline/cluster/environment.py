"""A worker's place as Lightning takes it: so that it looks for none by itself, nor warns of launchers that it finds."""

import atexit
from datetime import timedelta
from typing import Any

from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.pytorch.strategies import DDPStrategy

from pipeline.cluster.launchers import Rank
from pipeline.run.meeting import open_store


class KnownEnvironment(ClusterEnvironment):
    """Where all is known beforehand.

    Args:
        rank: the place; its `local_rank` is that of the worker's device among those that it sees.
    """

    def __init__(self, rank: Rank) -> None:
        super().__init__()
        self._rank = rank

    @property
    def creates_processes_externally(self) -> bool:
        """Lightning starts none."""
        return True

    @property
    def main_address(self) -> str:
        """Of the first rank."""
        return self._rank.main_address

    @property
    def main_port(self) -> int:
        """Of the first rank."""
        return self._rank.main_port

    @staticmethod
    def detect() -> bool:
        """It is given, never looked for."""
        return False

    def world_size(self) -> int:
        """Of all machines."""
        return self._rank.world_size

    def set_world_size(self, size: int) -> None:
        """What Lightning makes of devices and machines does not count."""

    def global_rank(self) -> int:
        """Among all machines."""
        return self._rank.rank

    def set_global_rank(self, rank: int) -> None:
        """What Lightning makes of devices and machines does not count."""

    def local_rank(self) -> int:
        """Of the device."""
        return self._rank.local_rank

    def node_rank(self) -> int:
        """Of this machine."""
        return self._rank.node_rank


class MeetingHere(DDPStrategy):
    """Ranks that all are on this machine meet on its loopback address; torch's own store listens on every address.

    Args:
        timeout: for the others to come, and for each exchange.
        how: as Lightning has it.
    """

    def __init__(self, *, timeout: timedelta, **how: Any) -> None:  # noqa: ANN401  (Lightning's)
        super().__init__(timeout=timeout, **how)
        self._patience = timeout

    def setup_distributed(self) -> None:
        """Forms the group, which Lightning then finds.

        Raises:
            DistNetworkError: they cannot meet there.
        """
        from torch import distributed

        if not distributed.is_initialized():  # one Trainer comes after another
            self._meet()
        super().setup_distributed()

    def _meet(self) -> None:
        from torch import distributed

        place, on_gpu = self.cluster_environment, self.root_device.type == "cuda"
        assert place is not None
        rank, world_size = place.global_rank(), place.world_size()
        distributed.init_process_group(
            "nccl" if on_gpu else "gloo",
            store=open_store(
                place.main_address, place.main_port, first=rank == 0, timeout=self._patience, world_size=world_size
            ),
            rank=rank,
            world_size=world_size,
            timeout=self._patience,
            device_id=self.root_device if on_gpu else None,
        )
        if on_gpu:
            atexit.register(leave_group)  # NCCL warns of a group that nobody left


def leave_group() -> None:
    """Ends what the ranks have between them, before one of them is gone and the others wonder."""
    from torch import distributed

    if distributed.is_initialized():
        distributed.destroy_process_group()

"""A worker's place as Lightning takes it: so that it looks for none by itself, nor warns of launchers that it finds."""

from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment

from pipeline.cluster.launchers import Rank


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


def leave_group() -> None:
    """Ends what the ranks have between them, before one of them is gone and the others wonder."""
    from torch import distributed

    if distributed.is_initialized():
        distributed.destroy_process_group()

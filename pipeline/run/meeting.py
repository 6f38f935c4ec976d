"""Where the ranks of a run meet: torch's store and the interface of gloo and NCCL.

In: the first rank's address. Out: a store. Where all ranks are on one machine, nothing listens beyond its loopback
address; torch by itself listens on every address, whichever it is told.
"""

import os
import socket
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch._C._distributed_c10d import TCPStore  # torch.distributed.TCPStore, which mypy does not find

HERE = "127.0.0.1"
LOOPBACK = (HERE, "localhost", "::1")  # by no other name is a machine its own alone: Debian's hosts are 127.0.1.1
INTERFACES = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}


def stay_here() -> None:
    """Has this process's gloo and NCCL listen on the loopback interface alone, unless the user names another one."""
    for name, interface in INTERFACES.items():
        os.environ.setdefault(name, interface)


def loopback_identity() -> str:
    """What two processes have in common if they share a loopback address: machine, its start, and network namespace."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
        return f"{boot.strip()} {Path('/proc/self/ns/net').readlink()}"
    except OSError:
        return f"unknown {os.getpid()}"  # as if alone on a machine


def open_store(host: str, port: int, *, first: bool, timeout: timedelta, world_size: int | None = None) -> "TCPStore":
    """torch's store, kept by the first rank; for a loopback host it listens nowhere else.

    Args:
        host: of the first rank.
        port: of the store; 0: for the first rank to choose, which then tells the others its `.port`.
        first: whether this is the first rank.
        timeout: for the others to come, and for each answer.
        world_size: ranks that the first one waits for; None: for none.

    Raises:
        DistNetworkError: the port is taken, or nobody listens.
    """
    from torch._C._distributed_c10d import TCPStore
    from torch.distributed import DistNetworkError

    listener = None
    if first and host in LOOPBACK:
        try:
            with socket.create_server((HERE, port)) as server:
                port, listener = server.getsockname()[1], server.detach()
        except OSError as error:
            raise DistNetworkError(f"cannot listen on {HERE}:{port}: {error.strerror}") from error
    return TCPStore(
        HERE if host in LOOPBACK else host,
        port,
        world_size,
        is_master=first,
        timeout=timeout,
        wait_for_workers=world_size is not None,
        master_listen_fd=listener,
    )

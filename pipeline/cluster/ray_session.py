"""Ray, started on this machine or joined, until the context ends."""

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pipeline.cluster.returns import one_line
from pipeline.config import ClusterConfig
from pipeline.errors import ClusterError

OBJECT_STORE_BYTES = 80 << 20  # receipts are small; /dev/shm of a container is too
REACH_SECONDS = 5.0  # for the machine of a Ray cluster to answer


def ray_api() -> Any:  # noqa: ANN401
    """Ray, some of whose functions have no types."""
    import ray

    return ray


@contextmanager
def ray_session(cluster: ClusterConfig, *, num_cpus: int) -> Iterator[None]:
    """Ray, started on this machine or joined.

    Args:
        cluster: the section.
        num_cpus: of a Ray that is started.

    Raises:
        ClusterError: nobody answers at the address.
    """
    import ray

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if cluster.kind == "local":
        with _own_signals():
            ray.init(
                address="local",
                num_cpus=num_cpus,
                object_store_memory=OBJECT_STORE_BYTES,
                include_dashboard=False,
                **quiet,
            )
    else:
        address = cluster.address or os.environ.get("RAY_ADDRESS") or "auto"
        try:
            if address != "auto":
                _knock(address)
            with _own_signals():
                ray.init(address=address, **quiet)
        except (OSError, RuntimeError, ValueError) as error:
            raise ClusterError(
                f"cluster.address={cluster.address or 'null'} reaches no Ray cluster ({one_line(error)}); give its"
                " HOST:PORT, on one of its machines, with RAY_AUTH_MODE=token if it asks for a token; or start one"
                " with `ray start --head`, or use cluster=local"
            ) from error
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _own_signals() -> Iterator[None]:
    """Ray is started meanwhile: SIGTERM counts afterwards as before, and what it starts outlives the terminal.

    Raises:
        KeyboardInterrupt: SIGTERM came, which Ray takes for a request to exit.
    """
    handler = signal.getsignal(signal.SIGTERM)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        try:
            yield
        finally:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, handler)
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    except SystemExit:
        raise KeyboardInterrupt(signal.SIGTERM.name) from None


def _knock(address: str) -> None:
    """Raises OSError or ValueError where nobody answers; Ray itself would try for minutes."""
    if "://" in address:
        raise ValueError("that is no HOST:PORT")
    host, _, port = address.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_SECONDS).close()

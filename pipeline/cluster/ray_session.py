"""Ray, started on this machine or joined, until the context ends."""

import logging
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pipeline.cluster.outcome import one_line
from pipeline.config import ClusterConfig
from pipeline.errors import ClusterError

OBJECT_STORE_BYTES = 80 << 20  # receipts are small; /dev/shm of a container is too
REACH_SECONDS = 5.0  # for the machine of a Ray cluster to answer


def ray_api() -> Any:  # noqa: ANN401
    """Ray, some of whose functions have no types."""
    import ray

    return ray


@contextmanager
def ray_session(cluster: ClusterConfig, *, num_cpus: int, keeps_idle: bool = True) -> Iterator[None]:
    """Ray, started on this machine or joined.

    Args:
        cluster: the section.
        num_cpus: of a Ray that is started.
        keeps_idle: whether a Ray that is started has processes at hand for tasks to come; each takes a second or more
            of a core to start, and wakes 150 times a second.

    Raises:
        ClusterError: nobody answers at the address.
    """
    import ray

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if cluster.kind == "local":
        with bare_heads(), _own_signals():
            ray.init(
                address="local",
                num_cpus=num_cpus,
                object_store_memory=OBJECT_STORE_BYTES,
                _system_config={
                    "worker_niceness": 0,  # of 15, by which workers give way to all else on the machine
                    **({} if keeps_idle else {"num_workers_soft_limit": 0, "prestart_worker_first_driver": False}),
                },
                **quiet,
            )
    else:
        try:
            _knock(cluster.address or "auto")
            with _own_signals():
                ray.init(address=cluster.address or "auto", **quiet)
        except (OSError, RuntimeError, ValueError) as error:
            raise ClusterError(
                f"cluster.address={cluster.address or 'null'} reaches no Ray cluster ({one_line(error)}); give its"
                " HOST:PORT, on one of its machines, with RAY_AUTH_MODE=token if it asks for a token; or start one"
                " with `ray start --head`, or use cluster=local"
            ) from error
    ray._private.worker._worker_logs_enabled = False  # it prints to the standard output what we tell in a line
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _own_signals() -> Iterator[None]:
    """Ray is started meanwhile: SIGTERM is heard afterwards as before, and what it starts outlives the terminal.

    Raises:
        KeyboardInterrupt: SIGTERM came, which Ray takes for a wish to exit.
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


@contextmanager
def bare_heads() -> Iterator[None]:
    """A Ray that is started meanwhile has no dashboard, no autoscaler and nobody who reads its logs.

    They are three processes, each of which takes a second or more of a core to start, and then some of it for good, for
    what nobody looks at here. Ray 2.60 has no switch for them.
    """
    from ray._private import node

    class Bare(node.Node):
        def start_api_server(self, **how: Any) -> None:  # noqa: ANN401
            """No dashboard."""

        def start_monitor(self) -> None:
            """No autoscaler."""

        def start_log_monitor(self) -> None:
            """Nobody who reads logs."""

    whole, node.Node = node.Node, Bare  # type: ignore[misc]
    try:
        yield
    finally:
        node.Node = whole  # type: ignore[misc]


def _knock(address: str) -> None:
    """Raises OSError or ValueError where nobody answers; Ray itself would try for minutes."""
    from ray._private.services import canonicalize_bootstrap_address

    if "://" in address:
        raise ValueError("that is no HOST:PORT")
    host, _, port = str(canonicalize_bootstrap_address(address)).rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_SECONDS).close()

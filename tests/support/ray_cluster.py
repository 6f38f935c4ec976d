"""A Ray cluster of several machines on loopback, with a token: a head without CPUs, and nodes."""

import os
import random
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from support.faulty_runs import kill, session
from support.processes import command_line, descendants

HEAD, NODES = "127.0.0.2", ("127.0.0.3", "127.0.0.4")  # of 127.0.0.1 Ray makes the machine's outer address
START_SECONDS = 180.0
END_SECONDS = 10.0
COMMON = ["--block", "--disable-usage-stats", "--object-store-memory=100000000", "--num-gpus=0"]


@dataclass(frozen=True, kw_only=True)
class RayCluster:
    """One that runs.

    Attributes:
        url: of its dashboard.
        address: of the head, as Ray's client takes it.
        nodes: the first process of each node.
        environment: by which Ray's client is let in.
    """

    url: str
    address: str
    nodes: tuple[int, ...]
    environment: dict[str, str]


@contextmanager
def ray_cluster(*, num_nodes: int = 1, settings: Mapping[str, str] | None = None) -> Iterator[RayCluster]:
    """Starts a cluster in a folder of its own, with a short path for its sockets, and ends all of its processes.

    Args:
        num_nodes: with two CPUs each.
        settings: of Ray, as variables of its processes.
    """
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as folder:
        yield from _started(Path(folder), num_nodes=num_nodes, settings=settings or {})


def end_node(cluster: RayCluster, number: int) -> None:
    """Kills all of a node at once, as a machine does that loses its power."""
    first = cluster.nodes[number]
    for pid in {*session(first), *descendants(first)}:
        kill(pid, signal.SIGKILL)


def _started(folder: Path, *, num_nodes: int, settings: Mapping[str, str]) -> Iterator[RayCluster]:
    """Starts a cluster, and ends all of its processes.

    Args:
        folder: for its sockets, whose paths must be short, and its logs.
        num_nodes: with two CPUs each.
        settings: of Ray, as variables of its processes.
    """
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    port = _free_ports()
    access = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    own = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "WANDB_"))}
    own |= (
        access
        | settings
        | {
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": "0",  # of 15, by which workers would give way to all else on this machine
            "OMP_NUM_THREADS": "1",
            "AUTOSCALER_METRIC_PORT": str(port + 3),  # of each cluster its own, as are all ports below
            "DASHBOARD_METRIC_PORT": str(port + 4),
        }
    )
    head = [
        *("--head", f"--node-ip-address={HEAD}", f"--port={port}", f"--temp-dir={folder}/head", "--num-cpus=0"),
        *(f"--ray-client-server-port={port + 1}", f"--dashboard-host={HEAD}", f"--dashboard-port={port + 2}"),
        *(f"--dashboard-agent-listen-port={port + 5}", *_worker_ports(port + 100)),
    ]
    machines = [(HEAD, port, head)]
    for number, node in enumerate(NODES[:num_nodes]):
        agent = port + 6 + number
        arguments = [
            *(f"--address={HEAD}:{port}", f"--node-ip-address={node}", f"--temp-dir={folder}/node{number}"),
            *("--num-cpus=2", f"--dashboard-agent-listen-port={agent}", *_worker_ports(port + 200 + 100 * number)),
        ]
        machines.append((node, agent, arguments))
    started: list[subprocess.Popen[bytes]] = []
    with (folder / "ray.log").open("wb") as log:
        try:
            for place, answers, arguments in machines:
                command = [str(Path(sys.executable).parent / "ray"), "start", *COMMON, *arguments]
                started.append(
                    subprocess.Popen(command, env=own, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
                )
                _await_answer(place, answers, started, folder / "ray.log")
            _await_answer(HEAD, port + 2, started, folder / "ray.log")
            yield RayCluster(
                url=f"http://{HEAD}:{port + 2}",
                address=f"{HEAD}:{port}",
                nodes=tuple(each.pid for each in started[1:]),
                environment=access,
            )
        finally:
            _end(started, folder)


def _worker_ports(first: int) -> list[str]:
    return [f"--min-worker-port={first}", f"--max-worker-port={first + 99}"]


def _free_ports() -> int:
    """The first of 400 ports, of which those are free that a cluster asks for by number."""
    while True:
        first = random.randrange(20_000, 32_000)
        try:
            for port in range(first, first + 8):
                for address in (HEAD, *NODES):
                    socket.create_server((address, port)).close()
        except OSError:
            continue
        return first


def _await_answer(address: str, port: int, started: list[subprocess.Popen[bytes]], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            return socket.create_connection((address, port), timeout=1).close()
        except OSError:
            told = log.read_text()
            assert all(process.poll() is None for process in started), told
            assert time.monotonic() < deadline, f"nobody answers at {address}:{port}\n{told}"
            time.sleep(0.1)


def _end(started: list[subprocess.Popen[bytes]], folder: Path) -> None:
    """Ray ends what it started when it is asked to; what is left is killed."""
    left = {pid for process in started for pid in (*session(process.pid), *descendants(process.pid))}
    for process in started[::-1]:
        process.terminate()
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    left |= {int(each.name) for each in Path("/proc").iterdir() if each.name.isdigit() and _of(int(each.name), folder)}
    for pid in left - {os.getpid()}:
        if command_line(pid):
            kill(pid, signal.SIGKILL)


def _of(pid: int, folder: Path) -> bool:
    """Whether a process was started for a cluster in this folder."""
    return f"{folder}/" in command_line(pid)

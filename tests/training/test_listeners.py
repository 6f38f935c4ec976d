"""Where a run of one machine listens while it trains: on the loopback address alone."""

import os
import socket
import time
from contextlib import closing
from ipaddress import ip_address

import pytest
from support.faulty_runs import World, assert_same_run, session
from support.processes import descendants, listeners

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning"),  # a CPU's way
]
FIRST = 20  # step from which it is looked at


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0", "::1", "::"])
def test_what_listens_is_seen(address: str) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with closing(socket.create_server((address, 0), family=family)) as server:
        assert (address, server.getsockname()[1]) in listeners([os.getpid()])


def listening(world: World, **how: object) -> set[tuple[str, int]]:
    """What the processes of a command listen on while it trains, until its end."""
    command = world.train(**how)
    command.reach(FIRST)
    found: set[tuple[str, int]] = set()
    while command.process.poll() is None:
        pids = {command.process.pid, *descendants(command.process.pid), *session(command.process.pid)}
        found |= listeners(pids)
        time.sleep(0.05)
    command.end()
    print(sorted(found))
    return found


@pytest.mark.each_commit
@pytest.mark.parametrize("workers", [None, 2])
def test_a_run_of_one_machine_listens_on_the_loopback_address_alone(workers: int | None, world: World) -> None:
    found = listening(world, workers=workers)
    assert bool(found) == (workers is not None)
    assert all(ip_address(address).is_loopback for address, _ in found)
    assert_same_run(world.run(), world.reference(workers=workers or 1))

"""A real Slurm of two machines on loopback: munged, slurmctld and two slurmd of this machine, for a test session.

It needs root and the packages slurm-wlm and munge, which `.ci/run` installs. `missing()` says what is not there. A job
that is requeued waits as long as its credential is valid: here 5 s, by default 120 s. The machines' names do not
resolve, so ranks meet at 127.0.0.1; at a port that follows from the job's number, so each Slurm has numbers of its own.
"""

import getpass
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

COMMANDS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol")
PATIENCE_SECONDS = 60.0

CONF = """ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
FirstJobId={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/log/slurmctld
SlurmdLogFile={folder}/log/slurmd-%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
KillWait=10
MinJobAge=300
InactiveLimit=0
SlurmctldTimeout=60
SlurmdTimeout=120
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={port_1} CPUs=1 RealMemory=2000 State=UNKNOWN
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={port_2} CPUs=1 RealMemory=2000 State=UNKNOWN
PartitionName=gpu Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO PriorityTier=1 GraceTime=10
PartitionName=urgent Nodes=n1,n2 MaxTime=INFINITE State=UP OverSubscribe=NO PriorityTier=10 PreemptMode=OFF
"""


def missing() -> str | None:
    """Why no Slurm can be started here; None: it can."""
    absent = [name for name in COMMANDS if shutil.which(name) is None]
    if absent:
        return f"no {', '.join(absent)} here; apt-get install slurm-wlm munge"
    return None if os.geteuid() == 0 else "Slurm's daemons need root"


@contextmanager
def slurm(folder: Path) -> Iterator[dict[str, str]]:
    """Slurm, until the context ends.

    Args:
        folder: for its state; a short path, for a socket is in it.

    Yields:
        the environment in which its commands find it.
    """
    for name in ("state", "spool", "log", "munge"):
        (folder / name).mkdir(parents=True)
        (folder / name).chmod(0o700)
    key = folder / "munge" / "key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o600)
    port, port_1, port_2 = _free_ports(3)
    conf = folder / "slurm.conf"
    conf.write_text(
        CONF.format(folder=folder, host=socket.gethostname().split(".")[0], port=port, port_1=port_1, port_2=port_2)
    )
    environment = {"SLURM_CONF": str(conf), "MASTER_ADDR": "127.0.0.1"}
    munge = {name: folder / "munge" / name for name in ("socket", "pid", "log", "seed")}
    options = [f"--{name}{'-file' if name != 'socket' else ''}={path}" for name, path in munge.items()]
    try:
        _start(["munged", "--force", f"--key-file={key}", *options, "--num-threads=2"], environment)
        _start(["slurmctld", "-c", "-f", str(conf)], environment)
        for node in ("n1", "n2"):
            _start(["slurmd", "-f", str(conf), "-N", node], environment)
        await_idle(environment)
        try:
            yield environment
        finally:
            ask(environment, "scancel", f"--user={getpass.getuser()}")
            await_idle(environment)  # a job outlives its daemons, and would wait for them for ever
    finally:
        for file in (*folder.glob("slurmd-*.pid"), folder / "slurmctld.pid", munge["pid"]):
            with suppress(FileNotFoundError, ValueError, ProcessLookupError):
                os.kill(int(file.read_text()), signal.SIGTERM)


def ask(environment: dict[str, str], *command: str) -> str:
    """What a command of Slurm prints."""
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout.strip()


def await_idle(environment: dict[str, str]) -> None:
    """Waits until both machines are free."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while "".join(ask(environment, "sinfo", "--noheader", "--format=%D %t", "--partition=gpu").split()) != "2idle":
        assert time.monotonic() < deadline, ask(environment, "sinfo")
        time.sleep(0.2)


def _start(command: Sequence[str], environment: dict[str, str]) -> None:
    """Starts a daemon, which returns once it runs by itself."""
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"


def _free_ports(number: int) -> list[int]:
    """Ports of loopback that nobody has now."""
    sockets = [socket.socket() for _ in range(number)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()

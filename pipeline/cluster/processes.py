"""Training workers as plain processes: of this machine, or those that a launcher started. Never imports ray."""

import logging
import os
import signal
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing import Pipe, forkserver, get_context, resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any

from pipeline.cluster.group import (
    Launch,
    Loss,
    Train,
    Wishes,
    Worker,
    cause_of,
    given_up,
    signals_to,
    threads_of_each,
)
from pipeline.cluster.launchers import HERE, Rank
from pipeline.cluster.outcome import one_line, outcome_of, unwrapped
from pipeline.cluster.starter import Starter, end_of, word_of
from pipeline.errors import ClusterError, PipelineError

log = logging.getLogger(__name__)

WISHES = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
LOST_GRACE_SECONDS = 1.0  # for the other workers when one is lost, before and after they are asked to end


def train_launched(rank: Rank, train: Train, job: Any, launch: Launch) -> Any:  # noqa: ANN401
    """In one of the processes that a launcher started.

    Raises:
        ClusterError: the ranks cannot meet where they were told to.
    """
    from torch.distributed import DistNetworkError

    from pipeline.cluster.environment import KnownEnvironment

    launch.set_up(rank.rank)
    agent = None if rank.parent is None else Starter(end_of(rank.parent), grace_seconds=launch.cluster.grace_seconds)
    num_devices = _devices_for(rank, use_gpu=launch.use_gpu)
    worker = Worker(
        devices=num_devices,
        num_nodes=rank.num_nodes,
        distributed=True,
        environment=KnownEnvironment(replace(rank, local_rank=rank.local_rank % num_devices)),
        num_threads=threads_of_each(launch.cluster, rank.ranks_here),
        stop_request=_nobody_asks if agent is None else agent.stop_request,
    )
    place = f"MASTER_ADDR={rank.main_address}, MASTER_PORT={rank.main_port}"
    try:
        socket.getaddrinfo(rank.main_address, rank.main_port)
        outcome = train(worker, job)
    except socket.gaierror as error:
        raise ClusterError(f"{place}: {error.strerror}; give an address that every machine resolves") from error
    except DistNetworkError as error:
        raise ClusterError(f"{place}: {one_line(error)}; give another MASTER_PORT, the same to all") from error
    _part()
    return outcome


def _nobody_asks() -> None:
    """Where only signals ask for a stop."""


def _devices_for(rank: Rank, *, use_gpu: bool | None) -> int:
    """How many devices this process is to see: those of all ranks of the machine, or its own alone.

    Raises:
        ClusterError: some ranks would have to share a GPU.
    """
    from torch import cuda

    num_gpus = cuda.device_count() if use_gpu is not False else 0
    if num_gpus in (0, 1):
        return num_gpus or rank.ranks_here
    if num_gpus < rank.ranks_here:
        raise ClusterError(
            f"{rank.launcher} started {rank.ranks_here} processes on a machine with {num_gpus} GPUs; start one for"
            " each, or use accelerator=cpu"
        )
    return rank.ranks_here


def begin_imports(modules: Sequence[str]) -> None:
    """Starts a process that imports what workers need, and of which each worker is then a fork.

    It imports beside the command and once for all workers, those of a group that is started again too.
    """
    get_context("forkserver").set_forkserver_preload(list(modules))
    with _blocked_wishes():
        resource_tracker.ensure_running()  # which lets all but SIGHUP through again
    with _blocked_wishes():
        forkserver.ensure_running()


@contextmanager
def _blocked_wishes() -> Iterator[None]:
    """Signals wait. A process that is started meanwhile begins so, and hears them once it knows what to do with them.

    The one that workers are forks of never does: it ends when the command and they have.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, WISHES)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def train_in_processes(train: Train, job: Any, launch: Launch) -> Any:  # noqa: ANN401
    """Processes of this machine. If one is lost all are ended, for they wait for it, and started again."""
    group, losses = _Group(train, job, launch), 0
    with signals_to(group.hear):
        try:
            while True:
                ended = group.outcome()
                if not isinstance(ended, Loss):
                    return unwrapped(ended)
                losses += 1
                launch.on_loss(ended)
                if losses > launch.cluster.max_failures and group.wish is None:
                    raise given_up(losses, ended, launch.cluster)
        finally:
            group.kill()  # where a second Ctrl-C ends the wait for them


class _Group:
    """Worker processes under torch's supervision, one set after another, who are told of signals."""

    def __init__(self, train: Train, job: Any, launch: Launch) -> None:  # noqa: ANN401
        logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)  # told by us, in a line
        self._what = train, job, launch
        self._wishes = Wishes(grace_seconds=launch.cluster.grace_seconds)
        self._processes: Any = None
        self._words: Sequence[Connection] = ()  # to each worker that has not been told yet
        self._outcome: Any = None
        self._killed: tuple[int, signal.Signals] | None = None  # the first rank to be, and by what
        self._asked = False  # whether there was a wish already when it was last looked for ends

    @property
    def wish(self) -> str | None:
        """The name of the last signal; None: there was none."""
        return self._wishes.last

    def hear(self, name: str) -> None:
        """Of a signal, which is a wish to stop; may be called at any time.

        Raises:
            KeyboardInterrupt: it is a second Ctrl-C, not right after the first.
        """
        if self._wishes.add(name):
            raise KeyboardInterrupt

    def outcome(self) -> Any:  # noqa: ANN401
        """Of a new set: the first rank's result, the signal by whose wish all ended, or a `Loss`."""
        from torch.multiprocessing.spawn import ProcessException

        if self.wish is not None:
            return self.wish
        self._start()
        loss = None
        try:
            while not self._joined():
                self._pass_on()
        except ProcessException as error:
            loss = self._loss(error)
        finally:
            self._words = ()  # to whom they are open no more, the command is gone
        told = None if self._outcome.empty() else self._outcome.get()
        if loss is None or isinstance(told, PipelineError):
            return told or self.wish
        return self.wish if self._ended_by_wish() else loss

    def kill(self) -> None:
        """Ends those that are left."""
        for process in self._processes.processes if self._processes is not None else []:
            if process.is_alive():
                os.kill(process.pid, signal.SIGKILL)

    def _pass_on(self) -> None:
        """All are told of a wish, and given time for it."""
        if self._wishes.late:
            self.kill()
        elif self.wish is not None:
            for word in self._words:
                with suppress(OSError):  # that one has ended
                    word.send(self.wish)
            self._words = ()

    def _ended_by_wish(self) -> bool:
        """Whether what looks like a loss came of a wish: not if it came before, or by a signal that nobody wished."""
        if not self._asked:
            return False
        if self._killed is None or self._killed[1] in WISHES:
            return True
        return self._wishes.late and self._killed[1] == signal.SIGKILL

    def _start(self) -> None:
        from torch.multiprocessing.spawn import start_processes

        train, job, launch = self._what
        num_workers = launch.cluster.num_workers or 1
        self._killed, self._outcome = None, get_context("forkserver").SimpleQueue()
        heard, self._words = zip(*(Pipe(duplex=False) for _ in range(num_workers)), strict=True)
        with socket.create_server((HERE, 0)) as free:
            port = free.getsockname()[1]
        with _blocked_wishes():
            self._processes = start_processes(  # type: ignore[no-untyped-call]
                _in_process,
                (num_workers, port, train, job, launch, dict(os.environ), heard, self._outcome),
                nprocs=num_workers,
                join=False,
                start_method="forkserver",
            )

    def _joined(self) -> bool:
        """Whether all have ended well; torch's error if one has not.

        When a rank is killed the others fail, and torch names the first that it finds: so we look before it does.
        """
        wait([process.sentinel for process in self._processes.processes if process.is_alive()], timeout=0.2)
        self._asked = self.wish is not None
        for rank, process in enumerate(self._processes.processes):
            if self._killed is None and (process.exitcode or 0) < 0:
                self._killed = rank, signal.Signals(-process.exitcode)
        return bool(self._processes.join(timeout=0, grace_period=LOST_GRACE_SECONDS))

    def _loss(self, error: Any) -> Loss:  # noqa: ANN401
        """Which rank was lost first, as far as anybody knows."""
        from torch.multiprocessing.spawn import ProcessRaisedException

        if self._killed is not None:
            rank, number = self._killed
            return Loss(rank=rank, cause=f"was killed by {number.name}")
        if isinstance(error, ProcessRaisedException):
            if not self._asked:
                log.warning("%s", error.msg.strip())
            return Loss(rank=error.error_index, cause=cause_of(error))
        return Loss(rank=error.error_index, cause=f"ended with {error.exit_code}")


def _in_process(  # noqa: PLR0917 torch hands them over by place
    rank: int,
    num_workers: int,
    port: int,
    train: Train,
    job: Any,  # noqa: ANN401
    launch: Launch,
    environment: Mapping[str, str],
    heard: Sequence[Connection],
    outcome: Any,  # noqa: ANN401
) -> None:
    from pipeline.cluster.environment import KnownEnvironment

    command = Starter(word_of(heard[rank]), grace_seconds=launch.cluster.grace_seconds)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, WISHES)
    os.environ.clear()  # it may have changed since the process began of which this is a fork
    os.environ |= environment
    os.environ.pop("TORCHELASTIC_USE_AGENT_STORE", None)  # of a torchrun that started the command: these meet elsewhere
    launch.set_up(rank)
    place = Rank(
        launcher="the command",
        rank=rank,
        world_size=num_workers,
        local_rank=rank,
        ranks_here=num_workers,
        node_rank=0,
        num_nodes=1,
        main_address=HERE,
        main_port=port,
    )
    worker = Worker(
        devices=num_workers,
        num_nodes=1,
        distributed=True,
        environment=KnownEnvironment(place),
        num_threads=threads_of_each(launch.cluster, num_workers),
        stop_request=command.stop_request,
    )
    ended = outcome_of(lambda worker_job: train(worker, worker_job), job)
    if rank == 0:
        outcome.put(ended)
    _part()


def _part() -> None:
    """Ends what the ranks have between them, before one of them is gone and the others wonder."""
    from torch import distributed

    if distributed.is_initialized():
        distributed.destroy_process_group()

"""Training workers as plain processes of this machine. Never imports ray."""

import logging
import os
import signal
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing import active_children, forkserver, get_context, resource_tracker
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from multiprocessing.queues import SimpleQueue
from typing import TYPE_CHECKING

from pipeline import console
from pipeline.cluster.launchers import Rank
from pipeline.cluster.parent import ParentWatch, await_command
from pipeline.cluster.returns import one_line, returned, unwrapped
from pipeline.errors import PipelineError
from pipeline.run.job import Job, Place, Result, Work, WorkerFailure, given_up, report_failure, threads_of_each
from pipeline.run.meeting import HERE, stay_here
from pipeline.run.stop import SIGNALS, StopSignals

if TYPE_CHECKING:
    from torch.multiprocessing.spawn import ProcessContext, ProcessException

STOPS = {signal.Signals[name] for name in SIGNALS}
START_TRIALS, START_SECONDS = 5, 0.5  # to start workers, and between two trials
LOST_GRACE_SECONDS = 1.0  # for the other workers when one is lost, before and after they are asked to end


def prepare(*, modules: list[str]) -> None:
    """Starts a process that imports what workers need, and of which each worker is then a fork.

    It imports beside the command and once for all workers, those of a group that is started again too.
    """
    get_context("forkserver").set_forkserver_preload(modules)
    with _blocked_stops():
        resource_tracker.ensure_running()  # which lets all but SIGHUP through again
    with _blocked_stops():
        forkserver.ensure_running()


def run(work: Work, job: Job, rank: Rank | None) -> Result:
    """Runs the workers. If one is lost all are ended, for they wait for it, and started again.

    Args:
        work: the worker's part.
        job: what each worker is given.
        rank: the place of this process, if a launcher started it as one of several.
    """
    cluster = job.config.cluster
    with StopSignals(grace_seconds=cluster.grace_seconds) as signals:
        group, num_failures = _Group(work, job, signals), 0
        try:
            while True:
                ended = group.result()
                if not isinstance(ended, WorkerFailure):
                    return ended
                num_failures += 1
                report_failure(job, ended)
                if signals.cause is None and num_failures > cluster.max_failures:
                    raise given_up(job, ended, num_failures=num_failures)
        finally:
            group.kill()  # where a second Ctrl-C ends the wait for them


@contextmanager
def _blocked_stops() -> Iterator[None]:
    """Signals wait. A process that is started meanwhile begins so, and receives them once it knows what to do.

    The one that workers are forks of never does: it ends when the command and they have.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Group:
    """Worker processes under torch's supervision, one set after another, who are asked to stop by the run folder."""

    def __init__(self, work: Work, job: Job, signals: StopSignals) -> None:
        logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)  # we say it in a line
        self._work, self._job, self._signals = work, job, signals
        self._group: ProcessContext | None = None
        self._processes: list[BaseProcess] = []
        self._results: SimpleQueue[Result | PipelineError] | None = None
        self._killed: tuple[int, signal.Signals] | None = None  # the first rank to be, and by what
        self._asked = False  # whether there was a request already when it was last looked for ends

    def result(self) -> Result | WorkerFailure:
        """Of a new set: the first rank's result, that all stopped by a signal, or a failure.

        Raises:
            PipelineError: what the first rank raised.
        """
        from torch.multiprocessing.spawn import ProcessException

        if self._signals.cause is not None:
            return Result(step=0, stop=self._signals.cause)
        self._start()
        assert self._results is not None
        failure = None
        try:
            while not self._joined():
                self._pass_on()
        except ProcessException as error:
            failure = self._failure(error)
        ended = None if self._results.empty() else self._results.get()
        if isinstance(ended, PipelineError) or (failure is None and ended is not None):
            return unwrapped(ended)
        if failure is None or self._ended_by_request():
            return Result(step=0, stop=self._signals.cause)
        return failure

    def kill(self) -> None:
        """Ends those that are left."""
        for process in self._processes:
            if process.is_alive():
                process.kill()

    def _pass_on(self) -> None:
        """Asks the workers to stop, and gives them time for it."""
        if self._signals.late:
            self.kill()
        else:
            self._signals.leave_request(self._job.run, attempt=self._job.attempt)

    def _ended_by_request(self) -> bool:
        """Whether what looks like a loss came of a request: not if it came before, or by a signal that nobody sent."""
        if not self._asked:
            return False
        if self._killed is None or self._killed[1] in STOPS:
            return True
        return self._signals.late and self._killed[1] == signal.SIGKILL

    def _start(self) -> None:
        from torch.multiprocessing.spawn import start_processes

        num_workers = self._job.config.cluster.num_workers or 1
        self._killed, self._results = None, get_context("forkserver").SimpleQueue()
        with socket.create_server((HERE, 0)) as free:
            port = free.getsockname()[1]
        for trial in range(1, START_TRIALS + 1):
            try:
                with _blocked_stops():
                    self._group = start_processes(  # type: ignore[no-untyped-call]
                        _in_process,
                        (num_workers, port, self._work, self._job, dict(os.environ), self._results),
                        nprocs=num_workers,
                        join=False,
                        start_method="forkserver",
                    )
                break
            except (EOFError, ConnectionError):  # the process that they are forks of is just dying
                for process in active_children():
                    process.kill()
                if trial == START_TRIALS:
                    raise
                time.sleep(START_SECONDS)
        assert self._group is not None
        self._processes = self._group.processes

    def _joined(self) -> bool:
        """Whether all have ended well; torch's error if one has not.

        When a rank is killed the others fail, and torch names the first that it finds: so we look before it does.
        """
        assert self._group is not None
        wait([process.sentinel for process in self._processes if process.is_alive()], timeout=0.2)
        self._asked = self._signals.cause is not None
        for rank, process in enumerate(self._processes):
            if self._killed is None and (process.exitcode or 0) < 0:
                self._killed = rank, signal.Signals(-(process.exitcode or 0))
        return bool(self._group.join(timeout=0, grace_period=LOST_GRACE_SECONDS))

    def _failure(self, error: "ProcessException") -> WorkerFailure:
        """Which rank was lost first, as far as anybody knows."""
        from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

        if self._killed is not None:
            rank, number = self._killed
            return WorkerFailure(rank=rank, cause=f"was killed by {number.name}")
        if isinstance(error, ProcessRaisedException):
            stack = error.msg.strip()
            return WorkerFailure(rank=error.error_index, cause=one_line(stack.splitlines()[-1]), stack=stack)
        assert isinstance(error, ProcessExitedException)
        return WorkerFailure(rank=error.error_index, cause=f"ended with {error.exit_code}")


def _in_process(  # noqa: PLR0917 torch hands them over by place
    rank: int,
    num_workers: int,
    port: int,
    work: Work,
    job: Job,
    environment: Mapping[str, str],
    results: "SimpleQueue[Result | PipelineError]",
) -> None:
    from pipeline.cluster.environment import KnownEnvironment, MeetingHere, leave_group

    command = ParentWatch(await_command, grace_seconds=job.config.cluster.grace_seconds)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
    os.environ.clear()  # it may have changed since the process began of which this is a fork
    os.environ |= environment
    os.environ.pop("TORCHELASTIC_USE_AGENT_STORE", None)  # of a torchrun that started the command: these meet elsewhere
    stay_here()
    console.set_up(rank)
    here = Rank(
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
    place = Place(
        devices=num_workers,
        distributed=True,
        strategy=MeetingHere,
        environment=KnownEnvironment(here),
        num_threads=threads_of_each(job, num_workers),
        stop_cause=command.stop_cause,
    )
    ended = returned(lambda worker_job: work(place, worker_job), job)
    if rank == 0:
        results.put(ended)
    leave_group()

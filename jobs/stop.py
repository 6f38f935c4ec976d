"""`python -m jobs stop`: asks a run to save its state and stop, from anywhere that sees its folder.

In: `run=FOLDER`, whoever launched the run. Out: a line or a JSON object on where it is saved. The request holds until a
person starts the run again: restarts and requeues by a machine honour it. Refuses a folder without a ledger.
"""

import json
import time
from collections.abc import Sequence

from pipeline import storage
from pipeline.config import RunConfig, given, load
from pipeline.run.account import Account, account
from pipeline.run.checkpoint import committed_steps
from pipeline.run.folder import read_config
from pipeline.run.ledger import events_of_run
from pipeline.run.stop import LOOK_SECONDS, LOOK_STORE_SECONDS, USER, request_stop

LATE = 1  # exit code where the run has not stopped in time; the request stands
WAIT_SECONDS = 0.2  # between two looks at a ledger on a local disk


def main(arguments: Sequence[str]) -> int:
    """Leaves the request, and waits for the ledger's word for as long as workers have to stop."""
    config = load(RunConfig, [each for each in arguments if each != "--json"], name="stop")
    run = storage.absolute(given("run", config.run))
    found = account(events_of_run(run), now=time.time())
    was_running = found.state == "running"
    if found.state != "finished":
        request_stop(run, cause=USER, attempt=None)
    if was_running:
        found = _await_end(run, seconds=read_config(run).cluster.grace_seconds)
    step = max(committed_steps(run), default=0)
    if "--json" in arguments:
        print(json.dumps({"run": run, "state": found.state, "was_running": was_running, "saved_step": step}))
    else:
        print(_line(run, found, step=step, was_running=was_running))
    return LATE if found.state == "running" else 0


def _await_end(run: str, *, seconds: float) -> Account:
    """The account once the run does not go on any more, or the time is over."""
    local = storage.is_local(run)
    deadline = time.monotonic() + seconds + (LOOK_SECONDS if local else LOOK_STORE_SECONDS)
    while True:
        found = account(events_of_run(run), now=time.time())
        if found.state != "running" or time.monotonic() > deadline:
            return found
        time.sleep(WAIT_SECONDS if local else LOOK_STORE_SECONDS / 2)


def _line(run: str, found: Account, *, step: int, was_running: bool) -> str:
    saved = f"step {step} is saved" if step else "nothing is saved"
    if found.state == "running":
        return f"run={run} goes on still, {saved}; the request stands: look again by `python -m jobs status run={run}`"
    if found.state == "finished":
        return f"run={run} is finished, {saved}"
    if was_running:
        return f"run={run} has stopped, {saved}; the same command goes on"
    return (
        f"run={run} does not run ({found.state}), {saved}; a restart by a machine will not go on, the same command will"
    )

"""Slurm: a script for `sbatch` whose ranks are plain `srun python -m jobs train`; no Ray is needed.

Before the time limit Slurm sends USR1 to the script, which has the ranks save and stop, and requeues the job. It
requeues it after a preemption and after a failure too, as long as the step that is saved grows from start to start: a
run that cannot go on ends, and so does a job that is cancelled.

The job is known by its name, the id of its submission: its number is told only after it was submitted.
"""

import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from pipeline import storage
from pipeline.config import SlurmConfig, ViaConfig
from pipeline.errors import ConfigError, reason_of
from pipeline.masking import without_secrets
from pipeline.submission.adaptors import ASK_SECONDS, JobStatus, Order, Rendered, State, client
from pipeline.submission.record import LOGS, Submission

CLUSTER = "none"
QUEUED = ("PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD")
RUNNING = ("RUNNING", "CONFIGURING", "COMPLETING", "RESIZING", "SIGNALING", "STAGE_OUT", "STOPPED", "SUSPENDED")
OURS = ("array", "ntasks", "error", "requeue", "no-requeue", "export")  # besides those of `_settings`
# variables by which sbatch and squeue would pass over what they are asked
OVERRIDING = (
    *("SBATCH_JOB_NAME", "SBATCH_NO_REQUEUE", "SBATCH_SIGNAL", "SBATCH_ARRAY_INX", "SBATCH_OUTPUT", "SBATCH_OPEN_MODE"),
    *("SQUEUE_USERS", "SQUEUE_STATES", "SQUEUE_NAMES", "SQUEUE_FORMAT", "SQUEUE_FORMAT2", "SQUEUE_PARTITION"),
)
RETRIES = 3  # of `prepare`, whose progress no step tells
LOOK_SECONDS = 1.0  # between two looks at a log that is followed


def check(order: Order) -> None:
    """Refuses what sbatch could not take.

    Raises:
        ConfigError: names the key.
    """
    section, config = _section(order), order.config
    if order.submission.verb == "train" and (num := _num_ranks(order)) % section.nodes:
        raise ConfigError(
            f"cluster.num_workers={num} ranks are not shared out evenly by via.nodes={section.nodes};"
            f" use cluster.num_workers={num // section.nodes * section.nodes or section.nodes}"
        )
    if section.minutes is not None and section.signal_seconds >= section.minutes * 60:
        raise ConfigError(
            f"via.signal_seconds={section.signal_seconds} is not below via.minutes={section.minutes}; use a smaller one"
        )
    if section.logs is None and not storage.is_local(str(config.run)):
        raise ConfigError(f"via.logs=null and run={config.run} is in an object store; give via.logs=FOLDER on a disk")
    for key, value in (("via.logs", section.logs), ("via.setup", section.setup)):
        if value is not None and not value.startswith("/"):
            raise ConfigError(f"{key}={value} is no full path; give one that holds on the nodes")
    for option in section.options or ():
        name = option.removeprefix("--").partition("=")[0]
        if not option.startswith("--"):
            raise ConfigError(f"via.options={option} is no long option of sbatch; give it as --name=value")
        if name in (*_settings(order), *OURS):
            raise ConfigError(f"via.options={option}: --{name} is what `submit` itself sets; leave it out")
    for key, text in (
        ("run", _log(order.submission)),
        *(("via", str(value)) for value in order.submission.via.values()),
    ):
        if any(each in text for each in "\n\r"):
            raise ConfigError(f"{key}={text!r} has a line end, which no script of sbatch can hold; leave it out")
    if "%" in _log(order.submission):
        raise ConfigError(f"{_log(order.submission)} holds %, which Slurm takes for a pattern; use another folder")


def render(order: Order) -> Rendered:
    """The script, whole."""
    submission, section = order.submission, _section(order)
    python = section.python or sys.executable
    work = order.command(python)
    srun = ["srun", "--kill-on-bad-exit=1", *_srun_options(order)]
    values = {
        "head": _head(submission),
        "options": "\n".join(f"#SBATCH {option}" for option in _options(order)),
        "python": shlex.quote(python),
        "run": shlex.quote(submission.run),
        "setup": f"source {shlex.quote(section.setup)}\n" if section.setup else "",
        "work": " ".join([*srun, '"$python"', shlex.join(work[1:])]),
        "retries": str(RETRIES),
    }
    template = TRAIN if submission.verb == "train" else PREPARE
    text = re.sub(r"@(\w+)@", lambda found: values[found[1]], template)
    return Rendered(text=text, ending=".sbatch", command=["sbatch", f"{submission.id}.sbatch"])


def settled(section: ViaConfig) -> ViaConfig:
    """As it is: the commands of a machine belong to one cluster."""
    return section


def submit(order: Order, rendered: Rendered, file: str) -> str:
    """Hands the script to sbatch, without the secrets of this environment: the nodes have their own.

    Returns:
        the job's number; of two jobs of one name, which only two who submit at the same moment can make, the first's.

    Raises:
        ConfigError: sbatch refuses it, or is not here.
    """
    folder = Path(_log(order.submission)).parent
    if _section(order).logs is None:
        storage.make_folder(str(folder))
    try:
        number = _ask("sbatch", "--parsable", text=rendered.text).strip().partition(";")[0]
    except ConfigError as error:
        raise ConfigError(f"{order.submission.id} is not submitted: {error}; mend it and submit again") from error
    alive = sorted((each for each, state, _ in _jobs(order.submission) if _of(state) != "ended"), key=int)
    if alive and alive[0] != number:
        _ask("scancel", number)
        return alive[0]
    return number


def status(submission: Submission) -> JobStatus:
    """What squeue says of jobs of this name."""
    try:
        found = _jobs(submission)
    except ConfigError as error:
        return JobStatus(state="silent", reason=str(error))
    if not found:
        return JobStatus(state="gone")
    alive = [each for each in found if _of(each[1]) != "ended"]
    number, state, reason = alive[0] if alive else found[-1]
    kind = _of(state)
    said = reason if kind == "queued" else state.lower() if kind == "ended" else ""
    return JobStatus(state=kind, name=number, reason="" if said == "None" else said)


def cancel(submission: Submission) -> None:
    """Ends the jobs of this name.

    Raises:
        ConfigError: scancel refuses, or is not here.
    """
    for number, state, _ in _jobs(submission):
        if _of(state) != "ended":
            _ask("scancel", number)


def logs(submission: Submission, *, follow: bool) -> Iterator[str]:
    """The job's file; Slurm writes all starts of a job to one.

    Raises:
        ConfigError: it is not there.
    """
    path = Path(_log(submission))
    while follow and not path.exists() and status(submission).state not in ("ended", "gone"):
        time.sleep(LOOK_SECONDS)
    if not path.exists():
        raise ConfigError(f"{path}, the log of {submission.id}, is not there; it has not begun, or was removed")
    with path.open(errors="replace") as file:
        going = follow
        while True:
            while piece := file.read(1 << 16):
                yield piece
            if not going:
                return
            going = status(submission).state not in (
                "ended",
                "gone",
            )  # what it printed before it ended is read once more
            time.sleep(LOOK_SECONDS)


def _section(order: Order) -> SlurmConfig:
    assert isinstance(order.section, SlurmConfig)
    return order.section


def _num_ranks(order: Order) -> int:
    section = _section(order)
    return order.config.cluster.num_workers or section.nodes * (section.gpus_per_node or 1)


def _log(submission: Submission) -> str:
    folder = submission.via["logs"] or storage.join(storage.absolute(submission.run), LOGS)
    return storage.join(folder, f"{submission.id}.log")


def _head(submission: Submission) -> str:
    commit = f", commit {submission.commit}{' with changes' if submission.dirty else ''}" if submission.commit else ""
    return f"# {submission.verb} by wordlanes {submission.version}{commit}"


def _settings(order: Order) -> dict[str, object]:
    """The options of sbatch that have a value, by name; None: it is left out."""
    section, submission = _section(order), order.submission
    nodes = section.nodes if submission.verb == "train" else 1
    ranks = _num_ranks(order) // section.nodes if submission.verb == "train" else 1
    return {
        "job-name": submission.id,
        "nodes": nodes,
        "ntasks-per-node": ranks,
        "gpus-per-node": section.gpus_per_node,
        "cpus-per-task": section.cpus_per_rank,
        "mem": f"{round(section.memory_gb * 1024)}M" if section.memory_gb else None,
        "partition": section.partition,
        "account": section.account,
        "qos": section.qos,
        "time": section.minutes,
        "signal": f"B:USR1@{section.signal_seconds}",
        "output": shlex.quote(_log(submission)),
        "open-mode": "append",
    }


def _options(order: Order) -> list[str]:
    """The options of sbatch."""
    options = [f"--{name}={value}" for name, value in _settings(order).items() if value is not None]
    return [*options, "--requeue", *(_section(order).options or ())]


def _srun_options(order: Order) -> list[str]:
    """What srun does not take over from sbatch."""
    section = _section(order)
    return [f"--cpus-per-task={section.cpus_per_rank}"] if section.cpus_per_rank else []


def _jobs(submission: Submission) -> list[tuple[str, str, str]]:
    """(number, state, reason) of the jobs of a submission's name that Slurm still knows, the first first.

    Raises:
        ConfigError: squeue does not answer.
    """
    lines = _ask(
        *("squeue", "--noheader", "--states=all", f"--name={submission.id}", "--format=%i|%T|%r"),
    ).splitlines()
    found = [(number, state, reason) for number, state, reason in (line.split("|", 2) for line in lines)]
    return sorted(found, key=lambda each: int(each[0]))


def _of(state: str) -> State:
    return "queued" if state in QUEUED else "running" if state in RUNNING else "ended"


def _ask(*command: str, text: str | None = None) -> str:
    """What a command of Slurm prints.

    Raises:
        ConfigError: it fails, does not answer, or is not here.
    """
    name, *rest = command
    try:
        done = subprocess.run(
            [client(name, via="slurm"), *rest],
            input=text,
            capture_output=True,
            text=True,
            timeout=ASK_SECONDS,
            env={name: value for name, value in without_secrets().items() if name not in OVERRIDING},
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"{name} does not answer ({reason_of(error)})") from error
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())
        raise ConfigError(f"{name} says {said or f'nothing and ends with {done.returncode}'!r}")
    return done.stdout


BEGIN = """#!/bin/bash
@head@
@options@
set -uo pipefail
export WORDLANES_JOB_START=$((${SLURM_RESTART_COUNT:-0} + 1))  # nobody types a job's start
python=@python@
"""

WORK = """@work@ &
step=$!
until wait "$step"; ! kill -0 "$step" 2>/dev/null; do :; done  # a signal ends a wait, not the ranks
wait "$step"
code=$?
"""

TRAIN = (
    BEGIN
    + """run=@run@
@setup@
saved_step() {
  "$python" -m jobs status run="$run" --json 2>/dev/null |
    "$python" -c 'import json, sys; print(json.load(sys.stdin)["saved_step"] or 0)' 2>/dev/null || echo 0
}

trap '"$python" -c "import sys, pipeline.run.stop as stop; stop.stop_newest_attempt(sys.argv[1])" "$run"' USR1
before=$(saved_step)
"""
    + WORK
    + """
[ "$code" -ne 0 ] || exit 0  # trained, or stopped by its user
state=$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T)
[ "$state" = RUNNING ] || exit "$code"  # cancelled
after=$(saved_step)
if [ "$after" -gt "$before" ]; then
  echo "saved step $before before, $after now: requeued"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""
)

PREPARE = (
    BEGIN
    + """@setup@
step='' asked=no
trap 'asked=yes; [ -z "$step" ] || scancel --signal=TERM "$SLURM_JOB_ID"' USR1
"""
    + WORK
    + """
if [ "$asked" = yes ] && [ "$code" -ne 0 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt @retries@ ]; then
  echo "what is prepared stays: requeued"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""
)

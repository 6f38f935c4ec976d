"""`python -m jobs submit VERB`: hands `train` or `prepare` to a cluster; pressed twice, it is one job.

In: the verb and its `key=value`, `via=` and its keys; run and data as full paths or URIs. Out: the job's id, a line or
a JSON object; with `--dry-run` what would be run. Refuses what the cluster's client could not take.
"""

import json
from collections.abc import Sequence

from pipeline.config import nearest
from pipeline.errors import ConfigError
from pipeline.submission.record import record_path
from pipeline.submission.submitting import Outcome, foreseen, order_of, submit

SUBMITTED = ("train", "prepare")
FLAGS = ("--dry-run", "--json")


def main(arguments: Sequence[str]) -> None:
    """Submits, or shows what would be submitted."""
    verb, typed = _verb([each for each in arguments if each not in FLAGS])
    order = order_of(verb, typed)
    if "--dry-run" in arguments:
        rendered = foreseen(order)
        print(
            json.dumps({"text": rendered.text, "command": rendered.command})
            if "--json" in arguments
            else rendered.shown
        )
        return
    outcome = submit(order)
    print(json.dumps(as_json(outcome)) if "--json" in arguments else _line(outcome))


def as_json(outcome: Outcome) -> dict[str, object]:
    """The object that `--json` prints."""
    submission, status = outcome.submission, outcome.status
    return {
        "id": submission.id,
        "run": submission.run,
        "via": submission.kind,
        "job": status.name,
        "state": "written" if status.name is None and not outcome.again else status.state,
        "again": outcome.again,
        "file": outcome.file,
    }


def _verb(words: Sequence[str]) -> tuple[str, list[str]]:
    """The verb to submit, and what was typed for it.

    Raises:
        ConfigError: it is none that can be submitted.
    """
    verb, *typed = words or [""]
    if verb not in SUBMITTED:
        found = f"submit {verb}" if verb else "submit"
        raise ConfigError(
            f"{found}: give train or prepare first, as `python -m jobs submit train via=slurm ...`"
            f"{nearest(verb, SUBMITTED)}"
        )
    return verb, typed


def _line(outcome: Outcome) -> str:
    submission, status = outcome.submission, outcome.status
    job = f"{submission.id}" + (f" ({submission.kind}: {status.name})" if status.name else "")
    if status.state == "silent":
        return (
            f"{job} was submitted already, and whether it goes on is not known ({status.reason}); once it has ended,"
            f" remove {record_path(submission, '.json')} to submit anew"
        )
    if outcome.again:
        reason = f", {status.reason}" if status.reason else ""
        return f"{job} is {status.state} already{reason}; `python -m jobs status run={submission.run}` tells more"
    if status.name is None:
        import shlex

        return f"{job} is written to {outcome.file}; to submit it: {shlex.join(outcome.command)}"
    return f"{job} is submitted; `python -m jobs status run={submission.run}` tells where it stands"

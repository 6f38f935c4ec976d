"""The command line, `wordlanes VERB [key=value ...]` or `python -m jobs VERB ...`.

In: what was typed. Out: the verb's own output, and an exit code. A user's mistake ends in one line and exit code 2.
"""

import importlib
import os
import secrets
import select
import shutil
import signal
import sys
import textwrap
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from pydantic.fields import FieldInfo

from pipeline import console
from pipeline.cluster.parent import LOOP, await_launcher
from pipeline.cluster.tasks import MAX_RETRIES
from pipeline.config import (
    ArpaConfig,
    CompareConfig,
    Config,
    EvaluateConfig,
    HorizonConfig,
    InspectConfig,
    PlanConfig,
    ReportConfig,
    RunConfig,
    Section,
    SubmitConfig,
    SynthesizeConfig,
    VerifyConfig,
    choices,
    groups,
    load,
    nearest,
    sections,
    shown,
)
from pipeline.errors import ConfigError, PipelineError, Stopped
from pipeline.masking import masked
from pipeline.run.stop import USER

# name: what it does, what it reads, the file of conf/ that it starts from, its flags
VERBS: dict[str, tuple[str, type[Section], str, tuple[str, ...]]] = {
    "prepare": ("raw text → vocabulary and token shards", Config, "config", ()),
    "verify": ("re-read a prepared corpus and compare digests", VerifyConfig, "verify", ()),
    "inspect": ("what a prepared corpus holds, in numbers and words", InspectConfig, "inspect", ("--json",)),
    "train": ("train a language model, or go on with it", Config, "config", ()),
    "evaluate": ("perplexity of a split", EvaluateConfig, "evaluate", ("--json",)),
    "arpa": ("an n-gram model as a file for KenLM, SRILM and Kaldi", ArpaConfig, "arpa", ()),
    "compare": ("experiments side by side: train, score, draw", CompareConfig, "compare", ("--json",)),
    "horizon": ("how far back a model hears", HorizonConfig, "horizon", ("--json",)),
    "status": ("how a run stands and where its time went", RunConfig, "status", ("--json",)),
    "stop": ("have a run save its state and stop", RunConfig, "stop", ("--json",)),
    "logs": ("what a run's jobs printed, of every submission", RunConfig, "logs", ("-f",)),
    "plan": ("what a run will take: steps, memory, hours, cost", PlanConfig, "plan", ("--json",)),
    "submit": ("hand train or prepare to a cluster", SubmitConfig, "submit", ("--dry-run", "--json")),
    "report": ("runs as one page without network, and pictures", ReportConfig, "report", ()),
    "synthesize": ("made text at the scale of a real corpus", SynthesizeConfig, "synthesize", ()),
    "demo": ("all of it on the documentation of this Python", Config, "config", ()),
}
ASKING = ("submit", "status", "stop", "logs")  # of a cluster's client
SCRIPT, MODULE = "wordlanes", "python -m jobs"  # the two names of the command
ENDS = (signal.SIGTERM, signal.SIGHUP)
USER_MISTAKE = 2
UNREAD = 1
AGAIN_SECONDS = 1.0

_received: list[str] = []  # the signal that interrupted the verb


class Interrupt(KeyboardInterrupt):
    """A signal that is taken as Ctrl-C is.

    It is a type of its own: where Ctrl-C itself passes through `exec`, as in imports, Python ends by SIGINT, whatever
    the exit code.
    """


def main(arguments: Sequence[str]) -> int:
    """Runs a verb; returns the exit code."""
    try:
        return _run(arguments)
    except Stopped as stopped:
        print(f"stopped: {stopped}", file=sys.stderr)
        return 0 if stopped.cause == USER else 128 + signal.Signals[stopped.cause].value
    except PipelineError as error:
        print(f"error: {_as_typed(' '.join(str(error).split()))}", file=sys.stderr)
        return USER_MISTAKE
    except KeyboardInterrupt as interrupt:
        print("interrupted; the same command goes on from what is finished", file=sys.stderr)
        causes = [each for each in (str(interrupt), *_received) if each in signal.Signals.__members__]
        return 128 + signal.Signals[causes[0] if causes else "SIGINT"].value


def _run(arguments: Sequence[str]) -> int:
    if not arguments or arguments[0] in ("--help", "-h", "help"):
        print(_usage())
        return 0
    verb, *rest = arguments
    if verb not in VERBS:
        raise ConfigError(f"unknown verb {verb}{nearest(verb, VERBS)}; `{MODULE}` lists them")
    if "--help" in rest or "-h" in rest:
        print(_help(verb, rest))
        return 0
    _refuse_flags(verb, rest)
    try:
        code: int | None = importlib.import_module(f"jobs.{verb}").main(rest)
    finally:
        _ignore_signals()
    return code or 0


def _refuse_flags(verb: str, arguments: Sequence[str]) -> None:
    flags = VERBS[verb][3]
    for argument in arguments:
        if argument.startswith("-") and argument not in flags:
            known = " ".join(("--help", *flags))
            raise ConfigError(f"unknown flag {argument} of {verb}; it knows {known} and key=value")


def _usage() -> str:
    verbs = "\n".join(f"  {verb:<12}{does}" for verb, (does, *_) in VERBS.items())
    command = _command()
    more = f"{command} VERB --help explains every key"
    return f"usage: {command} VERB [key=value ...]\n\n{verbs}\n\n{more}"


def _command() -> str:
    """The name by which the user called this program."""
    return SCRIPT if Path(sys.argv[0]).name == SCRIPT else MODULE


def _as_typed(message: str) -> str:
    """A message in which quoted commands have the name by which the user called this one."""
    return message.replace(f"`{MODULE}", f"`{_command()}")


def _help(verb: str, typed: Sequence[str]) -> str:
    """The groups with their choices, and by section every key with its value and what it is for.

    A section that comes in kinds has the keys of the kind that is typed, as in `submit via=ray --help`.
    """
    does, schema, file, flags = VERBS[verb]
    chosen = [each for each in typed if each.partition("=")[0] in groups(schema)]
    lines = [f"{_command()} {verb} [key=value ...] {' '.join(f'[{flag}]' for flag in flags)}".rstrip(), f"  {does}"]
    if choices_of := groups(schema):
        lines += ["", f"Groups of keys that a file of conf/ sets together; `{verb} GROUP=CHOICE --help` shows them:"]
        lines += [f"  {group}={'|'.join(files)}" for group, files in choices_of.items()]
    tree = load(schema, chosen, name=file)
    values = shown(tree)
    column = max(len(f"{key}={value}") for key, value in values.items()) + 2
    for prefix, section in sections(tree):
        lines += ["", f"{prefix.removesuffix('.')}: {str(section.__doc__).splitlines()[0]}" if prefix else "keys:"]
        lines += [
            _beside(f"{prefix}{name}={values[prefix + name]}", _explained(field), column=column)
            for name, field in section.model_fields.items()
            if prefix + name in values
        ]
    return "\n".join(lines)


def _beside(setting: str, text: str, *, column: int) -> str:
    """A setting and, in a column of its own, what it is for; text that a terminal has no room for goes on below it."""
    width = shutil.get_terminal_size(fallback=(1000, 0)).columns
    return textwrap.fill(f"{setting:<{column}}{text}", width, initial_indent="  ", subsequent_indent=" " * (column + 2))


def _explained(field: FieldInfo) -> str:
    """What a key is for, and the words that it takes if these are all."""
    words = "|".join(choices(field.annotation))
    return f"{field.description or ''}{f' ({words})' if words else ''}"


def _set_up(arguments: Sequence[str]) -> None:
    """What belongs to a process and not to the library: the environment of ray and torch, and logging."""
    environment = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",  # of 15, by which the workers of a Ray that is started here give way to all else
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # no word on accelerators that a task does not ask for
        "RAY_task_oom_retries": str(MAX_RETRIES),  # of without end, for a task whose worker Ray kills to save memory
        "RAY_DEDUP_LOGS_SKIP_REGEX": r"There are \d+ (oom )?retries remaining",  # with stacks; what fails is told by us
        # torch's threads wait busily for each other, and two runs on the same two cores stand almost still: 2 x 200
        # reads 300 words/s in each. With this it is 3,700, and one alone keeps 98% of its speed
        "GOMP_SPINCOUNT": "10000",
    }
    if arguments[:1] == ["compare"]:
        pass  # its runs are commands of their own, each of which decides
    elif {"cluster=ray", "cluster.kind=ray", *ASKING}.isdisjoint(arguments):
        # a Ray of this command's own lets nobody else in; no token goes to the home folder
        environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    else:  # a running one has its own; where it answers and lets nobody in, it is asked no more than this often
        environment |= {"RAY_gcs_server_port_wait_time_s": "3"}
    for name, value in environment.items():
        os.environ.setdefault(name, value)
    for number in ENDS:
        if signal.getsignal(number) == signal.SIG_DFL:  # not where it is ignored, as SIGHUP is under nohup
            signal.signal(number, _interrupt)
    if loop := os.environ.pop(LOOP, None):
        threading.Thread(target=_end_with, args=(int(loop),), name="loop", daemon=True).start()
    console.set_up()


def _end_with(loop: int) -> None:
    """Has the verb save and stop once the loop that would pass on a signal, or start it again, was killed."""
    await_launcher(loop)
    os.kill(os.getpid(), signal.SIGTERM)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Ends what a verb does in the way of Ctrl-C, so that it puts its things in order; which nothing interrupts again.

    Some libraries lose what is raised at a bad moment: so the signal comes again, until the verb has ended.
    """
    error = sys.exc_info()[1]
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return
        error = error.__context__
    name = signal.Signals(number).name
    if not _received:
        threading.Thread(target=_repeat, args=(number,), name=f"{name} again", daemon=True).start()
    _received.append(name)  # Ray raises the error anew, without its text
    raise Interrupt(name)


def _repeat(number: int) -> None:
    while True:
        time.sleep(AGAIN_SECONDS)
        os.kill(os.getpid(), number)


def _ignore_signals() -> None:
    """The verb has ended; what is left to do takes no time."""
    for number in ENDS:
        if signal.getsignal(number) is _interrupt:
            signal.signal(number, signal.SIG_IGN)


def _answer(arguments: Sequence[str]) -> int:
    """`main`, to a reader that may have seen enough and gone, as `head` does; rich ends in the same way."""
    try:
        code = main(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        output = select.poll()
        output.register(sys.stdout.fileno(), 0)
        if not any(found & select.POLLERR for _, found in output.poll(0)):
            raise  # it was another pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # where the rest goes
        return UNREAD
    return code


def run() -> int:
    """Sets this process up, runs what was typed and returns the exit code: the console script `wordlanes`."""
    arguments = sys.argv[1:]
    sys.argv[1:] = map(masked, arguments)  # where libraries read them, for a dashboard
    _set_up(arguments)
    return _answer(arguments)


if __name__ == "__main__":
    sys.exit(run())

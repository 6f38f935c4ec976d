"""`python -m jobs VERB [key=value ...]`: finds the verb, and ends a user's mistake in one line and exit code 2."""

import importlib
import os
import secrets
import select
import signal
import sys
import threading
import time
from collections.abc import Sequence
from types import FrameType

from jobs import console
from pipeline.config import (
    Config,
    EvaluateConfig,
    Section,
    StatusConfig,
    VerifyConfig,
    groups,
    load,
    nearest,
    shown,
)
from pipeline.errors import ConfigError, PipelineError, Stopped

# name: what it does, what it reads, the file of conf/ that it starts from, its flags
VERBS: dict[str, tuple[str, type[Section], str, tuple[str, ...]]] = {
    "prepare": ("raw text → vocabulary and token shards", Config, "config", ()),
    "verify": ("re-read a prepared corpus and compare digests", VerifyConfig, "verify", ()),
    "train": ("train a language model, or go on with it", Config, "config", ()),
    "evaluate": ("perplexity of a split", EvaluateConfig, "evaluate", ("--json",)),
    "status": ("how a run stands and where its time went", StatusConfig, "status", ("--json",)),
    "demo": ("all of it on the documentation of this Python", Config, "config", ()),
}
ENDS = (signal.SIGTERM, signal.SIGHUP)
USER_MISTAKE = 2
UNREAD = 1
AGAIN_SECONDS = 1.0

_heard: list[str] = []  # the signal that interrupted the verb


class Interrupt(KeyboardInterrupt):
    """A signal that is taken as Ctrl-C is.

    It is a type of its own: where Ctrl-C itself passes through `exec`, as in imports, Python ends by SIGINT, whatever
    the exit code.
    """


def main(arguments: Sequence[str]) -> int:
    """Runs a verb; returns the exit code."""
    if not arguments or arguments[0] in ("--help", "-h", "help"):
        print(_usage())
        return 0
    verb, *rest = arguments
    try:
        if verb not in VERBS:
            raise ConfigError(f"unknown verb {verb}{nearest(verb, VERBS)}; `python -m jobs` lists them")
        if "--help" in rest or "-h" in rest:
            print(_help(verb))
            return 0
        _refuse_flags(verb, rest)
        try:
            importlib.import_module(f"jobs.{verb}").main(rest)
        finally:
            _hear_no_more()
    except Stopped as stopped:
        print(f"stopped: {stopped}", file=sys.stderr)
        return 128 + signal.Signals[stopped.cause].value
    except PipelineError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return USER_MISTAKE
    except KeyboardInterrupt as interrupt:
        print("interrupted; the same command goes on from what is finished", file=sys.stderr)
        causes = [each for each in (str(interrupt), *_heard) if each in signal.Signals.__members__]
        return 128 + signal.Signals[causes[0] if causes else "SIGINT"].value
    return 0


def _refuse_flags(verb: str, arguments: Sequence[str]) -> None:
    flags = VERBS[verb][3]
    for argument in arguments:
        if argument.startswith("--") and argument not in flags:
            known = " ".join(("--help", *flags))
            raise ConfigError(f"unknown flag {argument} of {verb}; it knows {known} and key=value")


def _usage() -> str:
    verbs = "\n".join(f"  {verb:<10}{does}" for verb, (does, *_) in VERBS.items())
    more = "python -m jobs VERB --help shows groups, keys and values"
    return f"usage: python -m jobs VERB [key=value ...]\n\n{verbs}\n\n{more}"


def _help(verb: str) -> str:
    """The groups with their choices and every key with its value, as composed without overrides."""
    does, schema, name, flags = VERBS[verb]
    lines = [f"python -m jobs {verb} [key=value ...] {' '.join(f'[{flag}]' for flag in flags)}".rstrip(), f"  {does}"]
    if schema is Config:
        lines += ["", "groups:"]
        lines += [f"  {group}={'|'.join(choices)}" for group, choices in groups().items()]
    values = shown(load(schema, [], name=name))
    lines += ["", "keys and their values:"]
    lines += [f"  {key}={value}" for key, value in values.items()]
    return "\n".join(lines)


def _set_up(arguments: Sequence[str]) -> None:
    """What belongs to a process and not to the library: the environment of ray and torch, and logging."""
    environment = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # no word on accelerators that a task does not ask for
        # torch's threads wait busily for each other, and two runs on the same two cores stand almost still: 2 x 200
        # reads 300 words/s in each. With this it is 3,700, and one alone keeps 98% of its speed
        "GOMP_SPINCOUNT": "10000",
    }
    if {"cluster=ray", "cluster.kind=ray"}.isdisjoint(arguments):
        # a Ray of this command's own lets nobody else in; no token goes to the home folder
        environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    else:  # a running one has its own; where it answers and lets nobody in, it is asked no more than this often
        environment |= {"RAY_gcs_server_port_wait_time_s": "3"}
    for name, value in environment.items():
        os.environ.setdefault(name, value)
    for number in ENDS:
        if signal.getsignal(number) == signal.SIG_DFL:  # not where it is ignored, as SIGHUP is under nohup
            signal.signal(number, _interrupt)
    console.set_up()


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
    if not _heard:
        threading.Thread(target=_repeat, args=(number,), name=f"{name} again", daemon=True).start()
    _heard.append(name)  # Ray raises the error anew, without its text
    raise Interrupt(name)


def _repeat(number: int) -> None:
    while True:
        time.sleep(AGAIN_SECONDS)
        os.kill(os.getpid(), number)


def _hear_no_more() -> None:
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


if __name__ == "__main__":
    _set_up(sys.argv[1:])
    sys.exit(_answer(sys.argv[1:]))

"""Processes that tests of monitoring start."""

import subprocess


def ended(process: "subprocess.Popen[bytes]", number: int) -> int:
    """Ends a process that may have ended: by a signal, and after a while without asking; returns its exit code."""
    if process.poll() is None:
        process.send_signal(number)
    try:
        return process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()

"""Ctrl-C in a process of its own."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

INTERRUPTIBLE = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a job in the background has not
"""


def interrupted(program: str, after: float) -> tuple[int, bytes]:
    """Run a program that prints a line when it begins, and interrupt it so many seconds later.

    Returns:
        Its exit code, and what it says on standard error.
    """
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", INTERRUPTIBLE + program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(after)
            process.send_signal(signal.SIGINT)
            _, complaint = process.communicate(timeout=60)
        finally:
            process.kill()  # else the block waits for one that did not hear it
    return process.returncode, complaint

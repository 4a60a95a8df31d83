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


def interrupted(program: str, *arguments: object, after: float) -> tuple[int, bytes]:
    """Run a program that prints a line when it begins, and interrupt it so many seconds later.

    Again if need be: Python drops an interrupt that comes while it clears away an object.

    Returns:
        Its exit code, and what it says on standard error.
    """
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", INTERRUPTIBLE + program, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(after)
            for _ in range(4):
                process.send_signal(signal.SIGINT)
                try:
                    _, complaint = process.communicate(timeout=15)
                except subprocess.TimeoutExpired:
                    continue
                return process.returncode, complaint
        finally:
            process.kill()  # else the block waits for it
    raise AssertionError("it is not interrupted")

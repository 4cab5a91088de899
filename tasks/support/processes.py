"""Which process is at work, so that a later one can tell whether it still lives."""

from __future__ import annotations

import os
import socket

import psutil


def this_process() -> str:
    """Names the process that asks: machine, process number, and when it began."""
    pid = os.getpid()
    return f"{_machine()} {pid} {psutil.Process(pid).create_time():.0f}"


def has_ended(name: str) -> bool:
    """Whether a process that `this_process` named lives no longer.

    One of another machine, or of another container, counts as living: nobody can tell from here.
    """
    try:
        machine, pid, began = name.rsplit(" ", 2)
        number, then = int(pid), float(began)
    except ValueError:
        return False
    if machine != _machine():
        return False
    try:
        process = psutil.Process(number)
        # Numbers are given again. Two seconds, for the clock may be corrected meanwhile.
        again = abs(process.create_time() - then) > 2
        return again or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
    except psutil.AccessDenied:
        return False


def _machine() -> str:
    """The host, and where there are such the namespace of its process numbers: a container may
    share the host's name and still count from 1.
    """
    try:
        return f"{socket.gethostname()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()

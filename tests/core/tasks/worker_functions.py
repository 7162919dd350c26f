"""Tasks that fail as workers fail: killed, hanging, ended in the middle of a message."""

import multiprocessing
import os
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")  # imports torch once for all workers
CONTEXT.set_forkserver_preload(
    ["kernelmem.memorization.shadows", "kernelmem.double_descent", "torch._dynamo", __name__]
)


def square(value):
    return value * value


def first_time(path):
    """Return True in the one call, of all processes, that makes the file."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def die(task):
    """Square a number; (number, marker): the first call for each marker kills its process, with marker None every call."""
    value, marker = task
    if marker is None or (marker and first_time(marker)):
        os.kill(os.getpid(), signal.SIGKILL)
    return value * value


def hang(task):
    value, marker = task
    if marker is None or (marker and first_time(marker)):
        time.sleep(60)
    return value * value


def die_while_sending(task):
    value, marker = task
    if first_time(marker):

        def send_half(self, content, write=os.write):
            os.write(self.fileno(), bytes(content[: len(content) // 2]))
            os.kill(os.getpid(), signal.SIGKILL)

        Connection._send = send_half
    return value * value


class LocalError(Exception):
    def __init__(self, a, b):
        super().__init__(f"{a} {b}")


def fail(value):
    if value == 2:
        raise KeyError("two")
    if value == 3:
        raise LocalError("three", "halves")  # cannot be unpickled
    return value * value


def write_pid(path):
    Path(path).write_text(str(os.getpid()))
    time.sleep(60)

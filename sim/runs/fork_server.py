"""The server from which worker processes are forked: it imports attnsim once for all of them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver, get_all_start_methods, get_context
from multiprocessing.context import BaseContext

IMPORTED = ("sim.runs.work", "llvmlite.binding")


def start() -> BaseContext:
    """What makes workers; the server is started, where there is one and it has not been.

    It imports while this process goes on. What starts is mute: where this process ends meanwhile,
    Python would tell of every pipe and semaphore that is gone.
    """
    if "forkserver" not in get_all_start_methods():
        return get_context("spawn")
    context = get_context("forkserver")
    context.set_forkserver_preload([*IMPORTED])
    told, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        with without_the_current_folder():
            forkserver.ensure_running()
    finally:
        os.dup2(told, 2)
        os.close(told)
        os.close(nowhere)
    return context


@contextmanager
def without_the_current_folder() -> Iterator[None]:
    """Interpreters that start meanwhile look for no module there, as `python -c` would first."""
    before = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONSAFEPATH"]
        else:
            os.environ["PYTHONSAFEPATH"] = before

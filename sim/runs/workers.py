"""Who replays a sweep's points: processes here, or the workers of a Dask cluster."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from sim.code.garbage import look_seldom
from sim.device.run import keep_replays
from sim.engine.compiled.replay import advance
from sim.inputs.files import InputError
from sim.runs import fork_server
from sim.runs.job import run_scenario
from sim.runs.scenario import make_scenario

CLUSTER_S = 20  # to wait for a cluster and its first worker


class WorkersLostError(Exception):
    """The executor is gone; the store has what was finished."""


@dataclass(frozen=True)
class Workers:
    """An executor, and how many tasks it runs at a time."""

    executor: Executor
    width: Callable[[], int]


@contextmanager
def processes(workers: int | None = None, replays: Path | None = None) -> Iterator[Workers]:
    """So many worker processes here, as many as there are cores by default.

    They keep `replays` in that folder, and look there (`keep_replays`); in none by default.
    They come from a fork server, which has no threads. They die with this process, however it ends.
    They are mute until they work, as the server is.
    """
    count = workers or len(os.sched_getaffinity(0))
    context = fork_server.start()
    compile_engine()
    lifeline, alive = context.Pipe(duplex=False)
    with fork_server.without_the_current_folder():
        forked = context.get_start_method() == "forkserver"
        told = Connection(os.dup(2), readable=False) if forked else None
        executor = ProcessPoolExecutor(count, context, _live_on, (lifeline, told, replays))
        try:
            yield Workers(executor, lambda: count)
        except BaseException:
            alive.close()  # ends them in the middle of what they do
            raise
        finally:
            executor.shutdown(cancel_futures=True)
            alive.close()
            lifeline.close()


def compile_engine() -> None:
    """Let the compiled engine lie on disk, so that workers read it instead of compiling it each."""
    if advance.is_kept:
        return
    tables = {
        "workload": {"heads": 1, "head_dim": 64, "seq_len": 64},
        "hardware": {"profile": "h100-sxm"},
        "schedule": [{"name": "flash2"}],
    }
    list(run_scenario(make_scenario(tables, "compile", "compile")))


def _live_on(lifeline: Connection, told: Connection | None, replays: Path | None) -> None:
    """Of a worker: leave Ctrl-C to the main process, and end when its end of the pipe closes.

    What goes wrong from now on is `told`, where it was not till then.
    """

    def watch() -> None:
        lifeline.poll(None)
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    look_seldom()
    keep_replays(replays)
    if told is not None:
        os.dup2(told.fileno(), 2)
    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def cluster(address: str) -> Iterator[Workers]:
    """The workers of a Dask cluster; raises InputError where it cannot be reached."""
    try:
        from dask.distributed import Client
    except ImportError:
        raise InputError("--dask needs dask.distributed: pip install 'attnsim[cluster]'") from None
    try:
        client = Client(address, timeout=CLUSTER_S)
        client.wait_for_workers(1, timeout=CLUSTER_S)
    except (OSError, ValueError, TimeoutError) as error:
        problem = str(error).splitlines()[0]
        raise InputError(f"--dask {address}: no cluster with workers there: {problem}") from None
    with client:
        # The same point twice is another try, not the result of the first.
        executor = client.get_executor(pure=False)
        yield Workers(executor, lambda: max(1, sum(client.nthreads().values())))

"""How hypothesis draws, which files go first, where Triton's kernels run, and Ctrl-C."""

import os
import signal
from fcntl import LOCK_EX, flock
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

if not Path("/dev/nvidiactl").exists():
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton is first imported

# Files that take long. They go first: a process that began one of them last would be
# at it when the other has nothing left to do.
LONG = (
    *("test_calibrate.py", "test_explorer.py", "test_page.py"),
    *("test_known_errors.py", "test_engines.py", "test_sweep.py"),
)

# A shell that starts the tests in the background has all that they start ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile(
    "attnsim",
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("attnsim")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.name not in LONG)


@pytest.fixture(scope="session", autouse=True)
def _compiled_engine(tmp_path_factory):
    """So that no test depends on whether another has compiled the engine, which commands tell.

    Of the processes that run tests one compiles it, and the others wait.
    """
    from sim.runs.workers import compile_engine

    with open(tmp_path_factory.getbasetemp().parent / "compiling", "w") as lock:
        flock(lock, LOCK_EX)
        compile_engine()


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    """No test finds what another, or the user, has in the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="session")
def browser():
    """A real headless browser."""
    from tests.support.browser import a_browser

    with a_browser() as one:
        yield one

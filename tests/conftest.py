"""How hypothesis draws, where Triton's kernels run (a GPU, else interpreted), and Ctrl-C."""

import os
import signal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

if not Path("/dev/nvidiactl").exists():
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton is first imported

# A shell that starts the tests in the background has all that they start ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile(
    "attnsim",
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("attnsim")


@pytest.fixture(scope="session", autouse=True)
def _compiled_engine():
    """So that no test depends on whether another has compiled the engine, which commands tell."""
    from sim.runs.workers import compile_engine

    compile_engine()


@pytest.fixture(scope="session")
def browser():
    """A real headless browser."""
    from tests.support.browser import a_browser

    with a_browser() as one:
        yield one

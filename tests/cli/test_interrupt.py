"""Ctrl-C: one line that says what is kept, exit code 130, whatever the process is in."""

import subprocess
import sys
import textwrap

import pytest

BEGUN = """
    import os, signal, threading
    from sim.cli import app, interrupt
    from sim.cli.output import a_bar

    def ctrl_c():
        os.kill(os.getpid(), signal.SIGINT)

    def command():
        with a_bar(engine=None, kept="the store has what is finished"):
"""
# What the signal may find the main thread in.
IN = {
    "Python": "ctrl_c(); threading.Event().wait()",
    "a library that loses it": """
            try:
                ctrl_c(); threading.Event().wait()
            except BaseException:
                threading.Event().wait()
    """,
    "threads that are waited for": """
            from concurrent.futures import ThreadPoolExecutor
            with ThreadPoolExecutor() as threads:
                threads.submit(threading.Event().wait)
                ctrl_c(); threading.Event().wait()
    """,
}


@pytest.mark.parametrize("within", IN)
def test_an_interrupted_command_says_what_is_kept(within):
    inside = textwrap.indent(textwrap.dedent(IN[within]), " " * 12)
    code = f"{textwrap.dedent(BEGUN)}{textwrap.indent(textwrap.dedent(inside), ' ' * 8)}"
    code += "\napp.app.command('wait')(command)\napp.main()\n"
    asked = [sys.executable, "-c", code, "wait"]
    ended = subprocess.run(asked, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 130
    assert ended.stdout == ""
    assert ended.stderr == "attnsim: interrupted; the store has what is finished\n"

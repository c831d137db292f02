"""Ctrl-C: one line that says what is kept, exit code 130, whatever the process is in."""

import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.support.tables_of_figures import write
from tests.support.typed_at import typed_at

SCENARIOS = Path(__file__).parents[2] / "scenarios"
BEGUN = """
    import os, signal, threading
    from sim.cli.app import main
    from sim.cli.commands import app
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
    "a callback whose errors Python tells of": """
            import weakref
            class Held: pass
            held = Held()
            heard = weakref.ref(held, lambda _: (ctrl_c(), threading.Event().wait()))
            del held
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
    code += "\napp.command('wait')(command)\nmain()\n"
    asked = [sys.executable, "-c", code, "wait"]
    ended = subprocess.run(asked, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 130
    assert ended.stdout == ""
    assert ended.stderr == "attnsim: interrupted; the store has what is finished\n"


# What is asked, what the progress bar then shows that it is in the middle of, and what is kept.
LONG = {
    "workers that start": (
        ("sweep", "sweep_l2", "--workers", "2"),
        "0 of 36 points",
        "what is finished is in sweeps.sqlite: run again to go on",
    ),
    "a comparison": (
        ("validate", "compare", "figures.csv"),
        "cases",
        "what was simulated is kept: run again to go on",
    ),
    "a search": (
        ("explore", "search", "endless.toml", "--out", "kept"),
        "trial ",
        "its trials are in kept: run again to go on",
    ),
    "a ring": (
        ("run", "ten_million_tokens_ring"),
        "contiguous",
        "finished replays are kept: run again to go on",
    ),
    "a ring that keeps nothing": (
        ("run", "ten_million_tokens_ring", "--no-cache"),
        "contiguous",
        "nothing was written",
    ),
}


@pytest.mark.parametrize("long", LONG)
def test_so_does_one_at_a_terminal(tmp_path, monkeypatch, long):
    """Ctrl-C interrupts all processes of a command; a signal may reach the first one alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write(tmp_path / "figures.csv", {})
    search = (SCENARIOS / "search_h100_successor.toml").read_text()
    (tmp_path / "endless.toml").write_text(search.replace("trials = 100", "trials = 100_000"))
    command, within, kept = LONG[long]
    with typed_at(*command, cwd=tmp_path) as terminal:
        terminal.until_it_shows(within)
        if long == "a comparison":
            terminal.process.send_signal(signal.SIGINT)
        else:
            terminal.press_ctrl_c()
        assert terminal.ended() == 130
    assert terminal.lines()[-1] == f"attnsim: interrupted; {kept}"
    assert "Traceback" not in terminal.shown, terminal.shown


def test_pressed_twice_it_says_so_once(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with typed_at("run", "ten_million_tokens_ring", cwd=tmp_path) as terminal:
        terminal.until_it_shows("lowering")
        for _ in range(5):
            terminal.press_ctrl_c()
        assert terminal.ended() == 130
    assert terminal.shown.count("interrupted") == 1
    assert "Traceback" not in terminal.shown, terminal.shown


def test_a_terminated_command_leaves_nothing_of_a_file_that_it_was_writing(tmp_path):
    kept = tmp_path / "kept.json"
    kept.write_text("whole")
    code = f"""
        import os, signal, sys, threading
        from pathlib import Path
        from sim.cli.app import main
        from sim.cli.commands import app
        from sim.inputs.files import whole_file

        def command():
            with whole_file(Path({str(kept)!r})) as partial:
                partial.write_text("a part")
                os.kill(os.getpid(), signal.SIGTERM)
                threading.Event().wait()

        app.command("wait")(command)
        main()
    """
    asked = [sys.executable, "-c", textwrap.dedent(code), "wait"]
    ended = subprocess.run(asked, capture_output=True, text=True, timeout=120, check=False)
    assert (ended.returncode, ended.stdout) == (143, "")
    assert ended.stderr == "attnsim: interrupted\n"
    assert [path.read_text() for path in tmp_path.iterdir()] == ["whole"]


def test_a_job_in_the_background_hears_no_ctrl_c():
    """Shells start it with the signal ignored."""
    code = """
        import signal, sys
        from sim.cli.interrupt import watched
        with watched():
            signal.raise_signal(signal.SIGINT)
    """
    ignoring = "import signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    asked = [sys.executable, "-c", ignoring + textwrap.dedent(code)]
    assert subprocess.run(asked, check=False).returncode == 0


def test_a_signal_that_comes_as_a_command_starts_is_one_line():
    code = """
        import signal, threading
        from sim.cli.interrupt import watched
        threading.Thread.start = lambda _: signal.raise_signal(signal.SIGTERM)
        with watched():
            pass
    """
    asked = [sys.executable, "-c", textwrap.dedent(code)]
    ended = subprocess.run(asked, capture_output=True, text=True, timeout=120, check=False)
    assert (ended.returncode, ended.stderr) == (143, "attnsim: interrupted\n")

"""The command line, in a process of its own or in this one, and what it is asked."""

import io
import subprocess
import sys
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from unittest.mock import patch

import pytest

from sim.cli.app import main

ATTNSIM = Path(sys.executable).with_name("attnsim")
GOOD = {
    "workload": "heads = 8\nhead_dim = 64\nseq_len = 1024",
    "hardware": 'profile = "h100-sxm"',
    "schedule": 'name = "flash2"',
}
Done = subprocess.CompletedProcess[str]


def attnsim(*arguments: object, cwd: Path) -> Done:
    """`attnsim` as a person starts it."""
    command = [str(ATTNSIM), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def called(*arguments: object, cwd: Path = Path()) -> Done:
    """The same without another Python."""
    out, err, command = io.StringIO(), io.StringIO(), ["attnsim", *map(str, arguments)]
    with (
        chdir(cwd),
        patch("sys.argv", command),
        patch("sim.cli.app.is_compiling", return_value=False),  # this process goes on
        redirect_stdout(out),
        redirect_stderr(err),
        pytest.raises(SystemExit) as ended,
    ):
        main()
    return Done(command, ended.value.code or 0, out.getvalue(), err.getvalue())


def printed_by(*arguments: object) -> str:
    """What a command prints that does what it is asked."""
    done = called(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def scenario(folder: Path, **changes: str) -> Path:
    """The file of a good scenario, some of its tables changed."""
    tables = {**GOOD, **changes}
    text = "\n".join(
        f"[[{name}]]\n{body}" if name == "schedule" else f"[{name}]\n{body}"
        for name, body in tables.items()
    )
    path = folder / "mine.toml"
    path.write_text(text)
    return path


def assert_one_line(done: Done, *parts: str) -> None:
    """The command was refused in one line, which has these parts."""
    assert done.returncode == 2, done
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    for part in parts:
        assert part in done.stderr, done.stderr

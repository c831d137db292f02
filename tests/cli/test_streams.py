"""What is printed may be lost, in a closed pipe or on a full disk: files are still written."""

import os
import subprocess

import pytest

from tests.support.commands import ATTNSIM, assert_one_line, attnsim, scenario

WRITING = ("run", "mine.toml", "--trace", "trace.json")


def redirected(command, where, cwd):
    """`attnsim` as a shell starts it; what it says on standard error, if that is open."""
    line = ["sh", "-c", f'exec "$0" "$@" {where}', str(ATTNSIM), *command]
    return subprocess.run(line, cwd=cwd, capture_output=True, text=True, check=False)


def written(folder):
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def folder(tmp_path):
    scenario(tmp_path)
    return tmp_path


def test_a_closed_pipe_ends_nothing_and_is_told_by_the_code(folder):
    ours, its = os.pipe()
    os.close(ours)
    done = subprocess.run(
        [ATTNSIM, *WRITING], cwd=folder, stdout=its, stderr=subprocess.PIPE, check=False
    )
    os.close(its)
    assert (done.returncode, done.stderr) == (141, b"")
    assert written(folder) == {"mine.toml", "trace.json"}


def test_a_full_disk_is_one_line(folder):
    done = redirected(WRITING, ">/dev/full", folder)
    assert done.returncode == 2
    said = "attnsim: standard output: cannot be written: No space left on device\n"
    assert done.stderr == said
    assert written(folder) == {"mine.toml", "trace.json"}


@pytest.mark.parametrize("where", [">&-", ">&- 2>&-", "2>/dev/full"])
def test_closed_streams_are_no_concern(folder, where):
    assert redirected(WRITING, where, folder).returncode == 0
    assert written(folder) == {"mine.toml", "trace.json"}


def test_nobody_to_tell_is_no_concern_either(folder):
    done = redirected(("run", "none.toml"), "2>/dev/full", folder)
    assert (done.returncode, done.stdout) == (2, "")


@pytest.mark.parametrize(
    ("encoding", "time"), [("ascii", " us "), ("latin-1", " µs "), ("utf-8", " µs ")]
)
def test_a_terminal_is_told_in_its_own_characters(folder, monkeypatch, encoding, time):
    monkeypatch.setenv("PYTHONIOENCODING", encoding)
    done = subprocess.run(
        [ATTNSIM, "run", "mine.toml"], cwd=folder, capture_output=True, check=True
    )
    assert time in done.stdout.decode(encoding)
    assert done.stderr == b""


def test_an_input_whose_name_is_no_text_is_refused(folder):
    name = os.fsdecode(b"mine\xff.toml")
    (folder / name).write_text('extends = "h100-sxm"')
    for command in (("run", name), ("run", "mine.toml", "--set", f"hardware.profile={name}")):
        done = attnsim(*command, cwd=folder)
        assert_one_line(done, "mine\\udcff.toml", "is no text (UTF-8)")


@pytest.mark.parametrize(
    "setting", [os.fsdecode(b"title=\xff"), 'schedule.flash2.label="a\\u001bb"']
)
def test_a_setting_has_no_commands_for_a_terminal_and_is_text(folder, setting):
    done = attnsim("run", "mine.toml", "--set", setting, "--out", "out", cwd=folder)
    assert_one_line(done, "--set: ")
    assert not (folder / "out").exists()


def test_a_name_that_is_no_text_is_shown_escaped(folder, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "utf-8:strict")  # unlike that of the C locale
    name = os.fsdecode(b"kept\xff")
    done = attnsim("run", "mine.toml", "--out", name, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "results.json and figures are in kept\\udcff" in done.stdout

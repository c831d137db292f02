"""Tab in a shell: names of what there is, and files where one may stand instead."""

import os
import subprocess

import pytest

from sim.inputs.files import shipped_names
from sim.schedules import SCHEDULES
from tests.support.commands import ATTNSIM, printed_by


def completed(*words: str, cwd) -> list[str]:
    """What bash offers behind these words, the last of which is not finished."""
    asked = {
        "_ATTNSIM_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(("attnsim", *words)),
        "COMP_CWORD": str(len(words)),
    }
    done = subprocess.run(
        [ATTNSIM], env=os.environ | asked, cwd=cwd, capture_output=True, text=True, check=True
    )
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("sched",), ["schedules"]),
        (("run", "million"), ["million_tokens", "million_tokens_decode"]),
        (("run", "mi"), ["million_tokens", "million_tokens_decode", "mine.toml"]),
        (("run", "fol"), ["folder/"]),
        (("run", "folder/"), ["folder/deep.toml"]),
        (("sweep", "x", "--engine", "ref"), ["reference"]),
        (("schedules", "show", "flash_"), ["flash_decoding"]),
        (("scenarios", "show", "mi"), ["million_tokens", "million_tokens_decode"]),
        (("profiles", "show", "h100"), ["h100-pcie", "h100-sxm"]),
        (("profiles", "check", "mi"), ["mine.toml"]),
        (("fit", "--hardware", "t4,h100-s"), ["t4,h100-sxm"]),
        (("fit", "--model", "gpt2-l"), ["gpt2-large"]),
        (("fit", "--schedule", "cascad"), ["cascade"]),
        (("validate", "run", "--campaign", "h1"), ["h100"]),
    ],
)
def test_what_may_stand_there_is_offered(words, offered, tmp_path):
    for name in ("mine.toml", "mine.txt", ".hidden.toml", "folder/deep.toml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert completed(*words, cwd=tmp_path) == offered


def test_all_names_are_offered(tmp_path):
    assert completed("schedules", "show", "", cwd=tmp_path) == list(SCHEDULES)
    assert completed("run", "", cwd=tmp_path) == shipped_names("scenarios")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_has_its_script(shell, monkeypatch):
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    assert "_ATTNSIM_COMPLETE" in printed_by("--show-completion", shell)

"""What the README shows is run as it stands there."""

import re
from pathlib import Path

from tests.support.commands import printed_by

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def block(language: str, holding: str) -> str:
    """The README's block of code in that language that holds a text."""
    blocks = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    (found,) = [text for text in blocks if holding in text]
    return found


def test_the_scenario_runs(tmp_path):
    path = tmp_path / "question.toml"
    path.write_text(block("toml", "[[schedule]]"))
    assert "window and sinks" in printed_by("run", path, "--set", "workload.seq_len=1024")


def test_the_python_runs(capsys):
    exec(block("python", "simulate"), {})
    ratio, *_ = capsys.readouterr().out.split()
    assert float(ratio) > 1


def test_the_table_is_what_the_example_prints(monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")
    printed = [line.split() for line in printed_by("run", "flash_vs_naive").splitlines()]
    for line in block("", "held back by").splitlines():
        assert line.split() in printed or not line.strip("─ "), line


def test_it_is_short_and_its_picture_comes_first():
    lines = README.splitlines()
    assert len(lines) <= 150
    assert lines[2].startswith("![")

"""Help pages: every command has one, which fits 80 columns and says all that was written."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
import typer

from sim.cli.commands import app
from tests.support.commands import printed_by


def pages(command: Any, *names: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command and group, by the words that one types."""
    yield names, command
    for name, below in getattr(command, "commands", {}).items():
        yield from pages(below, *names, name)


PAGES = dict(pages(typer.main.get_command(app)))


@pytest.fixture(autouse=True)
def terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERMINAL_WIDTH", "80")


@pytest.mark.parametrize("words", PAGES, ids=" ".join)
def test_a_page_shows_every_word_within_80_columns(words):
    page = printed_by(*words, "--help")
    assert max(map(len, page.splitlines())) <= 80
    said = [PAGES[words].help or "", *(getattr(p, "help", "") or "" for p in PAGES[words].params)]
    shown = "".join(re.findall(r"[^\s│─`]", page))
    for word in " ".join(said).replace("`", "").split():
        assert word in shown, word

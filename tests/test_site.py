"""The site builds without a warning or a network, and its reference has all that there is."""

import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import typer

from sim import Record
from sim.cli.commands import app
from sim.inputs.hardware import HardwareProfile
from sim.inputs.workload import WorkloadTable
from sim.schedules import SCHEDULES

ROOT = Path(__file__).parents[1]
NOWHERE = "http://127.0.0.1:9"  # a proxy that there is not


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder that it is built into."""
    built = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(built)]
    offline = os.environ | {"http_proxy": NOWHERE, "https_proxy": NOWHERE}
    done = subprocess.run(command, cwd=ROOT, env=offline, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return built


def code_in(site, page):
    """What stands in the page as code."""
    html = (site / "reference" / page / "index.html").read_text(encoding="utf-8")
    return set(re.findall(r"<code>([^<]*)</code>", html)), set(
        re.findall(r'<h2 id="([^"]*)"', html)
    )


def test_every_page_is_in_it(site):
    for page in (ROOT / "docs").rglob("*.md"):
        assert (site / page.stem / "index.html").exists(), page
    for page in ("index.html", "contributing/index.html", "changelog/index.html"):
        assert (site / page).exists()
    assert not list(site.rglob("*.py"))


def test_its_pages_fetch_nothing_from_elsewhere(site):
    fetched = r"""<(?:script|img|iframe)[^>]*\ssrc=["']?https?:|<link[^>]*stylesheet[^>]*https?:"""
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    assert not [page for page in pages if re.search(fetched, page.read_text(encoding="utf-8"))]


def test_notebooks_stand_there_with_their_pictures(site):
    for notebook in (ROOT / "docs" / "notebooks").glob("*.ipynb"):
        page = site / "notebooks" / notebook.stem / "index.html"
        assert "data:image/png;base64" in page.read_text(encoding="utf-8")


def test_the_reference_has_every_schedule_with_its_options(site):
    code, headings = code_in(site, "schedules")
    assert set(SCHEDULES) <= headings
    options = {option for kind in SCHEDULES.values() for option in kind.model_fields}
    assert options - {"name", "label"} <= code


@pytest.mark.parametrize(
    ("page", "keys"),
    [
        ("scenario", set(WorkloadTable.model_fields)),
        ("profile", set(HardwareProfile.model_fields) - {"name", "source"}),
        ("record", {field.name for field in fields(Record)} | {"hbm_bytes", "settings"}),
    ],
)
def test_the_reference_has_every_key(site, page, keys):
    assert keys <= code_in(site, page)[0]


def test_the_reference_has_every_command_with_its_options(site):
    code, headings = code_in(site, "commands")

    def check(name, command):
        inner = getattr(command, "commands", {})
        for part, one in inner.items():
            check(f"{name}-{part}", one)
        if not inner:
            assert name in headings
            assert {one.opts[0] for one in command.params if one.opts[0].startswith("-")} <= code

    check("attnsim", typer.main.get_command(app))

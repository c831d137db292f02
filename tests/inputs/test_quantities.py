"""Texts of quantities: by pint, and kept from one process to the next."""

import json
import math
import subprocess
import sys

import pytest

from sim.inputs import quantities


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where they are kept."""
    monkeypatch.setattr(quantities, "folder_beside", lambda _: tmp_path)
    quantities._kept.cache_clear()
    yield tmp_path
    quantities._kept.cache_clear()


def read(text: str) -> tuple[float, str]:
    """As a process reads it that has just begun."""
    quantities._kept.cache_clear()
    return quantities.in_base_units.__wrapped__(text)


@pytest.mark.parametrize(
    ("text", "number", "unit"),
    [
        ("25 MiB", 26214400.0, "B"),
        ("3.35 TB/s", 3.35e12, "B/s"),
        ("1830 MHz", 1.83e9, "1/s"),
        ("4,096 FLOP/clock", 4096.0, "FLOP/clock"),
        ("-12.5 pJ/B", -12.5e-12, "J/B"),
        ("inf W", math.inf, "J/s"),
    ],
)
def test_a_quantity_is_the_same_when_it_was_kept(folder, monkeypatch, text, number, unit):
    first = read(text)
    assert first == (pytest.approx(number, rel=1e-15), unit)
    quantities._kept().keep()
    monkeypatch.setattr(quantities, "_registry", None)
    assert read(text) == first


def test_it_is_read_anew_where_what_is_kept_is_damaged_or_of_other_units(folder, monkeypatch):
    read("25 MiB")
    quantities._kept().keep()
    (file,) = folder.iterdir()
    for damaged in (b"", b"[]", b'{"25 MiB": 1}', file.read_bytes()[:-1]):
        file.write_bytes(damaged)
        assert read("25 MiB") == (26214400.0, "B")
    file.write_text(json.dumps({"25 MiB": [1.0, "B"]}))
    assert read("25 MiB") == (1.0, "B")
    monkeypatch.setattr(quantities, "version", lambda _: "another pint's")
    assert read("25 MiB") == (26214400.0, "B")


def test_no_more_is_kept_than_has_room(folder, monkeypatch):
    monkeypatch.setattr(quantities, "MOST_KEPT", 2)
    for number in range(4):
        read(f"{number} B")
        quantities._kept().keep()
    (file,) = folder.iterdir()
    assert json.loads(file.read_text()) == {"2 B": [2.0, "B"], "3 B": [3.0, "B"]}


def test_a_profile_that_was_read_before_loads_no_pint():
    code = (
        "import sys; from sim.inputs.hardware import load_profile; load_profile('h100-sxm');"
        "print(any(name in sys.modules for name in ('pint', 'numba')))"
    )
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "False\n"

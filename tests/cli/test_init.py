"""`attnsim init`: what it writes runs, says only what is true, and takes the place of nothing."""

import json
import re
import tomllib
from pathlib import Path

import pytest
from jsonschema import Draft7Validator

from sim.inputs.hardware import load_profile
from tests.support.commands import Done, assert_one_line, called

FILES = ["my_gpu.toml", "question.toml"]


@pytest.fixture
def begun(tmp_path) -> Path:
    done = called("init", "mine", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    return tmp_path / "mine"


def ran(folder: Path) -> Done:
    return called("run", folder / "question.toml", "--json")


def uncomment(path: Path) -> None:
    """Take away the # of lines that start with it and no space."""
    path.write_text(re.sub(r"^#(?=[\w\"\[])", "", path.read_text(), flags=re.MULTILINE))


def test_what_it_writes_runs_as_it_is(begun):
    assert called("profiles", "check", begun / "my_gpu.toml").returncode == 0
    naive, flash = json.loads(ran(begun).stdout)
    assert (naive["hardware"], naive["status"], flash["status"]) == ("my_gpu", "ok", "ok")
    assert naive["hbm_capacity_bytes"] == 96 * 2**30


def test_what_else_it_says_that_one_may_say_runs_too(begun):
    for name in FILES:
        uncomment(begun / name)
    assert load_profile(str(begun / "my_gpu.toml")).power.tdp == 800
    question = begun / "question.toml"
    question.write_text(re.sub("^model = .*", "", question.read_text(), flags=re.MULTILINE))
    records = json.loads(ran(begun).stdout)
    assert [record["status"] for record in records] == ["ok"] * (2 * 3 * 2)


@pytest.mark.parametrize("change", ["as they are", "uncommented"])
def test_editors_accept_it_by_the_schemas_beside_it(begun, change):
    for name in FILES:
        path = begun / name
        if change == "uncommented":
            uncomment(path)
        mark, _, schema = path.read_text().partition("\n")[0].partition(" ")
        assert mark == "#:schema"
        Draft7Validator(json.loads((begun / schema).read_text())).validate(
            tomllib.loads(path.read_text())
        )


@pytest.mark.parametrize("name", [*FILES, "schemas/profile.json"])
def test_nothing_is_overwritten(name, tmp_path):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("mine")
    assert_one_line(called("init", cwd=tmp_path), f"init .: {name} is there already")
    assert path.read_text() == "mine"
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [path]


def test_where_no_folder_can_be_it_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    assert_one_line(called("init", "file", cwd=tmp_path), "init file/schemas: cannot be made")

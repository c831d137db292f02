"""Every command says in one line which kinds of files it does not take."""

import pytest

from sim.cli.kinds import kind_of
from sim.inputs.files import find_toml, read_toml, shipped_names
from tests.support.commands import assert_one_line, called

KINDS = {
    "flash_vs_naive": "scenario",
    "sweep_l2": "scenario",
    "search_tiles": "search",
    "consumer_24gb": "fit",
    "context_windows": "model",
    "serving": "serving",
}


@pytest.mark.parametrize(("name", "kind"), KINDS.items())
def test_a_file_says_by_its_tables_what_it_asks(name, kind):
    assert kind_of(read_toml(find_toml(name, "scenarios", "scenario"))) == kind


def test_every_shipped_file_is_of_a_known_kind():
    for name in shipped_names("scenarios"):
        data = read_toml(find_toml(name, "scenarios", "scenario"))
        assert kind_of(data) in KINDS.values()
        assert (kind_of(data) in ("scenario", "search")) == ("schedule" in data)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "search_tiles"), "search: attnsim explore search search_tiles runs it"),
        (
            ("run", "serving", "--trace", "x.json"),
            "--report, --trace, --export, --engine and --wide go with",
        ),
        (
            ("run", "context_windows", "--set", "model.gpus=2"),
            "--set: model.gpus: model is a row each of [[model]]: say it there",
        ),
        (("sweep", "serving"), "a sweep takes a scenario that has [[schedule]] tables"),
        (("sweep", "search_tiles"), "search: unknown key; known: hardware"),
        (("explore", "sensitivity", "serving"), "sensitivity is of [[schedule]] tables"),
        (("explore", "serve", "serving"), "the explorer is of [[schedule]] tables"),
        (("explore", "serve", "search_tiles"), "the explorer is of [[schedule]] tables"),
        (("explore", "search", "flash_vs_naive"), "search: missing"),
    ],
)
def test_a_file_of_another_kind_is_refused_in_one_line(arguments, message, tmp_path):
    assert_one_line(called(*arguments, cwd=tmp_path), message)

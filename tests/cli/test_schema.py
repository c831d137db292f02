"""JSON schemas of files: they accept what the parser accepts, and refuse what they can."""

import json
import tomllib
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft7Validator

from sim.cli.kinds import kind_of, question_of
from sim.cli.schema import Kind, text_of
from sim.inputs.files import InputError, checked
from sim.inputs.hardware import load_profile
from sim.runs.scenario import ScenarioText
from tests.support.commands import GOOD, printed_by
from validate.campaign import CampaignFile

HOUSE = Path(__file__).parents[2]
FOLDERS: dict[str, Kind] = {
    "scenarios": "scenario",
    "hw_profiles": "profile",
    "hw_profiles/architectures": "profile",
    "validate/campaigns": "campaign",
}
FILES = [path for folder in FOLDERS for path in sorted((HOUSE / folder).glob("*.toml"))]


@pytest.fixture(scope="module")
def accepts() -> Callable[[Kind, Any], bool]:
    """Whether a kind's shipped schema accepts a file's tables."""
    read = {kind: json.loads(_shipped(kind).read_text()) for kind in FOLDERS.values()}
    validators = {kind: Draft7Validator(schema) for kind, schema in read.items()}
    return lambda kind, data: validators[kind].is_valid(data)


def _shipped(kind: Kind) -> Path:
    return HOUSE / "sim/cli/schemas" / f"{kind}.json"


def _kind(path: Path) -> Kind:
    return FOLDERS[path.parent.relative_to(HOUSE).as_posix()]


@pytest.mark.parametrize("kind", dict.fromkeys(FOLDERS.values()))
def test_the_shipped_schema_is_that_of_the_models(kind):
    """If not: `attnsim schema KIND > sim/cli/schemas/KIND.json`."""
    Draft7Validator.check_schema(json.loads(text_of(kind)))
    assert _shipped(kind).read_text() == text_of(kind) == printed_by("schema", kind)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_shipped_file_names_its_schema_which_accepts_it(path, accepts):
    first, _, text = path.read_text().partition("\n")
    mark, _, schema = first.partition(" ")
    assert mark == "#:schema"
    assert (path.parent / schema).resolve() == _shipped(_kind(path))
    assert accepts(_kind(path), tomllib.loads(text))


def _with_a_key_more(node: Any, root: Any) -> Iterator[Any]:
    """The file with a key that nobody knows, in one table after the other."""
    if isinstance(node, dict):
        node["nonsense"] = 1
        yield deepcopy(root)
        del node["nonsense"]
    inner = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    for value in inner:
        yield from _with_a_key_more(value, root)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_key_that_nobody_knows_is_refused_in_every_table(path, accepts):
    data = tomllib.loads(path.read_text())
    for wrong in _with_a_key_more(data, data):
        assert not accepts(_kind(path), wrong), wrong


def _scenario(**tables: str) -> dict[str, Any]:
    parts = {**GOOD, **tables}
    return tomllib.loads(
        "\n".join(
            f"[[{name}]]\n{body}" if name in ("schedule", "fit", "model") else f"[{name}]\n{body}"
            for name, body in parts.items()
            if body
        )
    )


def _refused(data: dict[str, Any]) -> bool:
    """Whether the parser refuses a scenario's tables."""
    text = ScenarioText(data, "mine", "mine.toml", None)
    try:
        text.scenario() if kind_of(data) == "scenario" else question_of(text)
    except InputError:
        return True
    return False


RIGHT = {
    "lengths in groups and lists": {"workload": 'model = "gpt2"\nseq_len = "1,024"'},
    "counts in groups": {"workload": 'model = "gpt2"\nseq_len = 64\nbatch = "1,024"'},
    "SMs in groups": {"hardware": 'profile = "t4"\nsm.count = "1,024"'},
    "a list of lengths": {"workload": 'model = "gpt2"\nphase = "decode"\nseq_kv = [100, 200]'},
    "a model as people write it": {"workload": 'model = "Llama 3 8B"\nbatch = 2'},
    "a tile as it is shown": {"schedule": 'name = "flash2"\ntile = "64 x 64"'},
    "a device's total": {"hardware": 'profile = "4090"\ntensor.fp16 = "330 TFLOP/s"'},
    "groups of thousands": {"hardware": 'profile = "t4"\nl2.capacity = "12,288 B"'},
    "a range": {"sweep": '"workload.batch" = { from = 1, to = 8, steps = 3, log = true }'},
    "schedules' options swept": {"sweep": '"schedule.flash2.stages" = [1, 2]'},
    "keys swept without quotation marks": {
        "sweep": 'workload.batch = [1, 2]\nhardware.l2.capacity = ["9 MB"]'
    },
    "a profile by its number": {"hardware": "profile = 4090"},
    "devices swept": {"hardware": "sm.count = 80", "sweep": '"hardware.profile" = ["t4", "l4"]'},
}


@pytest.mark.parametrize("case", RIGHT)
def test_what_people_write_is_accepted_by_both(case, accepts):
    data = _scenario(**RIGHT[case])
    assert not _refused(data)
    assert accepts("scenario", data)


NONE = dict.fromkeys(GOOD, "")
WRONG = {
    "unknown key": {"workload": "sequence = 3"},
    "wrong dtype": {"workload": GOOD["workload"] + '\ndtype = "fp61"'},
    "zero": {"workload": GOOD["workload"] + "\nbatch = 0"},
    "too many sequences": {"workload": GOOD["workload"] + "\nbatch = 70_000"},
    "true for a number": {"workload": 'model = "gpt2"\nbatch = true'},
    "text for a number": {"workload": 'heads = "many"\nhead_dim = 64\nseq_len = 1024'},
    "no unit": {"hardware": 'profile = "t4"\nhbm.bandwidth = 3e12'},
    "a unit alone": {"hardware": 'profile = "t4"\nhbm.bandwidth = "TB/s"'},
    "a share above one": {"hardware": 'profile = "t4"\ncalibration.hbm.read = 1.5'},
    "too many SMs": {"hardware": 'profile = "h100-sxm"\nsm.count = 1_000_000_000'},
    "misspelt schedule": {"schedule": 'name = "flahs2"'},
    "an option of another schedule": {"schedule": 'name = "naive"\nwindow = 3\nkept = 4'},
    "no multiple": {"schedule": 'name = "flash2"\ntile = { q = 65, kv = 64 }'},
    "swept key unknown": {"sweep": '"workload.seqlen" = [1, 2]'},
    "nothing swept": {"sweep": '"workload.batch" = []'},
    "no schedule": {"schedule": ""},
    "fit of no model": {**NONE, "fit": 'hardware = "t4"\nweights = "int5"'},
    "a use that is none": {**NONE, "fit": 'model = "gpt2"\nhardware = "t4"\ngpus = 0'},
    "a pass of no phase": {**NONE, "hardware": 'profile = "t4"', "model": 'model = "gpt2"\nx = 1'},
    "no profile": {**NONE, "hardware": "sm.count = 3", "model": 'model = "gpt2"'},
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_refused_by_both(case, accepts):
    data = _scenario(**WRONG[case])
    assert _refused(data)
    assert not accepts("scenario", data)


def test_profiles_and_campaigns_are_checked_too(accepts, tmp_path):
    path = tmp_path / "mine.toml"
    for text in ('extends = "h100"\nl3.capacity = "1 MB"', 'extends = "t4"\nhbm.capacity = 3'):
        path.write_text(text)
        with pytest.raises(InputError):
            load_profile(str(path))
        assert not accepts("profile", tomllib.loads(text))
    campaign = {"title": "mine", "group": [{"family": "f", "split": "half", "workload": {}}]}
    with pytest.raises(InputError):
        checked(CampaignFile, campaign, "mine.toml")
    assert not accepts("campaign", campaign)

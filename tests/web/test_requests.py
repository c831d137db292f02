"""Requests that no page sends are told so in one line: they reach neither simulator nor log."""

import copy
import json

import pytest

from sim.runs.scenario import ScenarioText
from sim.web.app import app_of
from sim.web.explorer import Explorer
from tests.support.page_requests import bodies

QUESTION = {
    "workload": {"heads": 2, "head_dim": 64, "seq_len": 256},
    "hardware": {"profile": "t4"},
    "schedule": [{"name": "flash2"}],
}


@pytest.fixture
def asked(tmp_path):
    """Sends a body, as text, from the page's own origin: its status and answer."""
    explorer = Explorer(ScenarioText(QUESTION, "question", "a test", tmp_path), tmp_path)
    app = app_of(explorer)
    client = app.server.test_client()

    def ask(body):
        answer = client.post(
            "/_dash-update-component",
            base_url="http://127.0.0.1",
            data=body if isinstance(body, str | bytes) else json.dumps(body),
            content_type="application/json",
        )
        return answer.status_code, answer.get_data(as_text=True)

    ask.bodies = {body["output"]: body for body in bodies(app, explorer)}
    ask.client = client
    return ask


def with_value(body, of, value):
    """The body, its control `of` saying that."""
    changed = copy.deepcopy(body)
    entries = [
        entry
        for one in [*changed["inputs"], *changed["state"]]
        for entry in (one if isinstance(one, list) else [one])
    ]
    (its,) = (entry for entry in entries if entry["id"] == of)
    its["value"] = value
    return changed


def test_what_the_page_asks_is_answered(asked):
    for body in asked.bodies.values():
        assert asked(body)[0] == 200


ABSURD = [
    *[("profile", value) for value in ("none.toml", "../../x.toml", 3, None, ["t4"], {"a": 1})],
    *[("model", value) for value in ("my-own", "", 1, None, [])],
    *[("seq_len", value) for value in (-1, 10**9, 1.5, float("nan"), "3", True, None)],
    *[("heads", value) for value in (3, 10**30, -1, "8", 1.0)],
    *[("schedules", value) for value in (["none"], "flash2", [[]], ["flash2", "flash2"], {})],
    *[("tile", value) for value in ("1 × 1", None, 64, [])],
    *[({"figure": "hbm.bandwidth"}, value) for value in (1e308, -1e308, float("inf"), "1", [])],
    *[({"figure": "calibration.hbm.read"}, value) for value in (0, -1, 2)],
    *[("beside", value) for value in ("none.toml", None, 3)],
    *[("write", value) for value in (-1, 1.5, "1", [])],
]


@pytest.mark.parametrize(("control", "value"), ABSURD, ids=repr)
def test_what_a_control_cannot_say_is_one_line_and_writes_nothing(asked, tmp_path, control, value):
    status, said = asked(with_value(asked.bodies["wrote.children"], control, value))
    assert status == 400
    assert len(said.splitlines()) == 1
    assert "the page's control cannot say so" in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [None, 1, [], "?" * 10_000])
def test_an_address_of_any_form_is_no_query(asked, value):
    body = with_value(asked.bodies["whole.children"], "query", value)
    assert asked(body)[0] == 400


def test_what_the_browser_answers_itself_is_not_asked(asked):
    body = asked.bodies["whole.children"]
    assert asked(body | {"output": "query.data"})[0] == 400


@pytest.mark.parametrize("key", ["output", "outputs", "inputs", "state", "changedPropIds"])
@pytest.mark.parametrize("value", [None, 1, "x", [], [1], {}, [[]], [{"id": []}]], ids=repr)
def test_what_is_no_request_is_one_line(asked, key, value):
    body = asked.bodies["wrote.children"]
    status, said = asked(body | {key: value})
    assert status == 400 or (key == "changedPropIds" and value == [] and status == 200)
    assert len(said.splitlines()) == 1


def test_what_is_no_json_or_too_long_is_refused(asked, caplog):
    for body in ("", "{", "[" * 100_000, "1" * 6000, b"\xff\xfe", "[]", "null"):
        assert asked(body)[0] == 400
    assert asked(" " * 2**21)[0] == 413
    for path in ("none/a.js", "dash/none.js", "dash/../../../etc/passwd"):
        url = f"/_dash-component-suites/{path}"
        assert asked.client.get(url, base_url="http://127.0.0.1").status_code == 404
    assert not caplog.records

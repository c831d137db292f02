"""What a sweep varies: lists, ranges, samples, and what is wrong with them."""

import tomllib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.inputs.axes import design_of
from sim.inputs.files import InputError
from tests.support.limits import seconds_of_at_most

SEQ = "workload.seq_len"


def values_of(sweep):
    return list(design_of(sweep, "mine.toml"))


def test_lists_and_ranges_make_a_grid_whose_last_key_varies_fastest():
    points = values_of({"a.x": [1, 2], "a.y": {"from": 10, "to": 30, "steps": 3}})
    assert [tuple(p.values()) for p in points] == [
        (1, 10), (1, 20), (1, 30), (2, 10), (2, 20), (2, 30)
    ]  # fmt: skip


@given(st.integers(1, 10**6), st.integers(2, 1000), st.integers(2, 40), st.booleans())
def test_ranges_keep_their_ends_and_are_even(first, ratio, steps, log):
    last = first * ratio
    whole = [p[SEQ] for p in values_of({SEQ: bounds(first, last, steps, log)})]
    spaced = (np.geomspace if log else np.linspace)(first, last, steps)
    assert (whole[0], whole[-1]) == (first, last)
    assert whole == list(dict.fromkeys(whole))
    assert set(whole) <= {v for x in spaced for v in (int(x), int(x) + 1, first, last)}
    text = values_of({SEQ: bounds(f"{first} MB", f"{last} MB", steps, log)})
    assert [float(p[SEQ].removesuffix(" MB")) for p in text] == pytest.approx(
        list(spaced), rel=1e-5
    )


@given(st.integers(-1000, 1000), st.integers(-1000, 1000), st.integers(1, 300))
def test_steps_of_a_size_start_at_the_first_end_and_stop_at_the_other_or_short_of_it(a, b, step):
    ahead = 1 if a <= b else -1
    expected = list(range(a, b + ahead, ahead * step))
    assert [p[SEQ] for p in values_of({SEQ: {"from": a, "to": b, "step": step}})] == expected
    text = {"from": f"{a / 10} MB", "to": f"{b / 10} MB", "step": f"{step / 10} MB"}
    tenths = [float(p[SEQ].removesuffix(" MB")) * 10 for p in values_of({SEQ: text})]
    assert tenths == pytest.approx(expected)


def bounds(first, last, steps, log):
    return {"from": first, "to": last, "steps": steps, "log": log}


@pytest.mark.parametrize("method", ["sobol", "latin_hypercube"])
def test_samples_fill_every_stratum_once(method):
    sample = {"method": method, "points": 64, "seed": 3}
    sample["bounds"] = {
        "a.x": {"from": 0.0, "to": 1.0},
        "a.y": {"from": 1.0, "to": 1e6, "log": True},
    }
    points = values_of({"sample": sample})
    assert points == values_of({"sample": sample})
    assert points != values_of({"sample": {**sample, "seed": 4}})
    for shares in (
        [p["a.x"] for p in points],
        [np.log(p["a.y"]) / np.log(1e6) for p in points],
    ):
        assert sorted(int(share * 64 - 1e-4) for share in shares) == list(range(64))


def test_the_sweep_that_the_guide_shows_is_one():
    guide = (Path(__file__).parents[2] / "docs/cluster.md").read_text(encoding="utf-8")
    shown = guide.partition("```toml\n")[2].partition("```")[0]
    points = values_of(tomllib.loads(shown)["sweep"])
    assert len(points) == 2 * 8 * 7 * 256
    assert all(64 <= point["hardware.sm.count"] <= 256 for point in points)


def test_samples_of_whole_numbers_and_steps_are_of_all_of_them_alike():
    sample = {"method": "sobol", "points": 32}
    sample["bounds"] = {
        "a.x": {"from": 1, "to": 4},
        "a.y": {"from": "1 MB", "to": "8 MB", "steps": 8},
    }
    points = values_of({"sample": sample})
    assert Counter(p["a.x"] for p in points) == dict.fromkeys(range(1, 5), 8)
    assert Counter(p["a.y"] for p in points) == {f"{n} MB": 4 for n in range(1, 9)}


def test_samples_choose_from_lists_and_go_with_a_grid():
    sample = {"method": "sobol", "points": 6, "bounds": {"a.x": ["p", "q"]}}
    points = values_of({"a.z": [1, 2], "sample": sample})
    assert len(points) == 12
    assert {(p["a.z"], p["a.x"]) for p in points} == {(1, "p"), (1, "q"), (2, "p"), (2, "q")}


def test_very_many_keys_of_one_value_take_no_more_than_each_its_time():
    with seconds_of_at_most(10):  # the square of their number took minutes
        (point,) = values_of({f"a.{n}": [n] for n in range(10**5)})
    assert len(point) == 10**5


MANY = {"from": 1, "to": 300, "step": 1}
BAD_SWEEPS = {
    "many steps": ({"a.x": {"from": 1.0, "to": 2.0, "steps": 10**12}}, ["at most 65536"]),
    "small steps": ({"a.x": {"from": 0.0, "to": 1e300, "step": 1e-3}}, ["at most 65,536 values"]),
    "many points": ({"a.x": MANY, "a.y": MANY}, ["sweep: at most 65,536 points"]),
    "many keys": ({f"a.{n}": [1, 2] for n in range(5000)}, ["sweep: at most 65,536 points"]),
    "many samples": (
        {"sample": {"method": "sobol", "points": 10**12, "bounds": {SEQ: [1]}}},
        ["sweep.sample.points = 1000000000000: it must be at most 65536"],
    ),
    "vast ends": ({"a.x": {"from": 1, "to": 10**30, "steps": 9}}, ["whole numbers of at most"]),
    "long text": ({"a.x": {"from": "1 a" + " " * 10**5, "to": "b", "steps": 2}}, ["a number was"]),
    "one step": ({SEQ: {"from": 1, "to": 2, "steps": 1}}, ["sweep.workload.seq_len.steps = 1"]),
    "log of zero": (
        {SEQ: {"from": 0, "to": 2, "steps": 3, "log": True}},
        ["sweep.workload.seq_len", "above zero"],
    ),
    "two units": ({"a.x": {"from": "1 MB", "to": "2 GB", "steps": 3}}, ["the same unit"]),
    "no number": ({"a.x": {"from": "small", "to": "large", "steps": 3}}, ['"small"']),
    "infinite": ({"a.x": {"from": 1.0, "to": float("inf"), "steps": 3}}, ["finite"]),
    "no steps": ({SEQ: {"from": 1, "to": 2}}, ["seq_len: steps or step: missing"]),
    "steps and step": ({SEQ: {"from": 1, "to": 2, "steps": 2, "step": 1}}, ["neither with steps"]),
    "log and step": ({SEQ: {"from": 1, "to": 2, "step": 1, "log": True}}, ["nor with log"]),
    "backward step": ({SEQ: {"from": 1, "to": 2, "step": -1}}, ["step must be above zero"]),
    "unit of step": ({"a.x": {"from": "1 MB", "to": "2 MB", "step": 1}}, ["the same unit"]),
    "true": ({SEQ: {"from": True, "to": 2, "steps": 2}}, ["a number was expected"]),
    "old spelling": ({SEQ: {"low": 1, "high": 2, "steps": 2}}, ["spelt from and to"]),
    "no table": ({"sample": 3}, ["sweep.sample = 3: a table"]),
    "misspelt": ({SEQ: {"from": 1, "to": 2, "steps": 3, "lg": True}}, ["unknown key"]),
    "neither": ({SEQ: 4096}, ["a list of values or a range"]),
    "no text": ({SEQ: ""}, ['seq_len = "": a list of values']),
    "neither, as a file has it": ({SEQ: True}, ["seq_len = true: a list of values"]),
    "method": (
        {"sample": {"method": "halton", "points": 4, "bounds": {SEQ: [1]}}},
        ["sweep.sample.method", "'sobol' or 'latin_hypercube'"],
    ),
    "twice": (
        {SEQ: [1], "sample": {"method": "sobol", "points": 4, "bounds": {SEQ: [1]}}},
        ["swept and sampled"],
    ),
}


@pytest.mark.parametrize("case", BAD_SWEEPS)
def test_a_bad_sweep_is_one_line(case):
    sweep, parts = BAD_SWEEPS[case]
    with pytest.raises(InputError) as raised:
        values_of(sweep)
    message = str(raised.value)
    assert "\n" not in message
    for part in ("mine.toml: sweep", *parts):
        assert part in message

"""Two results.json files: parts sum to the whole, pairs are found, bad files are one line."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from sim.inputs.files import InputError
from sim.inputs.units import show
from sim.report.difference import sentence, show_comparison
from sim.runs.difference import BETWEEN, LEFT_IN_L2, compare, difference
from sim.runs.job import run_scenario
from sim.runs.record import Record
from sim.runs.results_file import dumps, load, save
from sim.runs.scenario import make_scenario
from tests.support.commands import called

WORKLOAD = {"heads": 4, "head_dim": 64, "seq_len": 1024}
OPTIONS = {"ring": {"gpus": 2}, "tree_decoding": {"gpus": 4}}


def run(
    *names: str, profile="h100-sxm", sweep=None, workload=None, options=None, **hardware
) -> list[Record]:
    scenario = make_scenario(
        {
            "workload": {**WORKLOAD, **(workload or {})},
            "hardware": {"profile": profile, **hardware},
            "schedule": [
                {"name": name, **OPTIONS.get(name, {}), **(options or {})} for name in names
            ],
            "sweep": sweep or {},
        },
        "a test",
        "a test",
    )
    return [outcome.record for outcome in run_scenario(scenario)]


def compared(folder: Path, first: list[Record], second: list[Record]):
    save(first, folder / "a.json")
    save(second, folder / "b.json")
    return compare(folder / "a.json", folder / "b.json")


@pytest.fixture(scope="module")
def base() -> list[Record]:
    return run("naive", "flash2")


@pytest.fixture(scope="module")
def slow_hbm() -> list[Record]:
    return run("naive", "flash2", hbm={"bandwidth": "1 TB/s"}, l2={"capacity": "4 MiB"})


def test_what_is_saved_is_loaded(tmp_path, base):
    too_large = run("naive", workload={"seq_len": 262144})
    ring = run("ring", sweep={"workload.seq_len": [1024, 2048]})
    records = [*base, *too_large, *ring]
    assert [r.status for r in records].count("out of memory") == 1
    save(records, tmp_path / "results.json")
    assert load(tmp_path / "results.json") == records
    assert dumps(load(tmp_path / "results.json")) == (tmp_path / "results.json").read_text()


@pytest.mark.parametrize("name", ["naive", "flash2", "ring", "tree_decoding"])
def test_parts_sum_to_the_whole(name):
    """Causes, kernels and bytes explain all of the difference, on several GPUs too."""
    decode = {"phase": "decode"} if name == "tree_decoding" else {}
    (before,) = run(name, workload=decode)
    (after,) = run(name, profile="a100-sxm-80gb", workload={"seq_len": 2048, **decode})
    d = difference(before, after)
    assert d.time_s.difference > 0
    for parts, whole in (
        (d.time_by_cause_s, d.time_s),
        (d.time_by_kernel_s, d.time_s),
        (d.hbm_bytes_by_kernel, d.hbm_bytes),
    ):
        for side in ("before", "after", "difference"):
            total = sum(getattr(change, side) for change in parts.values())
            assert total == pytest.approx(getattr(whole, side), rel=1e-9)
    assert min(change.before for change in d.time_by_kernel_s.values()) > -1e-12
    left = d.hbm_bytes_by_kernel[LEFT_IN_L2]
    assert (left.before, left.after) == (before.l2_dirty_bytes, after.l2_dirty_bytes)


def test_kernels_of_a_name_count_together(base):
    """Decoding launches one kernel again and again; what is between the launches is told apart."""
    (once,) = run("decode", workload={"phase": "decode", "tokens": 1})
    (thrice,) = run("decode", workload={"phase": "decode", "tokens": 3})
    d = difference(once, thrice)
    assert set(d.time_by_kernel_s) == {once.kernels[0].name, BETWEEN}
    gap_s = 0.4e-6  # h100-sxm's calibration.launch.gap, waited for before all but the first
    latency_s = 3e-6
    assert d.time_by_kernel_s[BETWEEN].after >= latency_s + 2 * gap_s - 1e-12


def test_slower_hbm_and_less_l2_are_told_as_such(base, slow_hbm):
    naive, flash = (difference(*pair) for pair in zip(base, slow_hbm, strict=True))
    assert next(iter(naive.time_by_cause_s)) == "hbm"
    assert naive.hbm_bytes.ratio > 1.2
    said = sentence(naive)
    assert said.startswith("naive with hardware.hbm.bandwidth 1 TB/s instead of the profile's, ")
    assert "more on HBM bandwidth" in said
    assert "By kernel: " in said
    assert "By kernel: " not in sentence(flash)


def test_a_difference_backwards_is_its_negative(base, slow_hbm):
    there, back = difference(base[0], slow_hbm[0]), difference(slow_hbm[0], base[0])
    assert there.time_s.difference == -back.time_s.difference
    assert there.time_s.ratio * back.time_s.ratio == pytest.approx(1)
    assert {c: x.difference for c, x in there.time_by_cause_s.items()} == {
        c: -x.difference for c, x in back.time_by_cause_s.items()
    }
    part = f"{show(there.time_by_cause_s['hbm'].difference, 's')} {{}} on HBM bandwidth"
    assert part.format("more") in sentence(there)
    assert part.format("less") in sentence(back)


SKIPPED = {"steps_skipped": 1e8, "time_error": 0.01, "hbm_error": 0.0}


@pytest.mark.parametrize(
    ("before", "after", "ratio", "said"),
    [
        (SKIPPED, SKIPPED, 1.03, "A and B were fast-forwarded, which alone may make such a diff"),
        (None, SKIPPED, 1.015, "B was fast-forwarded, which alone may make such a difference in"),
        (SKIPPED, None, 0.985, "A was fast-forwarded, which alone may make such a difference in"),
        (SKIPPED, SKIPPED, 1.05, None),  # more than twice the errors
        (None, SKIPPED, 1.03, None),
        (SKIPPED, SKIPPED, 1.0, None),  # no difference
        (None, None, 1.001, None),
    ],
)
def test_a_difference_of_the_order_of_fast_forwards_error_is_said_to_be(
    base, before, after, ratio, said
):
    record = base[1]
    first = replace(record, fast_forward=before)
    second = replace(record, fast_forward=after, time_s=record.time_s * ratio)
    text = sentence(difference(first, second))
    assert ("fast-forwarded" in text) == (said is not None)
    if said is not None:
        assert said in text
        assert "time (estimated error " in text
        assert "HBM traffic (" not in text


def test_the_same_run_twice_says_so(tmp_path, base):
    comparison = compared(tmp_path, base, base)
    assert [d.time_s.ratio for d in comparison.differences] == [1, 1]
    assert all("as long as before" in sentence(d) for d in comparison.differences)
    assert all(d.asked == {} for d in comparison.differences)


def test_records_are_matched_by_schedule_and_point(tmp_path):
    first = run("naive", "flash2", sweep={"workload.seq_len": [256, 512]})
    second = run("flash2", sweep={"workload.seq_len": [512, 1024]})
    comparison = compared(tmp_path, first, second)
    (d,) = comparison.differences
    assert (d.schedule, d.point, d.time_s.ratio) == ("flash2", {"workload.seq_len": 512}, 1)
    lone = {(u.schedule, u.point["workload.seq_len"], u.reason[-6:]) for u in comparison.unpaired}
    assert lone == {
        ("naive", 256, "a.json"),
        ("naive", 512, "a.json"),
        ("flash2", 256, "a.json"),
        ("flash2", 1024, "b.json"),
    }


def test_single_points_are_matched_by_schedule_whatever_they_are(tmp_path, base):
    other = run("naive", "flash2", sweep={"hardware.profile": ["a100-sxm-80gb"]})
    comparison = compared(tmp_path, base, other)
    assert [d.schedule for d in comparison.differences] == ["naive", "flash2"]
    assert comparison.differences[0].asked == {"hardware": ("h100-sxm", "a100-sxm-80gb")}


def test_overrides_and_options_that_differ_are_named(tmp_path, capsys):
    first = run("flash2", l2={"capacity": "50 MiB", "source": "mine"}, hbm={"bandwidth": "2 TB/s"})
    second = run(
        "flash2",
        l2={"capacity": "100 MiB", "source": "yours"},
        hbm={"bandwidth": "2000 GB/s"},  # the same
        options={"stages": 3, "tile": {"q": 128, "kv": 64}, "label": "flash2"},
    )
    comparison = compared(tmp_path, first, second)
    assert comparison.differences[0].asked == {
        "hardware.l2.capacity": ("50 MiB", "100 MiB"),
        "schedule.flash2.stages": (None, 3),
        "schedule.flash2.tile.q": (None, 128),
        "schedule.flash2.tile.kv": (None, 64),
    }
    show_comparison(comparison)
    said = capsys.readouterr().out
    assert "hardware.l2.capacity 100 MiB instead of 50 MiB" in said
    assert "schedule.flash2.stages 3 instead of the default" in said


def test_a_swept_override_is_named_once(tmp_path):
    first, second = (
        run("flash2", sweep={"hardware.l2.capacity": [c], "schedule.flash2.stages": [s]})
        for c, s in (("50 MiB", 2), ("100 MiB", 3))
    )
    (d,) = compared(tmp_path, first, second).differences
    assert d.asked == {
        "hardware.l2.capacity": ("50 MiB", "100 MiB"),
        "schedule.flash2.stages": (2, 3),
    }
    assert second[0].overrides == {"l2.capacity": "100 MiB"}
    assert second[0].options == {"name": "flash2", "stages": 3}


def test_files_from_before_options_were_kept_are_read_and_compared_by_their_points(tmp_path):
    new = run("flash2", sweep={"hardware.l2.capacity": ["50 MiB"]}, options={"stages": 3})
    save(new, tmp_path / "new.json")
    (told,) = json.loads((tmp_path / "new.json").read_text())
    del told["options"], told["overrides"]
    told["point"]["hardware.l2.capacity"] = "60 MiB"
    (tmp_path / "old.json").write_text(json.dumps([told]))
    (old,) = load(tmp_path / "old.json")
    assert (old.options, old.overrides) == (None, None)
    (d,) = compare(tmp_path / "old.json", tmp_path / "new.json").differences
    assert d.asked == {"hardware.l2.capacity": ("60 MiB", "50 MiB")}


def test_what_does_not_fit_has_no_time_to_compare(tmp_path, base):
    (large,) = run("naive", workload={"seq_len": 262144})
    comparison = compared(tmp_path, base, [large])
    assert comparison.differences == []
    (lone,) = [u for u in comparison.unpaired if u.schedule == "naive"]
    assert lone.reason.startswith(f"out of memory in {tmp_path / 'b.json'} (S needs ")


def test_the_command_says_it_and_gives_json(tmp_path, base, slow_hbm):
    old = [replace(r, versions={**r.versions, "attnsim": "0.0.1"}) for r in slow_hbm]
    compared(tmp_path, base, old)
    paths = tmp_path / "a.json", tmp_path / "b.json"
    done = called("compare", *paths)
    said = done.stdout
    assert done.returncode == 0
    assert said.startswith("B has hardware.hbm.bandwidth 1 TB/s instead of the profile's, ")
    assert "\nnaive takes " in said
    assert "0.0.1 wrote B" in said
    assert "P = softmax(S)" in said
    assert "B / A" in said
    told = json.loads(called("compare", *paths, "--json").stdout)
    assert told["versions"][1] == "0.0.1"
    naive = told["differences"][0]
    assert naive["time_s"] == {"before": base[0].time_s, "after": slow_hbm[0].time_s}


def changed(*path, to=None, version=None):
    """A change of the file: the figure at `path` set, or removed where `to` is None."""

    def change(data):
        if version:
            data[0]["versions"]["attnsim"] = version
        *parents, last = path
        place = data
        for part in parents:
            place = place[part]
        if to is None:
            del place[last]
        else:
            place[last] = to
        return json.dumps(data)

    return change


NOT_ONE = "not a results.json of schedules"
BAD = {
    "not JSON": (lambda data: "{", [NOT_ONE]),
    "not text": (lambda data: "\udcff\udcfe", [NOT_ONE]),
    "another question's": (lambda data: json.dumps({"title": "fit"}), [NOT_ONE]),
    "empty": (lambda data: "[]", ["no records"]),
    "key missing": (changed(1, "kernels", 0, "ctas"), ["record 1: kernels.0.ctas: missing"]),
    "key unknown": (changed(0, "tmie_s", to=1), ["record 0: tmie_s: unknown key"]),
    "text for a number": (changed(0, "time_s", to="1 ms"), ["record 0: time_s: ", "number"]),
    "no time": (changed(0, "time_s"), ["record 0: time_s: missing"]),
    "time of nothing": (changed(0, "time_s", to=0), ["record 0: time_s: ", "must be above 0"]),
    "infinite": (changed(0, "time_s", to=float("inf")), ["record 0: time_s: ", "finite"]),
    "vast": (changed(0, "hbm_read_bytes", to=10**4000), ["record 0: 1000", "1e+100 was expected"]),
    "tiny": (changed(0, "time_s", to=5e-324), ["record 0: 5e-324: a number of 1e-100"]),
    "of commands": (changed(0, "schedule", to="a\x1b[2J"), ["the control character 0x1b"]),
    "status": (changed(1, "status", to="fine"), ["record 1: status: "]),
    "another version": (
        changed(0, "gflops", to=3, version="7.0"),
        ["record 0: gflops: unknown key (attnsim 7.0 wrote it"],
    ),
    "twice": (lambda data: json.dumps([data[0], data[0]]), ["'naive' stands there twice"]),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_one_line(case, tmp_path, base):
    change, parts = BAD[case]
    save(base, tmp_path / "good.json")
    text = change([asdict(record) for record in base])
    (tmp_path / "bad.json").write_text(text, errors="surrogateescape")
    with pytest.raises(InputError) as error:
        compare(tmp_path / "good.json", tmp_path / "bad.json")
    assert len(str(error.value).splitlines()) == 1
    for part in [f"{tmp_path / 'bad.json'}: ", *parts]:
        assert part in str(error.value)


def test_a_missing_file_ends_the_command(tmp_path):
    done = called("compare", "no.json", tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "attnsim: no.json: cannot be read: No such file or directory\n"

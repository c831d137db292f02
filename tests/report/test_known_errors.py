"""Known errors: the data file is what the simulator comes to, and the documents say the same."""

import json
import re
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pytest

from benchmarks import validation
from sim.inputs.hardware import load_profile
from sim.report.known_errors import all_known_errors, known_errors, shipped
from sim.runs.scenario import load_scenario
from validate.compare import COLD
from validate.measurement import Measurements, save_measurements
from validate.published import SCHEDULES, published, published_profiles, rows

ROOT = Path(__file__).parents[2]
RENEW = (
    "predictions are no longer as far from measurements as is shipped: if that is meant, run "
    "`python benchmarks/validation.py --write` (a minute), and read docs/validation.md's text again"
)
LONG = "eager"  # takes most of the minute


def quick(profile: str) -> Measurements:
    measured = published(profile)
    points = [point for point in measured.points if point.family != LONG]
    return measured.model_copy(update={"points": points})


@pytest.fixture(scope="module")
def recomputed():
    return validation.data_of(map(quick, published_profiles()))


def test_the_data_file_is_what_the_simulator_comes_to(recomputed):
    expected = [error for error in shipped()["errors"] if error["family"] != LONG]
    of_published = [e for e in expected if e["title"].startswith("published")]
    assert len(recomputed["errors"]) == len(of_published), RENEW
    for ours, theirs in zip(recomputed["errors"], of_published, strict=True):
        ours = json.loads(json.dumps(ours))
        numbers = {key for key, value in theirs.items() if isinstance(value, float)}
        assert {k: v for k, v in ours.items() if k not in numbers} == {
            k: v for k, v in theirs.items() if k not in numbers
        }, RENEW
        for key in numbers:
            assert ours[key] == pytest.approx(theirs[key], abs=1e-9), RENEW
    pairs = {one["title"]: one["pairs"] for one in shipped()["compared"]}
    for one in recomputed["compared"]:
        if not any(point.family == LONG for point in published(one["profile"]).points):
            assert one["pairs"] == pairs[one["title"]], RENEW


def test_no_measurement_or_profile_has_changed_since_the_data_file_was_made():
    now = {
        (one.title, one.device.profile): validation.digest(one, load_profile(one.device.profile))
        for one in validation.all_measurements()
    }
    made_of = {(one["title"], one["profile"]): one["inputs"] for one in shipped()["compared"]}
    assert made_of == now, RENEW


def test_shipped_measurement_files_are_judged_on_their_test_split(tmp_path, monkeypatch):
    measured = published("a100-sxm-80gb")
    first, *others = measured.points
    points = [first.model_copy(update={"split": "train"}), *others]
    own = measured.model_copy(update={"title": "our own", "points": points})
    monkeypatch.setattr(validation, "MEASURED", tmp_path)
    save_measurements(own, tmp_path / "a100.json")
    *of_others, ours = validation.all_measurements()
    assert (len(of_others), ours) == (len(published_profiles()), own)
    (error,) = validation.data_of([ours])["errors"]
    assert (error["title"], error["points"]) == ("our own", len(others))


def test_every_published_row_that_can_be_predicted_is_counted():
    counted = [
        row
        for row in rows()
        if row["split"] == "test" and row["pass"] == "fwd" and row["value"] != "OOM"
        if SCHEDULES.get(row["algorithm"])
    ]
    errors = [error for error in all_known_errors() if error.sources]
    assert sum(error.points for error in errors) == len(counted) > 100
    for error in errors:
        own = [
            row
            for row in counted
            if (row["gpu"].rstrip("?"), row["algorithm"]) == (error.profile, error.family)
            and error.quantity == f"time, {row['l2']} L2"
        ]
        assert error.points == len(own)
        assert set(error.sources) == {row["source"] for row in own}


def table(path: str, header: str) -> list[list[str]]:
    """The cells of a document's table that has such a column, without its header."""
    text = (ROOT / path).read_text(encoding="utf-8")
    found = [t for t in re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE) if header in t]
    (lines,) = (t.splitlines()[2:] for t in found)
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def as_said(value: float | None, cell: str) -> bool:
    """Whether a cell is the value to the digits that it shows."""
    if value is None:
        return cell == ""
    unit = Decimal("0.01") if cell.endswith("%") else Decimal(1)
    said = Decimal(cell.rstrip("%"))
    half = Decimal(1).scaleb(said.as_tuple().exponent) / 2
    return abs(said * unit - Decimal(value)) <= half * unit


def cold(error) -> bool:
    return error.quantity == COLD


def test_the_table_of_docs_is_the_data():
    errors = {
        (e.profile, f"{e.family}: {COLD}" if cold(e) else e.family): e
        for e in all_known_errors()
        if e.sources
    }
    lines = table("docs/validation.md", "rank correlation")
    assert sorted((gpu, kernel) for gpu, kernel, *_ in lines) == sorted(errors)
    for gpu, kernel, points, mean, worst, bias, correlation, roofline in lines:
        e = errors[gpu, kernel]
        assert int(points) == e.points
        assert as_said(e.mean_error, mean), (gpu, kernel, RENEW)
        assert as_said(e.worst_error, worst), (gpu, kernel, RENEW)
        assert as_said(e.bias, bias), (gpu, kernel, RENEW)
        assert as_said(e.rank_correlation, correlation), (gpu, kernel, RENEW)
        assert as_said(e.roofline_error, roofline), (gpu, kernel, RENEW)


def test_the_table_of_the_readme_is_the_data():
    gpus = {words: profile for profile, words in validation.GPUS.items()}
    kernels = {words: family for family, words in validation.KERNELS.items()}
    errors = {(e.profile, e.family, cold(e)): e for e in all_known_errors() if e.sources}
    lines = table("README.md", "mean error of time")
    assert len(lines) == len(errors)
    for gpu, kernel, l2, points, mean, worst, roofline in lines:
        e = errors.pop((gpus[gpu], kernels[kernel], l2 == "cold"))
        assert int(points) == e.points
        assert as_said(e.mean_error, mean), (gpu, kernel, RENEW)
        assert as_said(e.worst_error, worst), (gpu, kernel, RENEW)
        assert as_said(e.roofline_error, roofline), (gpu, kernel, RENEW)


@pytest.mark.parametrize(
    ("path", "profile"),
    [("README.md", "h100-sxm"), ("docs/validation.md", "h100-sxm"),
     ("docs/validation.md", "rtx-3090")],
)  # fmt: skip
def test_the_pairs_in_the_text_are_the_data(path, profile):
    (pairs,) = (
        one["pairs"]
        for one in shipped()["compared"]
        if one["profile"] == profile and one["title"].startswith("published")
    )
    text = " ".join((ROOT / path).read_text(encoding="utf-8").split())
    said = (
        rf"\b{pairs['right']} of {pairs['total']}\b[^.]*roofline[^.]*\b{pairs['roofline_right']}\b"
    )
    assert re.search(said, text), RENEW


def test_a_schedule_is_known_by_its_name_and_implementation_the_given_gpu_first():
    cuda = known_errors({"name": "flash2"}, "a100-sxm-80gb")
    assert [e.profile for e in cuda] == ["a100-sxm-80gb", *2 * ["h100-sxm"], *2 * ["rtx-4090"]]
    assert {e.family for e in cuda} == {"flash2"}
    assert cuda == known_errors({"name": "flash2", "implementation": "cuda"}, "a100-sxm-80gb")
    tiled = {"name": "flash2", "implementation": "triton", "tile": {"q": 64, "kv": 64}}
    triton = known_errors(tiled, "rtx-3090")
    assert triton[0].profile == "rtx-3090"
    assert {e.family for e in triton} == {"triton_flash2"}
    eager = known_errors({"name": "naive", "framework": "pytorch"}, "b200")
    assert {e.family for e in eager} == {"eager"}
    assert known_errors({"name": "naive"}, "b200") == []  # its passes alone are not what was timed
    assert known_errors({"name": "mamba2"}, "h100-sxm") == []


def test_the_schedules_of_a_scenario_can_be_asked_as_they_are():
    (point,) = load_scenario("flash_vs_naive").points
    known = {
        s.title: known_errors(s.model_dump(mode="json"), point.hardware.name)
        for s in point.schedules
    }
    assert known["flash2"]
    assert not known["pruned"]


def test_asking_imports_no_compiler_no_torch_and_no_simulator():
    script = (
        "import sys; from sim.report.known_errors import known_errors; "
        "assert known_errors({'name': 'flash2'}, 'h100-sxm'); "
        "known = ('numba', 'torch', 'scipy', 'pydantic', 'sim.engine'); "
        "print(*(name for name in known if name in sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == ""


def test_renewing_puts_a_table_in_the_place_of_the_old_one(tmp_path):
    path = tmp_path / "a.md"
    path.write_text("Before.\n\n| a | b |\n|---|---|\n| 1 | 2 |\n| 3 | 4 |\n\nAfter | all.\n")
    validation.renew(path, "| a | b |\n|---|---|\n| 5 | |\n")
    assert path.read_text() == "Before.\n\n| a | b |\n|---|---|\n| 5 | |\n\nAfter | all.\n"

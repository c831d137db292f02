"""Known errors: the data file is what the simulator comes to, and the documents say the same."""

import json
import re
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pytest

from benchmarks import validation
from sim import schedules
from sim.inputs.hardware import load_profile
from sim.report.known_errors import (
    FIRST_IMPLEMENTATION,
    DeviceError,
    all_known_errors,
    device_error,
    known_errors,
    known_time_error,
    measured_errors,
    regime_of,
    shipped,
)
from sim.runs.scenario import load_scenario
from tests.support.commands import printed_by
from tests.support.tables_of_figures import write
from validate.compare import COLD
from validate.figures import read_figures
from validate.measurement import Measurements, save_measurements
from validate.published import SCHEDULES, TRAINED, published, published_profiles, rows
from validate.stick import measure_up

ROOT = Path(__file__).parents[2]
RENEW = (
    "predictions are no longer as far from measurements as is shipped: if that is meant, run "
    "`python benchmarks/validation.py --write` (a minute), and read docs/validation.md's text again"
)
# They take most of the time. Triton's prefill is told by an A100 and an RTX 3090 too, and an A100
# is an A800.
LONG = ("eager", "eager_2_3", "nsa_selected", "nsa_compressed", "nsa_compressed_only")
LONG_ON = (("h100-sxm", "triton_flash2"), ("a800-sxm-80gb", "flash2"))


def is_long(profile: str, family: str) -> bool:
    return family in LONG or (profile, family) in LONG_ON


def quick(profile: str) -> Measurements:
    measured = published(profile)
    points = [point for point in measured.points if not is_long(profile, point.family)]
    return measured.model_copy(update={"points": points})


@pytest.fixture(scope="module")
def recomputed():
    return validation.data_of(map(quick, published_profiles()))


def test_the_data_file_is_what_the_simulator_comes_to(recomputed):
    expected = [e for e in shipped()["errors"] if not is_long(e["profile"], e["family"])]
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
        points = published(one["profile"]).points
        if not any(is_long(one["profile"], point.family) for point in points):
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
    first, *others = (point for point in measured.points if point.family == "flash2")
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
        if row["split"] == "test" and row["value"] != "OOM"
        if row["pass"] == "fwd" or row["algorithm"] in TRAINED
        if SCHEDULES.get(row["algorithm"])
    ]
    errors = [error for error in all_known_errors() if error.sources]
    assert sum(error.points for error in errors) == len(counted) > 100
    for error in errors:
        own = [
            row
            for row in counted
            if row["gpu"].rstrip("?") == error.profile
            and row["algorithm"] + row["pass"].replace("fwd", "", 1)
            == error.family.replace(" fwd", "")
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
    others = [*2 * ["h100-sxm"], "h20", *2 * ["b200"], "a800-sxm-80gb", "rtx-a5000"]
    assert [e.profile for e in cuda] == ["a100-sxm-80gb", *others, *2 * ["rtx-4090"]]
    assert {e.family for e in cuda} == {"flash2"}
    assert cuda == known_errors({"name": "flash2", "implementation": "cuda"}, "a100-sxm-80gb")
    tiled = {"name": "flash2", "implementation": "triton", "tile": {"q": 64, "kv": 64}}
    triton = known_errors(tiled, "rtx-3090")
    assert triton[0].profile == "rtx-3090"
    assert {e.family for e in triton} == {"triton_flash2"}
    eager = known_errors({"name": "naive", "framework": "pytorch"}, "b200")
    assert {e.family for e in eager} == {"eager", "eager_2_3"}
    assert known_errors({"name": "naive"}, "b200") == []  # its passes alone are not what was timed
    assert known_errors({"name": "mamba2"}, "h100-sxm") == []


def test_whose_kernels_a_schedule_is_unless_told_is_known_without_it():
    for name, kind in schedules.SCHEDULES.items():
        if "implementation" in kind.model_fields:
            default = kind.model_fields["implementation"].default
            assert FIRST_IMPLEMENTATION.get(name, "cuda") == default


def test_the_schedules_of_a_scenario_can_be_asked_as_they_are():
    (point,) = load_scenario("flash_vs_naive").points
    known = {
        s.title: known_errors(s.model_dump(mode="json"), point.hardware.name)
        for s in point.schedules
    }
    assert known["flash2"]
    assert not known["pruned"]


# --- by regime -------------------------------------------------------------------------------

PREFILL = {"phase": "prefill", "batch": 1, "seq_q": 1024, "seq_kv": 1024}
FLASH2 = {"name": "flash2", "phase": "prefill"}


def row(**changes):
    """A row of `measured`: FA2 prefill of few tokens on an H100, ten points 10% too slow."""
    return {
        "family": "FA2 prefill",
        "device": "h100-sxm",
        "split": "test",
        "quantity": "time",
        "regime": "few, batch 1",
        "points": 10,
        "mean": 0.10,
        "worst": 0.20,
        "bias": 0.10,
        "roofline": 0.50,
        "constant": 0.30,
        "schedules": [FLASH2],
    } | changes


@pytest.fixture
def measured(monkeypatch):
    """Puts such rows in the place of the data file's."""

    def put(*rows):
        data = {"errors": [], "measured": [row(**changes) for changes in rows]}
        monkeypatch.setattr("sim.report.known_errors.shipped", lambda: data)

    return put


@pytest.mark.parametrize(
    ("batch", "tokens", "regime"),
    [(1, 1024, "few, batch 1"), (2, 1025, "middle, batch many"), (1, 8192, "middle, batch 1"),
     (64, 8193, "long, batch many")],
)  # fmt: skip
def test_a_regime_is_how_many_tokens_and_sequences(batch, tokens, regime):
    assert regime_of(batch, tokens) == regime


def test_a_schedules_error_is_told_in_the_regime_asked_about_its_gpu_first(measured):
    measured(
        {"device": "l40s", "mean": 0.40, "bias": -0.40, "worst": 0.9},
        {"device": "h20", "split": "transfer", "points": 30, "mean": 0.20, "constant": None},
        {},
        {"family": "FlashInfer prefill"},
        {"regime": "long, batch 1"},
        {"quantity": "DRAM bytes"},
        {"schedules": [FLASH2 | {"phase": "training"}]},
        {"schedules": [FLASH2 | {"implementation": "triton"}]},
        {"schedules": [{"name": "flash3", "phase": "prefill"}]},
    )
    here, there_too, others = measured_errors({"name": "flash2"}, "h100-sxm", PREFILL)
    assert (here.family, here.where, here.points, here.mean_error) == (
        "FA2 prefill", "h100-sxm", 10, 0.10,
    )  # fmt: skip
    assert (there_too.family, there_too.where) == ("FlashInfer prefill", "h100-sxm")
    assert (others.where, others.points, others.worst_error) == ("2 other devices", 40, 0.9)
    assert others.mean_error == pytest.approx((10 * 0.40 + 30 * 0.20) / 40)
    assert others.bias == pytest.approx((-10 * 0.40 + 30 * 0.10) / 40)
    assert others.constant_error is None
    decoding = PREFILL | {"phase": "decode", "seq_q": 1}
    assert measured_errors({"name": "flash2"}, "h100-sxm", decoding) == []


def test_decoding_is_as_long_as_its_cache(measured):
    measured({"regime": "long, batch 1", "schedules": [FLASH2 | {"phase": "decode"}]})
    decoding = {"phase": "decode", "batch": 1, "seq_q": 1, "seq_kv": 9000}
    assert len(measured_errors({"name": "flash2"}, "a30", decoding)) == 1
    assert measured_errors({"name": "flash2"}, "a30", decoding | {"seq_kv": 1}) == []


QUESTION = ("run", "flash_vs_naive", "--set", "workload.seq_len=256")


def test_a_run_says_where_a_schedule_is_known_to_be_off(measured):
    measured({"device": "l40s", "mean": 0.31, "bias": -0.31}, {"device": "l4", "mean": 0.29})
    known = "flash2: predicted times of FA2 prefill at such sizes (few, batch 1) are"
    assert f"{known} 30% off on 2 other devices (20 measured)" in printed_by(*QUESTION)
    seldom = {"family": "FlashInfer prefill", "points": 9, "mean": 0.8}
    measured({"mean": 0.31, "bias": -0.31}, {"device": "l40s", "mean": 0.9}, seldom)
    printed = printed_by(*QUESTION)
    assert f"{known} 31% off on h100-sxm, too fast (10 measured)" in printed
    assert printed.count(" off on ") == 1  # by what was measured most
    measured({"mean": 0.19}, {"device": "l40s", "mean": 0.9})  # what its own GPU says is enough
    assert " off on " not in printed_by(*QUESTION)
    measured({"mean": 0.9, "points": 4})
    assert " off on " not in printed_by(*QUESTION)


def test_a_report_tells_the_error_in_the_regime_asked_about(measured, tmp_path):
    measured({"constant": None}, {"regime": "long, batch 1"})
    printed_by(*QUESTION, "--report", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    (table,) = re.findall(r'<table id="measured">.*?</table>', page, re.DOTALL)
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", one) for one in table.split("<tr>")[2:]]
    assert [cells for cells in rows if cells[0] == "flash2"] == [
        ["flash2", "FA2 prefill", "h100-sxm", "few, batch 1", "10", "10.0%", "20.0%", "+10.0%",
         "50.0%", ""],
    ]  # fmt: skip
    assert "naive: no measurement of such a kernel" in page
    assert "flash2: no measurement of such a kernel" not in page


def test_a_devices_error_is_over_all_kernels_that_were_measured_on_it(measured):
    measured({}, {"points": 30, "mean": 0.30}, {"device": "h20", "split": "transfer"})
    assert device_error("h100-sxm") == DeviceError(40, pytest.approx(0.25), False)
    assert device_error("h20") == DeviceError(10, pytest.approx(0.10), True)
    assert device_error("gb10") is None
    lines = {line.split()[0]: line for line in printed_by("profiles").splitlines() if line.split()}
    assert lines["h100-sxm"].split()[-2:] == ["40", "25%"]
    assert lines["h20"].split()[-2:] == ["10", "10%*"]
    assert "%" not in lines["gb10"]


def test_what_is_published_of_a_device_counts_too():
    published = [e for e in all_known_errors() if e.profile == "rtx-3090"]
    known = device_error("rtx-3090")
    assert known.points >= sum(error.points for error in published) > 0


def test_the_table_of_strangers_figures_in_the_readme_is_the_data():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    begin, end = validation.MARKS
    between = text.partition(begin)[2].partition(end)[0]
    assert between.strip() == validation.readme_measured(shipped()["measured"]).strip(), RENEW


def test_a_family_in_the_readme_is_the_mean_over_its_points_in_each_split():
    rows = [
        row(points=30, mean=0.2),
        row(device="l40s"),
        row(device="h20", split="transfer", points=7, constant=None),
        row(family="seldom measured"),
        row(quantity="DRAM bytes", points=25, roofline=None, constant=None),
        row(quantity="DRAM bytes", family="another", points=75, mean=0.5, roofline=None),
        row(quantity="L2 bytes", points=99),
    ]
    *_, flash, dram = validation.readme_measured(rows).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in (flash, dram)]
    assert cells[0] == ["FA2 prefill", "40", "17.5%", "50.0%", "30.0%", "7", "10.0%", "50.0%", ""]
    assert cells[1] == ["DRAM bytes, all kernels", "100", "40.0%", *[""] * 6]


def test_the_data_say_which_schedule_predicted_a_regime(tmp_path):
    rows = ({}, {"gpu": "H200", "kernel": "sglang triton", "split": "transfer"}, {"split": "fit"})
    stick = measure_up(read_figures([write(tmp_path / "t.csv", *rows)]))
    data = validation.measured_data(stick)
    assert {one["split"] for one in data} == {"test", "transfer"}  # errors on `fit` are no errors
    by_device = {one["device"]: one for one in data}
    for judged in stick.judged:
        if judged.split != "fit":
            one, schedule = by_device[judged.device], judged.measured.case.schedule
            assert (one["regime"], one["points"]) == ("few, batch 1", 1)
            assert one["schedules"] == [
                {
                    "name": schedule.name,
                    "implementation": schedule.implementation,
                    "phase": "prefill",
                }
            ]


def test_writing_renews_the_data_file_and_the_tables_of_all_documents(tmp_path, monkeypatch):
    (tmp_path / "docs").mkdir()
    for name in ("README.md", "docs/validation.md", "docs/errors.md"):
        (tmp_path / name).write_text((ROOT / name).read_text(encoding="utf-8"), encoding="utf-8")
    figures = tmp_path / "figures"
    figures.mkdir()
    write(figures / "t.csv", *({"value": str(value)} for value in range(100, 120)))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(validation, "ROOT", tmp_path)
    monkeypatch.setattr(validation, "DATA", tmp_path / "known_errors.json")
    monkeypatch.setattr(validation, "all_measurements", list)
    monkeypatch.setattr("sys.argv", ["validation.py", str(figures), "--write"])
    validation.main()
    (one,) = json.loads((tmp_path / "known_errors.json").read_text())["measured"]
    assert (one["family"], one["points"]) == ("flash2", 20)
    readme = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert f"| flash2 | 20 | {one['mean']:.1%} |" in readme
    by_device = (tmp_path / "docs/errors.md").read_text(encoding="utf-8")
    assert "| flash2 | h100-sxm | time | 20 |" in by_device
    published = (tmp_path / "docs/validation.md").read_text(encoding="utf-8")
    assert "| h100-sxm | flash3 |" not in published  # of published tables there were none


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


def test_what_published_tables_say_of_pruned_attention_is_known():
    nsa = known_time_error({"name": "nsa"}, "h100-sxm", PREFILL)
    assert nsa is not None
    assert nsa.is_off
    assert (
        nsa.sentence() == "predicted times of nsa are 41% off on h100-sxm, too fast (12 measured)"
    )
    hip = known_time_error({"name": "hip"}, "rtx-4090", PREFILL)
    assert hip is not None
    assert not hip.is_off
    assert hip.sentence() == "predicted times of hip are 10% off on rtx-4090, too slow (2 measured)"
    elsewhere = known_time_error({"name": "hip"}, "b200", PREFILL)
    assert elsewhere is not None
    assert (elsewhere.where, elsewhere.points) == ("2 other devices", 4)


def test_a_run_says_which_schedules_nobody_measured(measured):
    measured({"device": "h100-sxm"})
    said = "pruned: no measured times are known to tell the error by"
    printed = printed_by(*QUESTION)
    assert f"naive, {said}" in printed

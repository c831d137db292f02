"""Nsight Compute's output: read into SI, merged launch by launch, its failures told in a line."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.waiting import GUARD_S, until
from validate import counters
from validate.counters import (
    HBM_READ,
    HBM_WRITE,
    L2_HIT,
    L2_MISS,
    L2_READ,
    METRIC_LISTS,
    TENSOR,
    TIME,
    NcuError,
    Row,
    counters_of,
    find_ncu,
    parse_csv,
    profile,
)

DATA = Path(__file__).parent / "data" / "ncu"
FIRST, HITS, MISSES, LONG = (
    (DATA / name).read_text() for name in ("first.csv", "hits.csv", "misses.csv", "long.csv")
)

FAKE_NCU = """#!{python}
# An ncu that answers from files: run NUMBER of the program by DATA/(NUMBER), as its name says.
import os, pathlib, subprocess, sys, time

here = pathlib.Path(__file__).parent
options = dict(zip(sys.argv[1:], sys.argv[2:]))
log = pathlib.Path(options["--log-file"])
with open(here / "runs", "a") as runs:
    print(*sys.argv[1:], "LC_ALL=" + os.environ["LC_ALL"], file=runs)
number = len((here / "runs").read_text().splitlines())
print("chatter of the program, with \\"quotes\\", and 1,234")
print("a warning of the program", file=sys.stderr)
answer = (here / str(number)).read_text()
if answer == "hang":
    child = subprocess.Popen(["sleep", "{hangs_s}"])
    (here / "child.begun").write_text(str(child.pid))
    (here / "child.begun").rename(here / "child")
    time.sleep({hangs_s})
if answer == "silence":
    sys.exit(0)
status, where, text = answer.split("\\n", 2)
if where == "log":
    log.write_text(text)
else:
    print(text)
sys.exit(int(status))
"""


def ok(text: str) -> str:
    return f"0\nlog\n{text}"


@pytest.fixture
def fake_ncu(tmp_path, monkeypatch):
    """A function that puts an ncu first on PATH which answers its first, second ... run so."""

    def install(*answers: str) -> Path:
        folder = tmp_path / "bin"
        folder.mkdir()
        ncu = folder / "ncu"
        ncu.write_text(FAKE_NCU.format(python=sys.executable, hangs_s=2 * GUARD_S))
        ncu.chmod(0o755)
        for number, answer in enumerate(answers, 1):
            (folder / str(number)).write_text(answer)
        monkeypatch.setenv("PATH", str(folder), prepend=":")
        return folder

    return install


def rows(text: str) -> list[Row]:
    return parse_csv(text, "a test")


def refusal(text: str) -> str:
    with pytest.raises(NcuError) as caught:
        rows(text)
    message = str(caught.value)
    assert message.startswith("a test: ")
    assert "\n" not in message
    return message


# Reading


def test_the_raw_page_is_read_into_si_units_with_percentages_as_shares():
    first, second = rows(FIRST)
    assert first["Kernel Name"] == "naive_qk"
    assert first[TIME] == pytest.approx(1.048576e-3)
    assert first[HBM_READ] == 16_777_216
    assert first[HBM_WRITE] == 134_217_728
    assert first[L2_READ] == 2_097_152
    assert first[TENSOR] == pytest.approx(0.375)
    assert second[TIME] == pytest.approx(98_304e-9)
    assert second[TENSOR] == 0


def test_the_long_form_is_read_too_with_rule_rows_and_rows_without_rule_columns():
    first, second = rows(LONG)
    assert first == {
        "Kernel Name": "naive_qk",
        HBM_READ: pytest.approx(16.78e6),
        HBM_WRITE: pytest.approx(134.22e6),
        TIME: pytest.approx(1.05e-3),
        TENSOR: pytest.approx(0.375),
    }
    assert second[HBM_READ] == pytest.approx(1.34e9)
    assert second[HBM_WRITE] == pytest.approx(1e6)
    assert second[TIME] == pytest.approx(98.3e-6)
    assert L2_READ not in second


@pytest.mark.parametrize(
    ("unit", "seconds"),
    [
        ("ns", 1e-9),
        ("nsecond", 1e-9),
        ("us", 1e-6),
        ("usecond", 1e-6),
        ("ms", 1e-3),
        ("msecond", 1e-3),
        ("s", 1),
        ("second", 1),
    ],
)
def test_every_spelling_of_a_unit_of_time_is_seconds(unit, seconds):
    assert rows(FIRST.replace('"ns"', f'"{unit}"'))[0][TIME] == pytest.approx(1_048_576 * seconds)


@pytest.mark.parametrize(("unit", "size"), [("Kbyte", 1e3), ("Mbyte", 1e6), ("Gbyte", 1e9)])
def test_scaled_bytes_are_bytes(unit, size):
    scaled = FIRST.replace('"byte"', f'"{unit}"').replace("16,777,216", "16.777")
    assert rows(scaled)[0][HBM_READ] == pytest.approx(16.777 * size)


@pytest.mark.parametrize("absent", ["n/a", "(!) n/a", "nan", ""])
def test_a_metric_that_ncu_could_not_count_is_absent(absent):
    first, second = rows(FIRST.replace('"37.50"', f'"{absent}"'))
    assert TENSOR not in first
    assert TENSOR in second


def test_chatter_before_between_and_after_the_rows_is_passed_over():
    lines = []
    for number, line in enumerate(FIRST.splitlines()):
        lines += [f"step {number}, 1,234 of 5,678", '"quoted" chatter', "", line, "==PROF== x"]
    assert rows("\n".join(lines)) == rows(FIRST)
    assert rows(FIRST.replace("\n", "\r\n")) == rows(FIRST)


def test_launches_stay_in_order_and_apart_where_two_processes_number_them_alike():
    other = "\n".join(FIRST.splitlines()[-2:]).replace('"4242"', '"4243"')
    assert [row["Kernel Name"] for row in rows(FIRST + other)] == ["naive_qk", "naive_softmax"] * 2


def test_refused_permission_is_quoted_with_what_to_do_about_it():
    message = refusal((DATA / "permission.txt").read_text())
    assert "ERR_NVGPUCTRPERM - The user does not have permission" in message
    assert "run as root" in message
    assert "NVreg_RestrictProfilingToAdminUsers=0" in message


def test_all_that_ncu_says_of_an_error_is_quoted():
    message = refusal((DATA / "busy.txt").read_text())
    assert "a driver resource was unavailable" in message
    assert message.endswith("An error occurred while trying to profile.")


def test_an_error_after_good_rows_is_an_error():
    assert "LaunchFailed" in refusal(FIRST + "==ERROR== LaunchFailed\n")


def test_of_a_program_that_died_its_last_words_are_quoted():
    message = refusal((DATA / "killed.txt").read_text())
    assert "The application returned an error code (1)." in message
    assert message.endswith("RuntimeError: no CUDA device")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "it printed nothing"),
        ("==PROF== Connected\n==WARNING== No kernels were profiled.\n", "No kernels were profiled"),
        ("hello\n\x00\x7f garbage, 1,2,3\n", "garbage, 1,2,3"),
        (FIRST[: FIRST.index('"0","4242"')], "no launch was counted"),
    ],
)
def test_output_without_launches_is_an_error_that_quotes_its_last_line(text, said):
    assert said in refusal(text)


def test_a_file_cut_short_anywhere_in_its_last_row_is_an_error():
    start = FIRST.index('"1","4242"')
    end = len(FIRST.rstrip()) - 1  # the last quote
    assert len(rows(FIRST[:start])) == 1
    for cut in range(start + 1, end + 1):
        refusal(FIRST[:cut])


@pytest.mark.parametrize("text", [FIRST, LONG], ids=["raw", "long"])
def test_a_row_with_too_few_or_too_many_columns_is_an_error(text):
    last = text.splitlines()[-1]
    assert "columns" in refusal(text.replace(last, '","'.join(last.split('","')[:4]) + '"'))
    assert "columns" in refusal(text.replace(last, last + ',"1"' * 8))


@pytest.mark.parametrize("number", ["16.777.216", "65,77", "1,2345", "0x10", "-5", "inf"])
def test_a_value_that_is_no_number_of_the_c_locale_is_an_error(number):
    message = refusal(FIRST.replace("16,777,216", number))
    assert f'{HBM_READ} = "{number}"' in message


def test_an_unknown_unit_and_a_missing_row_of_units_are_errors():
    assert f'{TIME} is in "fortnight"' in refusal(FIRST.replace('"ns"', '"fortnight"'))
    without = [line for line in FIRST.splitlines() if not line.startswith('"",')]
    assert 'is in ""' in refusal("\n".join(without))


def test_a_launch_that_was_replayed_is_an_error_for_it_found_its_own_data_in_l2():
    assert "11 passes" in refusal(FIRST.replace("100% - 1 pass", "100% - 11 passes", 1))


# Merging


def test_three_runs_make_one_launch_of_all_fields():
    qk, softmax = counters_of([rows(FIRST), rows(HITS), rows(MISSES)])
    assert qk.kernel == "naive_qk"
    assert qk.time_s == pytest.approx(1.048576e-3)
    assert (qk.hbm_read_bytes, qk.hbm_write_bytes) == (16_777_216, 134_217_728)
    assert (qk.l2_read_bytes, qk.l2_write_bytes) == (2_097_152 * 32, 4_194_304 * 32)
    assert qk.l2_hit_rate == 0.75
    assert qk.tensor_utilisation == pytest.approx(0.375)
    assert softmax.l2_hit_rate is None  # nothing was looked up


@pytest.mark.parametrize("failed", [1, 2])
def test_a_later_list_that_failed_leaves_the_hit_rate_unknown(failed):
    passes = [rows(FIRST), rows(HITS), rows(MISSES)]
    passes[failed] = None
    merged = counters_of(passes)
    assert [launch.l2_hit_rate for launch in merged] == [None, None]
    assert merged[0].l2_read_bytes == 2_097_152 * 32


def test_the_first_list_is_required_with_the_hbm_bytes_in_it():
    with pytest.raises(NcuError, match="first list"):
        counters_of([None, rows(HITS), rows(MISSES)])
    without = rows(FIRST.replace("16,777,216", "n/a"))
    with pytest.raises(NcuError, match="launch 0 of naive_qk: hbm_read_bytes: missing"):
        counters_of([without, None, None])


def test_runs_of_different_launches_are_an_error_that_says_what_differs():
    with pytest.raises(NcuError, match="2 launches in run 1, 1 in run 3"):
        counters_of([rows(FIRST), rows(HITS), rows(MISSES)[:1]])
    renamed = rows(HITS.replace("naive_softmax", "naive_pv"))
    with pytest.raises(NcuError, match="launch 1 is naive_softmax in run 1, naive_pv in run 2"):
        counters_of([rows(FIRST), renamed, None])


def test_hits_and_misses_are_counted_in_runs_of_their_own():
    assert [set(names) & {L2_HIT, L2_MISS} for names in METRIC_LISTS] == [
        set(),
        {L2_HIT},
        {L2_MISS},
    ]


# Running


def test_profile_runs_the_program_once_a_list_and_prints_nothing(fake_ncu, capfd):
    folder = fake_ncu(ok(FIRST), ok(HITS), ok(MISSES))
    assert profile(["program", "--flag", "x"]) == counters_of(
        [rows(t) for t in (FIRST, HITS, MISSES)]
    )
    assert capfd.readouterr() == ("", "")
    runs = (folder / "runs").read_text().splitlines()
    assert len(runs) == len(METRIC_LISTS)
    for run, metrics in zip(runs, METRIC_LISTS, strict=True):
        for option in (
            "--profile-from-start off",
            "--cache-control none",
            "--clock-control none",
            "--csv --page raw --print-units base",
            f"--metrics {','.join(metrics)} ",
        ):
            assert option in run
        assert run.endswith("program --flag x LC_ALL=C")


def test_a_table_on_standard_output_is_read_as_one_in_the_log_is(fake_ncu):
    fake_ncu(*(f"0\noutput\n{text}" for text in (FIRST, HITS, MISSES)))
    assert profile(["program"])[0].l2_hit_rate == 0.75


@pytest.mark.parametrize("status", [0, 1])
@pytest.mark.parametrize("where", ["log", "output"])
def test_refused_permission_is_told_whatever_the_exit_status_and_wherever_it_is_printed(
    fake_ncu, status, where
):
    fake_ncu(f"{status}\n{where}\n{(DATA / 'permission.txt').read_text()}")
    with pytest.raises(NcuError, match=r"ERR_NVGPUCTRPERM.*run as root"):
        profile(["program"])


def test_a_failed_run_quotes_the_last_line_where_ncu_says_nothing(fake_ncu):
    fake_ncu("3\noutput\nSegmentation fault\n==PROF== Disconnected from process 4242\n")
    with pytest.raises(NcuError, match=r"exit status 3: Segmentation fault$"):
        profile(["program"])


def test_a_table_of_a_failed_run_is_not_trusted(fake_ncu):
    fake_ncu("1\nlog\n" + FIRST)
    with pytest.raises(NcuError, match="exit status 1"):
        profile(["program"])


def test_garbage_in_the_log_is_an_error(fake_ncu):
    fake_ncu(ok("\x01\x02 not, a, table\n"))
    with pytest.raises(NcuError, match=r"no launch was counted: .*not, a, table"):
        profile(["program"])


def test_a_run_without_a_log_is_an_error(fake_ncu):
    fake_ncu("silence")
    with pytest.raises(NcuError, match="no launch was counted"):
        profile(["program"])


def test_a_program_that_hangs_is_cut_off_with_all_its_children(fake_ncu, monkeypatch):
    """Its time is over when its child is there; both would go on for longer than a test may."""
    folder = fake_ncu("hang")
    waited_s = []

    def its_time_is_over(program, timeout):
        until((folder / "child").exists)
        waited_s.append(timeout)
        raise subprocess.TimeoutExpired(program.args, timeout)

    monkeypatch.setattr(subprocess.Popen, "communicate", its_time_is_over)
    with pytest.raises(NcuError, match="not done after 2 s"):
        profile(["program"], timeout_s=2)
    assert waited_s == [2]
    until(lambda: is_over((folder / "child").read_text()))


def is_over(process: str) -> bool:
    try:
        status = (Path("/proc") / process / "stat").read_text()
    except OSError:
        return True
    return status.rpartition(")")[2].split()[0] == "Z"


def test_where_a_later_list_fails_the_rest_is_counted(fake_ncu):
    folder = fake_ncu(ok(FIRST), "1\nlog\n==ERROR== Failed to find metric\n", ok(MISSES))
    qk, _ = profile(["program"])
    assert qk.hbm_read_bytes == 16_777_216
    assert qk.l2_hit_rate is None
    assert len((folder / "runs").read_text().splitlines()) == 3


def test_where_the_first_list_fails_the_program_is_not_run_again(fake_ncu):
    folder = fake_ncu("1\nlog\n==ERROR== Failed to find metric\n")
    with pytest.raises(NcuError, match="Failed to find metric"):
        profile(["program"])
    assert len((folder / "runs").read_text().splitlines()) == 1


# Finding


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A function that installs ncu at paths of an otherwise bare machine."""
    places = tuple(f"{tmp_path}{place}" for place in counters.PLACES)
    monkeypatch.setattr(counters, "PLACES", places)
    monkeypatch.setattr(
        counters,
        "_version",
        lambda path, of=counters._version: of(path.removeprefix(str(tmp_path))),
    )
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))

    def install(*paths: str) -> str:
        for path in paths:
            file = Path(f"{tmp_path}{path}")
            file.parent.mkdir(parents=True)
            file.write_text("#!/bin/sh\n")
            file.chmod(0o755)
        return str(tmp_path)

    return install


def test_the_ncu_on_path_comes_first_and_the_newest_installed_one_next(installed, fake_ncu):
    root = installed(
        "/opt/nvidia/nsight-compute/2024.3.2/ncu",
        "/opt/nvidia/nsight-compute/2024.10.0/ncu",
        "/usr/local/cuda/bin/ncu",
        "/usr/local/cuda-13.0/bin/ncu",
    )
    assert find_ncu() == f"{root}/opt/nvidia/nsight-compute/2024.10.0/ncu"
    folder = fake_ncu()
    assert find_ncu() == str(folder / "ncu")


def test_a_cuda_toolkit_has_an_ncu_too(installed):
    root = installed("/usr/local/cuda-12.9/bin/ncu", "/usr/local/cuda-13.0/bin/ncu")
    assert find_ncu() == f"{root}/usr/local/cuda-13.0/bin/ncu"


def test_without_ncu_one_line_says_where_it_was_looked_for(installed):
    installed()
    assert find_ncu() is None
    with pytest.raises(NcuError, match=r"neither on PATH nor at .*nsight-compute"):
        profile(["program"])


def test_an_ncu_that_cannot_be_started_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setattr(counters, "find_ncu", lambda: str(tmp_path))
    with pytest.raises(NcuError, match="cannot be run: Permission denied"):
        profile(["program"])

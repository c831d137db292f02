"""What Nsight Compute counts of a program's launches: bytes, L2 hits, tensor utilisation.

The program runs once for each list of metrics and brackets the launches of interest by
cudaProfilerStart and cudaProfilerStop. Caches are left as the launch before left them, so that what
a kernel finds in L2 is what it finds without a profiler.
"""

import csv
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from glob import glob
from pathlib import Path
from typing import TypeAlias

from sim.inputs.files import InputError, checked
from validate.measurement import Counters

TIME = "gpu__time_duration.sum"
HBM_READ = "dram__bytes_read.sum"
HBM_WRITE = "dram__bytes_write.sum"
L2_READ = "lts__t_sectors_srcunit_tex_op_read.sum"  # srcunit_tex: asked for by the SMs
L2_WRITE = "lts__t_sectors_srcunit_tex_op_write.sum"
L2_HIT = "lts__t_sectors_srcunit_tex_lookup_hit.sum"
L2_MISS = "lts__t_sectors_srcunit_tex_lookup_miss.sum"
TENSOR = "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_active"

# Each list is one pass on GH100, and on TU102, GA100, GA102, AD102 and GB100, as libnvperf_host of
# CUDA 13.0 schedules it. Of several passes all but the first find the kernel's own data in L2.
METRIC_LISTS: tuple[tuple[str, ...], ...] = (
    (TIME, HBM_READ, HBM_WRITE, L2_READ, L2_WRITE, TENSOR),  # one pass: no lookup among them
    (L2_HIT,),  # one pass; with the first list two
    (L2_MISS,),  # one pass; with hits two
)
METRICS = frozenset(name for names in METRIC_LISTS for name in names)

SECTOR_BYTES = 32  # of L2: lts__t_bytes is 32 lts__t_sectors on every chip
SCALES = {  # what a unit is in SI; a unit's name differs from version to version of ncu
    "byte": 1, "kbyte": 1e3, "mbyte": 1e6, "gbyte": 1e9, "tbyte": 1e12,
    "ns": 1e-9, "nsecond": 1e-9, "us": 1e-6, "usecond": 1e-6, "ms": 1e-3, "msecond": 1e-3,
    "s": 1, "second": 1, "%": 1e-2, "sector": 1,
}  # fmt: skip
NUMBER = re.compile(r"(\d+|\d{1,3}(,\d{3})+)(\.\d+)?(e[+-]?\d+)?", re.IGNORECASE)
ABSENT = re.compile(r"(\(!\) *)?(n/a|nan|no data)?", re.IGNORECASE)
ROW = re.compile(r'"\d*("|$)')  # a launch's row opens with its number, the row of units with ""
ERROR = "==ERROR=="
REPLAYED = re.compile(r"^==PROF== .* (?!1 )\d+ passes", re.MULTILINE)
PLACES = ("/opt/nvidia/nsight-compute/*/ncu", "/usr/local/cuda*/bin/ncu")
PERMISSION_HINT = (
    "reading counters needs permission: run as root (in a container with CAP_SYS_ADMIN), or load "
    "the driver with NVreg_RestrictProfilingToAdminUsers=0"
)

Row: TypeAlias = dict[str, float | str]


class NcuError(Exception):
    """Nsight Compute counted nothing that can be used; the message is one line for the user."""


def find_ncu() -> str | None:
    """The ncu on PATH, else the newest in the usual places; None where there is none."""
    found = [path for place in PLACES for path in glob(place) if os.access(path, os.X_OK)]
    return shutil.which("ncu") or max(found, key=_version, default=None)


def _version(path: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", path)]


def profile(command: Sequence[str], timeout_s: float = 300) -> list[Counters]:
    """Counters of each launch that `command` makes while it has CUDA's profiler started.

    Runs the command once for each list of metrics, each run for at most `timeout_s`. Raises
    NcuError where the first list cannot be counted; what a later one counts is None then.
    """
    passes: list[list[Row] | None] = [_counted(command, METRIC_LISTS[0], timeout_s)]
    for metrics in METRIC_LISTS[1:]:
        try:
            passes.append(_counted(command, metrics, timeout_s))
        except NcuError:
            passes.append(None)
    return counters_of(passes)


def _counted(command: Sequence[str], metrics: Sequence[str], timeout_s: float) -> list[Row]:
    """One run of `command` under ncu."""
    ncu = find_ncu()
    if ncu is None:
        raise NcuError(f"ncu (Nsight Compute) is neither on PATH nor at {' or '.join(PLACES)}")
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "ncu.csv"
        arguments = [
            ncu, "--profile-from-start", "off", "--target-processes", "all",
            "--clock-control", "none", "--cache-control", "none", "--replay-mode", "kernel",
            "--kernel-name-base", "function", "--csv", "--page", "raw", "--print-units", "base",
            "--metrics", ",".join(metrics), "--log-file", str(log), *command,
        ]  # fmt: skip
        status, output = _run(arguments, timeout_s)
        text = output + "\n" + (log.read_text(errors="replace") if log.exists() else "")
    if status != 0:
        raise NcuError(f"{ncu}: exit status {status}: {_complaint(text)}")
    return parse_csv(text, ncu)


def _run(arguments: Sequence[str], timeout_s: float) -> tuple[int, str]:
    """Exit status and output of a program, of which no process outlives the call."""
    try:
        process = subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={**os.environ, "LC_ALL": "C"},  # other locales print 1.234,5
            start_new_session=True,
        )
    except OSError as error:
        raise NcuError(f"{arguments[0]}: cannot be run: {error.strerror}") from None
    with process:
        try:
            output, _ = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            raise NcuError(f"{arguments[0]}: not done after {timeout_s:g} s") from None
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, output


def parse_csv(text: str, where: str) -> list[Row]:
    """The launches in what `ncu --csv` printed, in order, among whatever else was printed.

    A launch is its "Kernel Name" and those of `METRICS` that ncu gave, in SI units, percentages as
    shares. Reads the raw page (a row a launch, after a row of units) and the longer form (a row a
    metric). Raises NcuError, which opens with `where`, for ncu's own errors, where a launch was
    replayed, where there is none, and for a row that is cut short or makes no sense.
    """
    if any(line.startswith(ERROR) for line in text.splitlines()):
        raise NcuError(f"{where}: {_complaint(text)}")
    if replayed := REPLAYED.search(text):
        raise NcuError(f"{where}: one pass was expected; replays find L2 warm: {replayed[0]}")
    launches: dict[tuple[str, str], Row] = {}
    header: list[str] = []
    units: dict[str, str] = {}
    for line in text.splitlines():
        if line.startswith('"ID",') and '"Kernel Name"' in line:
            header, units = line.strip(' "').split('","'), {}
        elif header and ROW.match(line):
            row = _row(header, line, where)
            if not row["ID"]:
                units = row
                continue
            if "Metric Value" in row:
                given = {row["Metric Name"]: (row["Metric Value"], row["Metric Unit"])}
            else:
                given = {name: (row[name], units.get(name, "")) for name in METRICS & row.keys()}
            key = row.get("Process ID", ""), row["ID"]
            launch = launches.setdefault(key, {"Kernel Name": row["Kernel Name"]})
            for name in METRICS & given.keys():
                value, unit = given[name]
                if not ABSENT.fullmatch(value):
                    launch[name] = _si(value, unit, f"{where}: {name}")
    if not launches:
        raise NcuError(f"{where}: no launch was counted: {_complaint(text)}")
    return list(launches.values())


def _row(header: Sequence[str], line: str, where: str) -> dict[str, str]:
    """The cells of a row by column; after a metric's value those of rules may be missing."""
    try:
        cells = next(csv.reader([line], strict=True))
    except csv.Error as error:
        raise NcuError(f"{where}: cut short, or not CSV: {error}: {line[:60]} ...") from None
    fewest = header.index("Metric Value") + 1 if "Metric Value" in header else len(header)
    if line.endswith(",") or not fewest <= len(cells) <= len(header):
        raise NcuError(f"{where}: {len(cells)} of {len(header)} columns: {line[:60]} ...")
    return dict(zip(header, cells, strict=False))


def _si(value: str, unit: str, where: str) -> float:
    if unit.lower() not in SCALES:
        raise NcuError(f'{where} is in "{unit}"; known units: {", ".join(SCALES)}')
    if not NUMBER.fullmatch(value):
        raise NcuError(f'{where} = "{value}": a number such as "1,234.5" was expected')
    return float(value.replace(",", "")) * SCALES[unit.lower()]


def _complaint(text: str) -> str:
    """ncu's own errors in what was printed; where they tell little, the last line as well."""
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith("==PROF==")]
    errors = [line.removeprefix(ERROR).strip() for line in lines if line.startswith(ERROR)]
    said = "; ".join(dict.fromkeys(errors)) or (lines[-1] if lines else "it printed nothing")
    if "ERR_NVGPUCTRPERM" in text:
        return f"{said} ({PERMISSION_HINT})"
    printed = [line for line in lines if not line.startswith(("==", '"'))]
    return f"{said} {printed[-1]}" if "application returned" in said and printed else said


def counters_of(rows_by_list: Sequence[list[Row] | None]) -> list[Counters]:
    """Counters of each launch from the runs for each of `METRIC_LISTS`, None for one that failed.

    Raises NcuError where the first failed, or where the runs are not of the same launches.
    """
    merged = rows_by_list[0]
    if merged is None:
        raise NcuError("ncu: the first list of metrics was not counted")
    for run, rows in enumerate(rows_by_list[1:], 2):
        if rows is None:
            continue
        if len(rows) != len(merged):
            raise NcuError(f"ncu: {len(merged)} launches in run 1, {len(rows)} in run {run}")
        for launch, (one, other) in enumerate(zip(merged, rows, strict=True)):
            if one["Kernel Name"] != other["Kernel Name"]:
                names = f"{one['Kernel Name']} in run 1, {other['Kernel Name']} in run {run}"
                raise NcuError(f"ncu: launch {launch} is {names}")
        merged = [one | other for one, other in zip(merged, rows, strict=True)]
    return [_counters(row, f"ncu: launch {launch}") for launch, row in enumerate(merged)]


def _counters(row: Row, where: str) -> Counters:
    """One launch's counters; raises NcuError where HBM bytes are missing."""

    def counted(name: str, scale: float = 1) -> float | None:
        value = row.get(name)
        return value * scale if isinstance(value, float) else None

    hit_rate = None
    hits, misses = counted(L2_HIT), counted(L2_MISS)
    if hits is not None and misses is not None and hits + misses > 0:
        hit_rate = hits / (hits + misses)
    fields = {
        "kernel": row["Kernel Name"],
        "time_s": counted(TIME),
        "hbm_read_bytes": counted(HBM_READ),
        "hbm_write_bytes": counted(HBM_WRITE),
        "l2_read_bytes": counted(L2_READ, SECTOR_BYTES),
        "l2_write_bytes": counted(L2_WRITE, SECTOR_BYTES),
        "l2_hit_rate": hit_rate,
        "tensor_utilisation": counted(TENSOR),
    }
    known = {name: value for name, value in fields.items() if value is not None}
    try:
        return checked(Counters, known, f"{where} of {row['Kernel Name']}")
    except InputError as error:
        raise NcuError(str(error)) from None

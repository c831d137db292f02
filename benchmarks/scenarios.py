"""How long every shipped scenario takes, as a user runs it: each in a process of its own, warm.

    python benchmarks/scenarios.py [--json] [NAME ...]

"Warm": the compiled engine lies on disk already; no replay is read from the cache of replays.
Processes run one after the other. Process time is of all their threads and workers; memory is the
most that any one of a scenario's processes had. Exit code 1 where a scenario fails. Goals, on an
otherwise idle machine of two cores: GOAL_S each, GOAL_SUM_S together, GOAL_BYTES at most.
"""

import argparse
import ctypes
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from sim.inputs.units import show_binary

SCENARIOS = Path(__file__).parents[1] / "scenarios"
GOAL_S, GOAL_SUM_S, GOAL_BYTES = 5.0, 45.0, 2**30
PR_SET_CHILD_SUBREAPER = 36  # of Linux: whoever loses its parent is this process's child


def command(name: str, folder: Path) -> list[str]:
    """How a user asks a shipped scenario's question; a sweep's store lies in `folder`."""
    asked = [sys.executable, "-m", "sim.cli.app"]
    if "search" in tomllib.loads((SCENARIOS / f"{name}.toml").read_text()):
        return [*asked, "explore", "search", name]
    if name.startswith("sweep_"):
        return [*asked, "sweep", name, "--store", str(folder / "sweeps.sqlite")]
    return [*asked, "run", name]


def timed(name: str) -> dict[str, Any]:
    """Wall and process time [s] and peak memory [bytes] of one scenario, and its exit code."""
    with tempfile.TemporaryDirectory() as folder:
        asked = command(name, Path(folder))
        environment = {**os.environ, "XDG_CACHE_HOME": folder}  # where replays would be kept
        environment.pop("PYTHONDONTWRITEBYTECODE", None)  # Python's own, which a user has not
        start_s = time.perf_counter()
        process = subprocess.Popen(asked, stdout=subprocess.DEVNULL, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        wall_s = time.perf_counter() - start_s
        usages = [usage, *left_behind()]
    return {
        "scenario": name,
        "wall_s": wall_s,
        "process_s": sum(usage.ru_utime + usage.ru_stime for usage in usages),
        "peak_bytes": max(usage.ru_maxrss for usage in usages) * 1024,
        "exit_code": os.waitstatus_to_exitcode(status),
    }


def left_behind() -> Iterator[resource.struct_rusage]:
    """What processes took that a scenario did not wait for, as a sweep's server of workers."""
    with suppress(ChildProcessError):  # none is left
        while True:
            yield os.wait4(-1, 0)[2]


def machine() -> dict[str, Any]:
    """What it ran on."""
    cores = len(os.sched_getaffinity(0))
    kinds = Path("/proc/cpuinfo").read_text().splitlines()
    kind = next((line.partition(": ")[2] for line in kinds if line.startswith("model name")), "")
    return {"cpu": kind or platform.machine(), "cores": cores, "load": os.getloadavg()[0]}


def main() -> None:
    """Time them one after the other and print a table, the slowest last."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", metavar="NAME", nargs="*", help="shipped scenarios [all]")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    asked = parser.parse_args()
    on = machine()
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    for name in ("hip_vs_flash", "context_windows"):
        timed(name)  # so that all that is compiled lies on disk
    rows = [timed(n) for n in asked.names or sorted(p.stem for p in SCENARIOS.glob("*.toml"))]
    rows.sort(key=lambda row: row["wall_s"])
    sum_s, peak_bytes = sum(r["wall_s"] for r in rows), max(r["peak_bytes"] for r in rows)
    if asked.json:
        print(json.dumps({"machine": on, "sum_s": sum_s, "scenarios": rows}, indent=1))
    else:
        print(f"{on['cpu']}, {on['cores']} cores, load {on['load']:.1f} before")
        print(f"{'scenario':28} {'wall s':>8} {'process s':>10} {'peak':>10}")
        for row in rows:
            over = row["wall_s"] > GOAL_S or row["peak_bytes"] > GOAL_BYTES
            print(
                f"{row['scenario']:28} {row['wall_s']:8.2f} {row['process_s']:10.2f} "
                f"{show_binary(row['peak_bytes']):>10}{'  over' if over else ''}"
                f"{'  failed' if row['exit_code'] else ''}"
            )
        over = "  over" if sum_s > GOAL_SUM_S else ""
        print(f"{'sum':28} {sum_s:8.2f} {'':10} {show_binary(peak_bytes):>10}{over}")
    sys.exit(any(row["exit_code"] for row in rows))


if __name__ == "__main__":
    main()

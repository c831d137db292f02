"""How well a sweep uses two processes, what a point costs beside its replay, what kills do to it.

    python benchmarks/sweep.py [--json] [--points N] [--kills N]

The same points on one process and on two, in turn, make the speed-up. The overhead of a point is
what one process takes for it beyond what the same points take without executor and store, in this
process; reading the tables is in both. Starting processes is in neither.

With `--kills`, instead: one sweep is killed (SIGKILL) so many times, each time when it has finished
a random number of points more and a random part of a second has passed, and started again. What is
in its store in the end is held against the store of a sweep that nothing stopped. Exit code 1 if a
point was lost, written twice, or differs in a bit.
"""

import argparse
import json
import random
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import tomli_w

from sim.runs.job import run_scenario
from sim.runs.scenario import ScenarioText
from sim.runs.store import Store
from sim.runs.sweep import sweep_points
from sim.runs.workers import Workers, processes

POLL_S = 0.01


def text(points: int) -> ScenarioText:
    """FlashAttention-2 of 16 heads over 4,096 tokens, at so many bandwidths."""
    tables: dict[str, Any] = {
        "workload": {"heads": 16, "head_dim": 128, "seq_len": 4096, "causal": True},
        "hardware": {"profile": "h100-sxm"},
        "schedule": [{"name": "flash2"}],
        "sweep": {"hardware.hbm.bandwidth": {"from": "1 TB/s", "to": "8 TB/s", "steps": points}},
    }
    return ScenarioText(tables, "benchmark", "benchmark", None)


def swept_s(points: int, workers: Workers) -> float:
    """Wall time of a sweep into a new store on disk, by workers that are warm."""
    sweep_points(text(16), Store(), workers)
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "store.sqlite")
        start_s = time.perf_counter()
        swept = sweep_points(text(points), store, workers)
        took_s = time.perf_counter() - start_s
        store.close()
    assert swept.replayed == points
    return took_s


def plain_s(points: int) -> float:
    """The same by `run`: one point after the other, nothing kept."""
    start_s = time.perf_counter()
    for _ in run_scenario(text(points).scenario()):
        pass
    return time.perf_counter() - start_s


def speed(points: int) -> dict[str, Any]:
    """One process beside two, and beside none."""
    with processes(1) as one:
        one_s = swept_s(points, one)
    with processes(2) as two:
        two_s = swept_s(points, two)
    beside_s = plain_s(points)
    return {
        "points": points,
        "one_process_s": one_s,
        "two_processes_s": two_s,
        "speed_up": one_s / two_s,
        "plain_s": beside_s,
        "overhead_ms_per_point": (one_s - beside_s) / points * 1e3,
    }


def started(folder: Path, name: str) -> subprocess.Popen[bytes]:
    """`attnsim sweep` of the folder's scenario, with a store and a table of that name."""
    files = ["--store", f"{name}.sqlite", "--export", f"{name}.csv"]
    quiet = subprocess.DEVNULL
    command = [sys.executable, "-m", "sim.cli.app", "sweep", "mine.toml", "--workers", "2", *files]
    return subprocess.Popen(command, cwd=folder, stdout=quiet, stderr=quiet)


def stored(store: Path) -> tuple[int, int]:
    """How many points a store has, and how many were ever written (one replaced counts twice)."""
    try:
        with sqlite3.connect(f"file:{store}?mode=ro", uri=True) as db:
            query = "SELECT count(*), ifnull(max(rowid), 0) FROM records"
            counts: tuple[int, int] = db.execute(query).fetchone()
            return counts
    except sqlite3.OperationalError:  # not there yet
        return 0, 0


def contents(store: Path) -> list[tuple[str, str]]:
    """Addresses and records, by address."""
    with sqlite3.connect(store) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return db.execute("SELECT key, record FROM records ORDER BY key").fetchall()


def killed(points: int, kills: int) -> dict[str, Any]:
    """A sweep that is killed again and again, beside one that is not."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "mine.toml").write_text(tomli_w.dumps(text(points).data))
        store = folder / "killed.sqlite"
        had = []
        for _ in range(kills):
            goal = stored(store)[0] + random.randrange(1 + points // kills)
            sweep = started(folder, "killed")
            while stored(store)[0] <= goal and sweep.poll() is None:
                time.sleep(POLL_S)
            time.sleep(random.uniform(0, 0.1))
            sweep.kill()
            if sweep.wait() == 0:
                raise SystemExit(f"the sweep ended before kill {len(had) + 1}: take more --points")
            had.append(stored(store)[0])
        before = had[-1]
        for of_sweep in ("killed", "whole"):
            assert started(folder, of_sweep).wait() == 0
        count, written = stored(store)
        tables_of = [(folder / f"{of}.csv").read_bytes() for of in ("killed", "whole")]
        return {
            "points": points,
            "kills": kills,
            "points_at_kill": had,
            "replayed_after_the_last": written - before,
            "points_in_the_end": count,
            "points_written": written,
            "records_identical": contents(store) == contents(folder / "whole.sqlite"),
            "table_identical": tables_of[0] == tables_of[1],
        }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--points", type=int, default=2000)
    parser.add_argument("--kills", type=int, help="kill one sweep so many times instead")
    options = parser.parse_args()
    if options.kills:
        figures = killed(options.points, options.kills)
        print(json.dumps(figures) if options.json else _of_kills(figures))
        same = figures["records_identical"] and figures["table_identical"]
        sys.exit(not (same and figures["points_in_the_end"] == figures["points_written"]))
    figures = speed(options.points)
    print(json.dumps(figures) if options.json else _of_speed(figures))


def _of_speed(figures: dict[str, Any]) -> str:
    return (
        f"{figures['points']:,} points: {figures['one_process_s']:.1f} s on one process, "
        f"{figures['two_processes_s']:.1f} s on two\n"
        f"two are {figures['speed_up']:.2f} times as fast as one\n"
        f"executor and store take {figures['overhead_ms_per_point']:.2f} ms a point"
    )


def _of_kills(figures: dict[str, Any]) -> str:
    identical = figures["records_identical"] and figures["table_identical"]
    return (
        f"killed {figures['kills']} times, with {', '.join(map(str, figures['points_at_kill']))} "
        f"of {figures['points']:,} points in the store\n"
        f"started again: {figures['replayed_after_the_last']:,} points more; "
        f"{figures['points_in_the_end']:,} in the store, {figures['points_written']:,} ever "
        f"written\nrecords and table {'are' if identical else 'ARE NOT'} those of a sweep that "
        "nothing stopped, to the bit"
    )


if __name__ == "__main__":
    main()

"""How well a sweep uses two processes, and what a point costs beside its own replay.

    python benchmarks/sweep.py [--json] [--points N]

The same points on one process and on two, in turn, make the speed-up. The overhead of a point is
what one process takes for it beyond what the same points take without executor and store, in this
process; reading the tables is in both. Starting processes is in neither.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from sim.scenario import make_scenario, run_scenario
from sim.store import Store
from sim.sweeps import Workers, processes, sweep_points


def tables(points: int) -> dict[str, Any]:
    """FlashAttention-2 of 16 heads over 4,096 tokens, at so many bandwidths."""
    return {
        "workload": {"heads": 16, "head_dim": 128, "seq_len": 4096, "causal": True},
        "hardware": {"profile": "h100-sxm"},
        "schedule": [{"name": "flash2"}],
        "sweep": {"hardware.hbm.bandwidth": {"from": "1 TB/s", "to": "8 TB/s", "steps": points}},
    }


def swept_s(points: int, workers: Workers) -> float:
    """Wall time of a sweep into a new store on disk, by workers that are warm."""
    sweep_points(tables(16), "warm", None, Store(), workers)
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "store.sqlite")
        start_s = time.perf_counter()
        swept = sweep_points(tables(points), "benchmark", None, store, workers)
        took_s = time.perf_counter() - start_s
        store.close()
    assert swept.replayed == points
    return took_s


def plain_s(points: int) -> float:
    """The same by `run`: one point after the other, nothing kept."""
    start_s = time.perf_counter()
    for _ in run_scenario(make_scenario(tables(points), "benchmark", "benchmark")):
        pass
    return time.perf_counter() - start_s


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--points", type=int, default=2000)
    options = parser.parse_args()
    points = options.points
    with processes(1) as one:
        one_s = swept_s(points, one)
    with processes(2) as two:
        two_s = swept_s(points, two)
    beside_s = plain_s(points)
    figures = {
        "points": points,
        "one_process_s": one_s,
        "two_processes_s": two_s,
        "speed_up": one_s / two_s,
        "plain_s": beside_s,
        "overhead_ms_per_point": (one_s - beside_s) / points * 1e3,
    }
    if options.json:
        print(json.dumps(figures))
        return
    print(f"{points:,} points: {one_s:.1f} s on one process, {two_s:.1f} s on two")
    print(f"two are {figures['speed_up']:.2f} times as fast as one")
    print(f"executor and store take {figures['overhead_ms_per_point']:.2f} ms a point")


if __name__ == "__main__":
    main()

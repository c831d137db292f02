"""Fast-forward: how long a million tokens take to tell, and how far from the exact replay.

Everything is timed warm, in one process on one core, side by side.
"""

import argparse
import json
import resource
import time
from typing import Any

from sim.engine.device import run_on_device
from sim.hardware import load_profile
from sim.scenario import Limits
from sim.schedules import make_schedule
from sim.workload import WorkloadTable

HW = load_profile("h100-sxm")
MILLION = 2**20
MOST_STEPS = Limits().replayed_steps


def told(tokens: int, heads: int, kv_heads: int, exact: bool, **workload: Any) -> dict[str, float]:
    """flash2 on the H100, head_dim 128: simulated time and HBM bytes, and seconds it took."""
    table = {"heads": heads, "kv_heads": kv_heads, "head_dim": 128, "seq_len": tokens}
    w = WorkloadTable.model_validate({**table, **workload}).workload()
    began = time.perf_counter()
    steps = make_schedule({"name": "flash2"}, "a benchmark").steps(w, HW)
    run = run_on_device(
        steps, HW, w.dtype, "replay", lambda _: None, most_steps=None if exact else MOST_STEPS
    )
    return {
        "took_s": time.perf_counter() - began,
        "time_s": run.time_s,
        "hbm_bytes": float(sum(k.run.hbm_read_bytes + k.run.hbm_write_bytes for k in run.kernels)),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--long", action="store_true", help="replay 262k and 1M tokens exactly too")
    asked = parser.parse_args()
    told(16384, 1, 1, True)  # compile, or read from disk
    rows = []
    longer = [(2**18, 32, 8, True), (MILLION, 4, 1, True)] if asked.long else []
    for tokens, heads, kv_heads, also_exact in (
        (65536, 32, 8, True),
        (131072, 32, 8, True),
        *longer,
        (MILLION, 32, 8, False),
        (10 * MILLION, 4, 1, False),  # 32 heads' Q and O would not fit in 80 GB
    ):
        for causal in (True, False):
            ours = told(tokens, heads, kv_heads, False, causal=causal)
            row: dict[str, Any] = {"tokens": tokens, "heads": heads, "causal": causal, **ours}
            if also_exact:
                exact = told(tokens, heads, kv_heads, True, causal=causal)
                row["exact_took_s"] = exact["took_s"]
                row["ratio"] = exact["took_s"] / ours["took_s"]
                row["time_error"] = ours["time_s"] / exact["time_s"] - 1
                row["hbm_error"] = ours["hbm_bytes"] / exact["hbm_bytes"] - 1
            rows.append(row)
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if asked.json:
        print(json.dumps({"rows": rows, "peak_memory_bytes": peak_bytes}))
        return
    for row in rows:
        mask = "causal" if row["causal"] else "full"
        line = (
            f"{row['tokens']:>11,} tokens {row['heads']:>3} heads {mask:6} {row['took_s']:6.2f} s"
        )
        if "ratio" in row:
            line += f", exact {row['exact_took_s']:6.2f} s ({row['ratio']:.1f} times)"
            line += (
                f"; off by {row['time_error']:+.2%} of time, {row['hbm_error']:+.2%} of HBM bytes"
            )
        print(line)
    print(f"peak memory {peak_bytes / 2**20:,.0f} MiB")


if __name__ == "__main__":
    main()

"""Fast-forward: how long a million tokens take to tell, and how far from the exact replay.

Everything is timed warm, in one process, in seconds of its one core.
"""

import argparse
import json
import resource
import time
from typing import Any

from sim.device.run import run_on_device
from sim.inputs.hardware import HardwareProfile, load_profile
from sim.inputs.workload import WorkloadTable
from sim.runs.scenario import Limits
from sim.schedules import make_schedule

HW = load_profile("h100-sxm")
# No device holds naive attention's N x N matrices of a million tokens: 2 TiB each a head.
VAST = load_profile("h100-sxm", {"hbm": {"capacity": "1000 TiB"}}, "a benchmark")
MILLION = 2**20
MOST_STEPS = Limits().replayed_steps


def told(
    name: str, hw: HardwareProfile, most_steps: int | None, **workload: Any
) -> dict[str, float]:
    """Simulated time and HBM bytes, their estimated errors, and seconds it took; head_dim 128."""
    w = WorkloadTable.model_validate({"head_dim": 128, **workload}).workload()
    began = time.process_time()
    program = make_schedule({"name": name}, "a benchmark").program(w, hw)
    run = run_on_device(program, hw, w.dtype, "replay", lambda _: None, most_steps=most_steps)
    kernels = [kernel.run for kernel in run.kernels]
    skipped = [kernel for kernel in kernels if kernel.fast_forward is not None]
    return {
        "took_s": time.process_time() - began,
        "time_s": run.time_s,
        "hbm_bytes": float(sum(k.hbm_read_bytes + k.hbm_write_bytes for k in kernels)),
        "estimated_time_error": max((k.fast_forward.time_error for k in skipped), default=0.0),
        "estimated_hbm_error": max((k.fast_forward.hbm_error for k in skipped), default=0.0),
    }


def rows_of(long: bool) -> list[tuple[str, HardwareProfile, dict[str, Any], bool]]:
    """Schedule, device and workload of each row, and whether to replay it exactly too."""
    rows: list[tuple[str, HardwareProfile, dict[str, Any], bool]] = []
    eight = {"heads": 32, "kv_heads": 8}
    few = {"heads": 4, "kv_heads": 1}  # 32 heads' Q and O of 10 million would not fit in 80 GB
    longer = [("flash2", 2**18, eight, True), ("flash2", MILLION, few, True)] if long else []
    for name, tokens, heads, exact in (
        ("flash2", 2**16, eight, True),
        ("flash2", 2**17, eight, True),
        ("flash3", 2**16, eight, True),
        ("flash3", 2**17, eight, True),
        *longer,
        ("flash2", MILLION, eight, False),
        ("flash2", 10 * MILLION, few, False),
        ("flash3", MILLION, eight, False),
    ):
        rows += [
            (name, HW, {"seq_len": tokens, "causal": causal, **heads}, exact)
            for causal in (True, False)
        ]
    a_million = {"seq_len": MILLION, "causal": True, **eight}
    rows.append(("naive", VAST, a_million, False))
    rows.append(("hip", HW, a_million, False))
    rows.append(("flash_decoding", HW, {**a_million, "phase": "decode"}, False))
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--long", action="store_true", help="replay 262k and 1M tokens exactly too")
    parser.add_argument(
        "--replayed-steps", type=int, default=MOST_STEPS, help="limits.replayed_steps"
    )
    asked = parser.parse_args()
    told("flash2", HW, None, heads=1, seq_len=16384)  # compile, or read from disk
    rows = []
    for name, hw, workload, also_exact in rows_of(asked.long):
        ours = told(name, hw, asked.replayed_steps, **workload)
        row: dict[str, Any] = {"schedule": name, "tokens": workload["seq_len"], **workload, **ours}
        if hw is VAST:
            row["note"] = f"with {VAST.hbm.capacity / 2**40:,.0f} TiB of HBM, hypothetical"
        if also_exact:
            exact = told(name, hw, None, **workload)
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
        print(line_of(row))
    print(f"peak memory {peak_bytes / 2**20:,.0f} MiB")


def line_of(row: dict[str, Any]) -> str:
    """A row of the table."""
    mask = "causal" if row["causal"] else "full"
    line = (
        f"{row['schedule']:14} {row['tokens']:>10,} tokens {row['heads']:>2} heads {mask:6} "
        f"{row['took_s']:5.2f} s; estimated error {row['estimated_time_error']:.1%} of time, "
        f"{row['estimated_hbm_error']:.1%} of HBM bytes"
    )
    if "ratio" in row:
        line += (
            f"; exact {row['exact_took_s']:.2f} s ({row['ratio']:.1f} times), off by "
            f"{row['time_error']:+.2%} and {row['hbm_error']:+.2%}"
        )
    return line + (f"; {row['note']}" if "note" in row else "")


if __name__ == "__main__":
    main()

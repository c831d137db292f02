"""How far off programs are whose long kernels are replayed apart, each from an empty L2.

Schedules of several kernels, on two devices, told by few steps and by more, and replayed whole, one
kernel after the other: the error of HBM bytes and of time beside what the answer says of itself.
It takes some minutes.
"""

from itertools import product

from sim import simulate
from sim.runs.record import Record
from sim.runs.scenario import Limits

K = 1024
QUESTIONS = (  # schedule, heads, KV heads, thousands of tokens
    ("nsa", 64, 4, 16),
    ("nsa", 32, 2, 8),
    ("minference", 16, 4, 16),
    ("hip", 16, 4, 32),
    ("naive", 8, 2, 8),
    ("gated_delta_net", 32, 32, 32),
    ("mamba2", 32, 32, 16),
    ("linear_attention", 32, 32, 16),
)
STEPS = (20_000, 300_000, Limits().replayed_steps)
DEVICES = ("h100-sxm", "rtx-4090")
QUANTITIES = ("time", "hbm")


def main() -> None:
    """Measure and print."""
    within = dict.fromkeys(QUANTITIES, 0)
    told = 0
    for device, (name, heads, kv_heads, thousands) in product(DEVICES, QUESTIONS):
        tables = {
            "workload": {
                **{"heads": heads, "kv_heads": kv_heads, "seq_len": thousands * K},
                **{"head_dim": 128, "causal": True, "dtype": "bf16"},
            },
            "hardware": device,
            "schedule": name,
        }
        (exact,) = simulate(**tables, limits={"exact": True})
        for steps in STEPS:
            (ours,) = simulate(**tables, limits={"replayed_steps": steps})
            if (said := ours.fast_forward) is None:
                continue
            told += 1
            off = {"time": abs(exact.time_s / ours.time_s - 1), "hbm": _bytes_off(ours, exact)}
            for of in QUANTITIES:
                within[of] += off[of] <= said[f"{of}_error"]
            print(
                f"{device:9} {name:17} {thousands:3}k tokens by {steps:9,} steps: "
                f"time off {off['time']:6.2%}, said {said['time_error']:6.2%};  "
                f"HBM bytes {off['hbm']:6.2%}, said {said['hbm_error']:6.2%}",
                flush=True,
            )
    print(f"within what was said: time {within['time']} and HBM bytes {within['hbm']} of {told}")


def _bytes_off(ours: Record, exact: Record) -> float:
    own, right = (r.hbm_read_bytes + r.hbm_write_bytes for r in (ours, exact))
    return abs(right / own - 1)


if __name__ == "__main__":
    main()

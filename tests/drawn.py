"""What hypothesis draws: small workloads, tiny devices, any schedule."""

from typing import Any

from hypothesis import strategies as st

from sim.files import InputError
from sim.hardware import HardwareProfile, load_profile
from sim.schedules import SCHEDULES
from sim.schedules.base import Schedule
from sim.tile_program import Kernel
from sim.workload import AttentionWorkload

L2_SIZES = ("0 B", "4 KiB", "100 KiB", "1 MiB", "64 MiB")


@st.composite
def workloads(draw: Any) -> AttentionWorkload:
    """Ragged lengths, grouped heads, all masks."""
    kv_heads = draw(st.integers(1, 2))
    seq_kv = draw(st.integers(1, 400))
    causal = draw(st.booleans())
    return AttentionWorkload(
        batch=draw(st.integers(1, 2)),
        heads=kv_heads * draw(st.integers(1, 3)),
        kv_heads=kv_heads,
        seq_q=draw(st.integers(1, seq_kv if causal else 400)),
        seq_kv=seq_kv,
        head_dim=draw(st.sampled_from((16, 40, 64, 128))),
        dtype=draw(st.sampled_from(("fp16", "fp32", "bf16"))),
        causal=causal,
        window=draw(st.none() | st.integers(1, 300)) if causal else None,
    )


@st.composite
def devices(draw: Any, l2: str | None = None) -> HardwareProfile:
    """A few SMs of a real device, with any L2."""
    name = draw(st.sampled_from(("h100-sxm", "a100-sxm-40gb", "rtx-4090")))
    overrides = {
        "sm": {"count": draw(st.integers(1, 5))},
        "l2": {"capacity": l2 or draw(st.sampled_from(L2_SIZES))},
        "calibration": {"l2": {"effective_capacity": 1.0}},
    }
    return load_profile(name, overrides, "a test")


@st.composite
def schedules(draw: Any, *names: str) -> Schedule:
    """Any schedule, with tiles small enough to give several blocks."""
    name = draw(st.sampled_from(names or tuple(SCHEDULES)))
    side = st.sampled_from((16, 32, 64, 128))
    options: dict[str, Any] = {"name": name, "tile": {"q": draw(side), "kv": draw(side)}}
    if name == "naive":
        options |= {key: draw(st.booleans()) for key in ("scale", "mask", "dropout")}
    if name == "block_sparse":
        options |= {
            "keep_window": draw(st.none() | st.integers(1, 100)),
            "sinks": draw(st.integers(0, 40)),
            "random_blocks": draw(st.integers(0, 3)),
        }
    return SCHEDULES[name].model_validate(options)


def lowered(schedule: Schedule, w: AttentionWorkload, hw: HardwareProfile) -> list[Kernel]:
    """The kernels, with the schedule's default tile where the drawn one does not fit."""
    try:
        return schedule.lower(w, hw)
    except InputError:
        return schedule.model_copy(update={"tile": None}).lower(w, hw)

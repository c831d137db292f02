"""Calibration read off micro-benchmarks: each figure from the one that isolates it."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from math import log2
from statistics import median

import numpy as np

from sim.inputs.hardware import HardwareProfile
from validate.measurement import Micro


@dataclass(frozen=True)
class Reading:
    """A calibration parameter read off a micro-benchmark.

    `spread` is half the distance from the 20th to the 80th percentile, in the value's unit; of an
    effective capacity, half the distance between the working sets beside it.
    """

    value: float
    spread: float
    micro: str


def readings(micro: Iterable[Micro], hw: HardwareProfile) -> dict[str, Reading]:
    """The calibration parameters that the micro-benchmarks determine, by their dotted names.

    Shares are of the profile's vendor figure and at most 1.

    - hbm.read: of reads alone; hbm.write: what then makes a copy, which reads as much as it
      writes, as fast as it was (with the profile's hbm.read where reads alone were not measured).
    - hbm.latency, l2.latency: of the walk through the most lines, at least twice L2, and the
      fewest, at most half of it.
    - l2.sustained: of the plateau, the median over working sets up to a quarter of L2.
    - l2.effective_capacity: see `_effective_capacity`.
    - tensor.native, tensor.mma_sync: of the best tile; one reading for both where the device's own
      instruction is mma.sync.
    - sm.vector, sm.exp, sm.sram: of all SMs together.
    - sm.cta_start: as measured.
    - launch.latency, launch.gap: of an empty kernel, launched and in a graph, less the start of its
      CTA, which the simulator counts as the kernel's.
    """
    by_name: dict[str, list[Micro]] = {}
    for one in micro:
        by_name.setdefault(one.name, []).append(one)

    def share(name: str, vendor_per_s: float) -> Reading | None:
        return _best_share([(one, vendor_per_s) for one in by_name.get(name, [])])

    chases = sorted(by_name.get("latency", []), key=_working_set)
    l2_reads = sorted(by_name.get("l2_read", []), key=_working_set)
    plateau = [one for one in l2_reads if _working_set(one) <= hw.l2.capacity / 4]
    mma_sync = _best_share(_tensor_rates(by_name, "mma_sync", hw))
    native = _best_share(_tensor_rates(by_name, "native", hw))
    cta_start = by_name.get("cta_start", [])
    read, copied = share("hbm_read", hw.hbm.bandwidth), share("hbm_copy", hw.hbm.bandwidth)
    read_share = read.value if read else hw.calibration.hbm.read
    found = {
        "hbm.read": read,
        "hbm.write": _written_share(copied, read_share),
        "hbm.latency": _seconds(
            [one for one in chases if _working_set(one) >= 2 * hw.l2.capacity][-1:]
        ),
        "l2.sustained": _plateau_share(plateau, hw),
        "l2.effective_capacity": _effective_capacity(l2_reads, plateau, hw),
        "l2.latency": _seconds(
            [one for one in chases if _working_set(one) <= hw.l2.capacity / 2][:1]
        ),
        "tensor.native": native if hw.matmul_by_warp_group else mma_sync,
        "tensor.mma_sync": mma_sync,
        "sm.vector": share("vector", hw.vector_ops_per_s),
        "sm.exp": share("exp", hw.exps_per_s),
        "sm.sram": share("sram", hw.sram_bytes_per_s),
        "sm.cta_start": _seconds(cta_start),
        "launch.latency": _seconds_beyond(by_name.get("launch_plain", []), cta_start),
        "launch.gap": _seconds_beyond(by_name.get("launch_graph", []), cta_start),
    }
    return {name: reading for name, reading in found.items() if reading is not None}


def _working_set(one: Micro) -> float:
    return float(one.settings["working_set_bytes"])


def _spread(samples: Iterable[float]) -> float:
    low, high = np.quantile(list(samples), (0.2, 0.8))
    return float(high - low) / 2


def _label(one: Micro) -> str:
    settings = ", ".join(f"{key} {value}" for key, value in one.settings.items())
    return f"{one.name} ({settings})" if settings else one.name


def _tensor_rates(
    by_name: dict[str, list[Micro]], path: str, hw: HardwareProfile
) -> list[tuple[Micro, float]]:
    """The matmuls of a path, each with the vendor's rate for its dtype."""
    rated = []
    for one in by_name.get("tensor", []):
        vendor = hw.tensor_flops_per_s(str(one.settings["dtype"]))
        if one.settings["path"] == path and vendor is not None:
            rated.append((one, vendor))
    return rated


def _best_share(rated: list[tuple[Micro, float]]) -> Reading | None:
    if not rated:
        return None
    best, vendor = max(rated, key=lambda pair: pair[0].value / pair[1])
    return Reading(min(1.0, best.value / vendor), _spread(best.samples) / vendor, _label(best))


def _written_share(copied: Reading | None, read_share: float) -> Reading | None:
    """The share of writes with which a copy, half of it reads at `read_share`, has its own."""
    if copied is None:
        return None
    value = 1 / (2 / copied.value - 1 / read_share)
    slope = 2 * (value / copied.value) ** 2  # of it by the copy's share
    return Reading(min(1.0, value), slope * copied.spread, copied.micro)


def _plateau_share(plateau: list[Micro], hw: HardwareProfile) -> Reading | None:
    if not plateau:
        return None
    value = median(one.value for one in plateau)
    spread = _spread(sample for one in plateau for sample in one.samples)
    up_to = f"l2_read (working_set_bytes up to {plateau[-1].settings['working_set_bytes']})"
    return Reading(min(1.0, value / hw.l2.bandwidth), spread / hw.l2.bandwidth, up_to)


def _effective_capacity(
    reads: list[Micro], plateau: list[Micro], hw: HardwareProfile
) -> Reading | None:
    """Where bandwidth has fallen half way from its plateau to the largest working set's.

    Between the two measured working sets beside it, the bandwidth is taken to fall in proportion to
    the logarithm of the working set.
    """
    if not plateau:
        return None
    half = (median(one.value for one in plateau) + reads[-1].value) / 2
    for before, after in pairwise(reads):
        if before.value > half >= after.value:
            low, high = _working_set(before), _working_set(after)
            fallen = (before.value - half) / (before.value - after.value)
            at = 2 ** (log2(low) + fallen * (log2(high) - log2(low)))
            between = f"l2_read (working_set_bytes {low:.0f} to {high:.0f})"
            spread = (high - low) / 2 / hw.l2.capacity
            return Reading(min(1.0, at / hw.l2.capacity), spread, between)
    return None


def _seconds(times: list[Micro]) -> Reading | None:
    return Reading(times[0].value, _spread(times[0].samples), _label(times[0])) if times else None


def _seconds_beyond(times: list[Micro], part: list[Micro]) -> Reading | None:
    """The time less a part of it that is measured apart."""
    if not times or not part:
        return None
    beyond_s = max(0.0, times[0].value - part[0].value)
    return Reading(beyond_s, _spread(times[0].samples), f"{_label(times[0])} less cta_start")

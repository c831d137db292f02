"""What a run says: one record a schedule and point, with a result for each kernel."""

import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from html import escape
from importlib.metadata import version
from typing import Any, Literal

from pydantic import ConfigDict, PositiveFloat, PositiveInt
from typing_extensions import TypedDict  # pydantic takes typing's from 3.12 on

from sim.device.run import EngineName
from sim.inputs.units import show

_AS_SAVED = ConfigDict(
    extra="forbid", strict=True, allow_inf_nan=False
)  # what `results_file.load` takes


@dataclass(frozen=True)
class KernelResult:
    """One kernel of a schedule. Shares and utilisations are of the vendor's figures.

    `rows_used` is the share of its tiles' query rows that are no padding; None where it multiplies
    no queries, and in files that attnsim wrote before it kept that. `clock_hz` is what the power
    limit left, `clock_share` of the nominal clock; the time that this added is critical by "power".
    An SM holds `ctas_per_sm`, for one more it has too little of `ctas_limited_by`; they, or the
    tiles that a persistent kernel deals them, fill the device `waves` times. Keys are cut in
    `splits` ranges. `hbm_reread_bytes` of what was read had been in L2 before: the misses beyond
    the compulsory. These four are None in files that attnsim wrote before it kept them.
    `compiled_from` tells the machine code whose counts it has, as `sim.tile_program.CompiledFrom`.
    `issue_filled_by` are shares of the issue slots' busy time, by the instructions that took it.
    `spilled_bytes` of what L2 moves are registers that did not fit.

    Of several GPUs, a kernel that runs `launches` times stands here once, with its first start;
    its other figures are of one launch.
    """

    __pydantic_config__ = _AS_SAVED
    name: str
    launches: int
    start_s: float
    time_s: float
    ctas: int
    ctas_per_sm: int
    tile_steps: int
    flops: int
    vector_ops: int
    exp_count: int
    sram_bytes: int
    hbm_read_bytes: int
    hbm_write_bytes: int
    l2_dirty_bytes: int
    l2_read_bytes: int
    l2_write_bytes: int
    l2_hit_rate: float
    tensor_utilisation: float
    hbm_utilisation: float
    occupancy: float
    bottleneck: str
    critical_time_s: dict[str, float]
    rows_used: float | None = None
    compiled_from: dict[str, str] | None = None
    issue_filled_by: dict[str, float] = field(default_factory=dict)
    clock_hz: float | None = None
    clock_share: float = 1.0
    ctas_limited_by: str | None = None
    waves: float | None = None
    splits: int | None = None
    hbm_reread_bytes: int | None = None
    spilled_bytes: int = 0

    @property
    def all_launches_s(self) -> float:
        """The time of all its launches, one after the other."""
        return self.launches * self.time_s

    @property
    def bottleneck_share(self) -> float:
        """Share of the kernel's time that went to its bottleneck."""
        return self.critical_time_s[self.bottleneck] / self.time_s


@dataclass(frozen=True)
class Timeline:
    """What the device did over time, in bins of `bin_width_s`, kernel by kernel.

    Several GPUs have one timeline, of what they did in the mean. Each track has one value a bin:
    shares of the vendor's HBM bandwidth and tensor rate, the hit rate of L2 loads, and the HBM
    bytes on their way to SMs.
    """

    __pydantic_config__ = _AS_SAVED
    kernel: str
    start_s: float
    bin_width_s: float
    hbm_utilisation: list[float]
    tensor_utilisation: list[float]
    l2_hit_rate: list[float]
    hbm_bytes_in_flight: list[float]


class InMemory(TypedDict):
    """HBM in use from `time_s` on, and what came ("+ Q") or went ("- S") then."""

    time_s: float
    in_use_bytes: int
    what: str


@dataclass(frozen=True)
class Asked:
    """Which schedule on which device, in the words of the scenario.

    `schedule` is the title, `options` the schedule's table without its label, `point` the swept
    keys, `hardware` the profile's name, and `overrides` what the scenario lays over the profile, by
    dotted key ({"l2.capacity": "100 MiB"}), swept or not.
    """

    schedule: str
    options: dict[str, Any]
    point: dict[str, Any]
    hardware: str
    overrides: dict[str, Any]


@dataclass(frozen=True)
class Record:
    """One schedule on one point of a scenario.

    What was asked stands there as in `Asked`; `options` and `overrides` are None in files that
    attnsim wrote before it kept them.

    `hbm_write_bytes` counts all that the schedule makes dirty, also the `l2_dirty_bytes` that are
    still in L2 at its end (a hardware counter read at that moment misses those). `useful_flops`
    counts the (query, key) pairs that the mask shows, `flops` what the tiles compute. Bytes, FLOPs
    and energy are of all `gpus` together, utilisations and shares their mean, `peak_hbm_bytes` the
    fullest one's. Where `l2_dies` is above 1 each die has a cache of its own below the L2 that all
    share, and `l2_die_hit_rate` of the loads are served by it (they are among the hits).
    `link_wait_s` is the communication that nothing hid:
    how long a GPU's kernels waited for transfers and, once they were done, it for what its outputs
    still lacked, in the mean. `fast_forward` has the tile steps that were not replayed
    (`steps_skipped`) and the relative errors to expect of that (`time_error`, `hbm_error`,
    `energy_error`); None where all were, one after the other. No steps are skipped where long
    kernels were replayed whole, each from an empty L2. What utilisations are shares of, and how
    much HBM a GPU has, stands in `peak_flops_per_s` (of the workload's dtype), `hbm_bytes_per_s`
    and `hbm_capacity_bytes`; None in files that attnsim wrote before it kept that.
    """

    __pydantic_config__ = _AS_SAVED
    schedule: str
    point: dict[str, Any]
    workload: dict[str, Any]
    hardware: str
    status: Literal["ok", "out of memory", "failed"]  # failed: it cannot be, with its reason
    reason: str | None = None
    time_s: PositiveFloat | None = None
    flops: int | None = None
    useful_flops: int | None = None
    hbm_read_bytes: int | None = None
    hbm_write_bytes: int | None = None
    l2_dirty_bytes: int | None = None
    l2_bytes: int | None = None
    l2_hit_rate: float | None = None
    l2_dies: PositiveInt = 1
    l2_die_hit_rate: float | None = None
    sram_bytes: int | None = None
    peak_hbm_bytes: int | None = None
    tensor_utilisation: float | None = None
    hbm_utilisation: float | None = None
    occupancy: float | None = None
    bottleneck: str | None = None
    bottleneck_shares: dict[str, float] = field(default_factory=dict)
    energy_j: float | None = None
    gpus: PositiveInt = 1
    link_bytes: int = 0
    link_wait_s: float = 0.0
    fast_forward: dict[str, float] | None = None
    kernels: list[KernelResult] = field(default_factory=list)
    timeline: list[Timeline] = field(default_factory=list)
    memory: list[InMemory] = field(default_factory=list)
    options: dict[str, Any] | None = None
    overrides: dict[str, Any] | None = None
    engine: EngineName = "replay"
    versions: dict[str, str] = field(default_factory=dict)
    peak_flops_per_s: PositiveFloat | None = None
    hbm_bytes_per_s: PositiveFloat | None = None
    hbm_capacity_bytes: PositiveFloat | None = None

    def __repr__(self) -> str:
        """Three lines: the answer, what was asked, and the figures behind the answer."""
        return "\n".join(self._told())

    def _repr_html_(self) -> str:
        """The same for a notebook."""
        answer, *rest = map(escape, self._told())
        return "<br>".join([f"<b>{answer}</b>", *rest])

    def _told(self) -> tuple[str, str, str]:
        where = "".join(f", {key} = {value}" for key, value in self.point.items())
        who = f"{self.schedule} on {self.hardware}{where}"
        what = ", ".join(f"{key} {value}" for key, value in self.workload.items() if value)
        if self.time_s is None:
            return f"{who}: {self.status}", what, self.reason or ""
        causes = list(self.bottleneck_shares.items())[:2]
        held = ", ".join(f"{cause} {share:.0%}" for cause, share in causes)
        bytes_of = {
            "HBM read": self.hbm_read_bytes,
            "HBM write": self.hbm_write_bytes,
            "peak memory": self.peak_hbm_bytes,
        }
        shares = {
            "L2 hits": self.l2_hit_rate,
            "tensor": self.tensor_utilisation,
            "HBM": self.hbm_utilisation,
        }
        figures = [f"{name} {show(n, 'B')}" for name, n in bytes_of.items() if n is not None]
        figures += [f"{name} {part:.0%}" for name, part in shares.items() if part is not None]
        return f"{who}: {show(self.time_s, 's')}, held back by {held}", what, ", ".join(figures)

    @property
    def hbm_bytes(self) -> int | None:
        """HBM reads and writes together."""
        if self.hbm_read_bytes is None or self.hbm_write_bytes is None:
            return None
        return self.hbm_read_bytes + self.hbm_write_bytes

    @property
    def rows_used(self) -> float | None:
        """Share of tiles' query rows that are no padding, of its longest kernel that has any."""
        of_queries = [kernel for kernel in self.kernels if kernel.rows_used is not None]
        longest = _longest(of_queries)
        return longest.rows_used if longest else None

    @property
    def longest_kernel(self) -> KernelResult | None:
        """The kernel that most of its time goes to, over all launches; None where nothing ran."""
        return _longest(self.kernels)

    @property
    def hbm_reread_share(self) -> float | None:
        """Share of HBM reads that an L2 which holds everything would not have needed."""
        parts = [(kernel.hbm_reread_bytes, kernel.launches) for kernel in self.kernels]
        if not self.hbm_read_bytes or any(reread is None for reread, _ in parts):
            return None
        return sum((reread or 0) * launches for reread, launches in parts) / self.hbm_read_bytes

    @property
    def settings(self) -> dict[str, Any]:
        """Overrides and options under the keys by which scenarios sweep them.

        Such as hardware.l2.capacity, schedule.flash2.tile.q and, besides, schedule.name.
        """
        options = dict(self.options or {})
        name = options.pop("name", None)
        schedule = {"name": name, name: options} if name else {}
        return flat({"hardware": self.overrides or {}, "schedule": schedule})


def _longest(kernels: list[KernelResult]) -> KernelResult | None:
    return max(kernels, key=lambda kernel: kernel.all_launches_s, default=None)


def flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """What a nested table holds, by dotted keys; but for where its figures come from."""
    found: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        elif key != "source":
            found[prefix + key] = value
    return found


@cache
def versions() -> Mapping[str, str]:
    """Versions of what determines a result."""
    names = ("attnsim", "numba", "numpy", "simpy")
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in names},
    }

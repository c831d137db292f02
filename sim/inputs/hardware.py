"""Hardware profiles: what a vendor states of a GPU and, apart from it, what kernels sustain.

A profile is a TOML file. It names its architecture, whose figures (`hw_profiles/architectures/`)
hold where it states none. `extends` makes it a variation of another one, and a scenario's
`[hardware]` may override single figures. Every section says where its figures come from.

What an SM does is stated a clock, also on its tensor cores, and the device's total follows from
`sm.count` and `sm.clock`: half the SMs are half the tensor rate, whoever asks. Where a file states
a total ("989.4 TFLOP/s"), it is of the SMs and the clock that hold in that file.
"""

import os
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, model_validator

from sim.inputs.files import (
    InputError,
    checked,
    find_toml,
    nearest,
    read_toml,
    shipped_names,
    shown,
)
from sim.inputs.units import (
    Bytes,
    BytesOrNone,
    BytesPerSecond,
    CountOfDevice,
    Cycles,
    FlopsPerClock,
    Fraction,
    Hertz,
    Joules,
    JoulesPerByte,
    JoulesPerFlop,
    Seconds,
    Watts,
    parse_quantity,
)

Model = TypeVar("Model", bound=BaseModel)
Arch = Literal["sm70", "sm75", "sm80", "sm86", "sm89", "sm90", "sm100", "sm120", "gfx942"]
# Each architecture's best matmul instruction. wgmma and tcgen05 are for a whole warp group, the
# others a warp's (PTX ISA, "Asynchronous Warpgroup Level Matrix Instructions": sm_90a, "TensorCore
# 5th Generation Family Instructions": sm_100a, not sm_120; AMD Instinct MI300 ISA: MFMA).
NATIVE_MATMUL: dict[Arch, Literal["mma.sync", "wgmma", "tcgen05", "mfma"]] = {
    "sm70": "mma.sync",
    "sm75": "mma.sync",
    "sm80": "mma.sync",
    "sm86": "mma.sync",
    "sm89": "mma.sync",
    "sm90": "wgmma",
    "sm100": "tcgen05",
    "sm120": "mma.sync",
    "gfx942": "mfma",
}


ARCHITECTURES = "hw_profiles.architectures"


class Section(BaseModel):
    """A table of a profile: figures of one subject, and where they come from."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    source: str = Field(min_length=1)


# Of a bus that carries ECC bits too: 2 bytes of them for 32 (NVIDIA's IGX user guide, "DRAM-ECC").
INLINE_ECC_DATA_SHARE = 32 / 34
# Of its rate without, at which such a bus writes: bits of more data than is written are read and
# written again. A T4 sums at 290 GB/s, adds vectors at 252 and copies at 240 (sylvia-ymlin/
# CUDA-Kernel-Optimization, docs/performance_report.md; router-gao/cuda-demo, 02-cuda-bandwidth.md):
# it writes at 200 to 210, 0.7 of what it reads at; an A10G, which sums at 492, adds at 471 and
# copies at 468 (tungsheng/cuda-kernel-lab), 0.9. An L40S's `fit` rows are nearest at 0.6 to 0.7.
INLINE_ECC_WRITE_SHARE = 0.75


class Hbm(Section):
    """Device memory (also where it is GDDR).

    `inline_ecc` says that ECC bits lie among the data, as GDDR of servers has them: they take their
    share of the bus, and a profiler's DRAM counters count them too.
    """

    capacity: Bytes
    bandwidth: BytesPerSecond
    inline_ecc: bool = False

    @property
    def read_bytes_per_s(self) -> float:
        """What the bus leaves for data that is read."""
        return self.bandwidth * (INLINE_ECC_DATA_SHARE if self.inline_ecc else 1.0)

    @property
    def write_bytes_per_s(self) -> float:
        """What it leaves for data that is written."""
        return self.read_bytes_per_s * (INLINE_ECC_WRITE_SHARE if self.inline_ecc else 1.0)


class L2(Section):
    """The cache that all SMs share.

    `dies` are how many dies keep copies of its lines in a cache of their own below it, of
    `die_capacity` each; 1 where none does.
    """

    capacity: BytesOrNone
    bandwidth: BytesPerSecond
    dies: CountOfDevice = 1
    die_capacity: BytesOrNone = 0.0


class Sram(Section):
    """Shared memory of one SM."""

    capacity: Bytes
    reserved_per_cta: BytesOrNone
    bytes_per_clock: CountOfDevice

    @property
    def max_per_cta(self) -> float:
        """Bytes that one CTA can have: all of an SM's but what the runtime reserves."""
        return self.capacity - self.reserved_per_cta


class Sm(Section):
    """Streaming multiprocessors: how many, how fast, and what one holds."""

    count: CountOfDevice
    clock: Hertz
    registers: CountOfDevice
    max_threads: CountOfDevice
    max_ctas: CountOfDevice
    fp32_lanes: CountOfDevice
    exp_per_clock: CountOfDevice
    l2_bytes_per_clock: CountOfDevice


class Tensor(Section):
    """What an SM's tensor cores do in a clock, dense and with fp32 accumulation, by dtype."""

    fp16: FlopsPerClock | None = None
    bf16: FlopsPerClock | None = None
    fp8: FlopsPerClock | None = None


class Power(Section):
    """Power limit of the board."""

    tdp: Watts


class Energy(Section):
    """Energy of a byte moved, a FLOP of 16-bit operands, a lane's operation; `idle` draws always.

    But for HBM's, these are at `clock` and go with its square. A device without them is not held
    back by its power limit.
    """

    clock: Hertz
    hbm_per_byte: JoulesPerByte
    l2_per_byte: JoulesPerByte
    sram_per_byte: JoulesPerByte
    tensor_per_flop: JoulesPerFlop
    lane_op: Joules
    idle: Watts


class Links(Section):
    """Bandwidths of one GPU's links, a direction: to the host, to peers, and to other nodes.

    `node_gpus` is how many GPUs a node has that `peer` joins; without it, all.
    """

    host: BytesPerSecond | None = None
    peer: BytesPerSecond | None = None
    network: BytesPerSecond | None = None
    node_gpus: CountOfDevice | None = None


class HbmCalibration(Section):
    """Shares of HBM's bandwidth for data that reads and writes sustain, and load-to-use latency.

    `read` is of reads alone. `write` is of bytes written between reads, so that a copy comes out
    as measured: turning the bus around is charged to them, and writes alone are faster
    (RRZE-HPC/gpu-benches, gpu-stream: init).
    """

    read: Fraction
    write: Fraction
    latency: Seconds


class L2Calibration(Section):
    """Sustained share of the L2 bandwidth, share of its capacity that data sees, latency.

    `candidates` are the lines, drawn at random, of which the one used longest ago is evicted: 1 is
    random replacement, many are LRU. Source: how bandwidth falls as a working set outgrows the L2
    (te42kyfo/gpu-benches, now RRZE-HPC, gpu-l2-cache/a100_80.txt, h100_pcie.txt, l40.txt): 2 comes
    nearest on A100 and H100, whose L2 has two partitions, 16 on the L40.
    """

    sustained: Fraction
    effective_capacity: Fraction
    candidates: CountOfDevice
    latency: Seconds


class TensorCalibration(Section):
    """Shares of the tensor rate that a tile loop reaches, by instruction path.

    `mma_sync` is the warp-level instruction, `native` the device's best (wgmma on sm90).
    """

    native: Fraction
    mma_sync: Fraction


class SmCalibration(Section):
    """Sustained shares of an SM's other pipes, and fixed costs.

    `mma_issue_cycles` is for how many cycles a warp's matmul of 4,096 FLOPs (m16n8k16 of 16-bit
    operands) keeps its sub-partition from issuing anything else: so softmax overlaps another
    CTA's matmuls no more than that leaves. `async_issue_cycles` is the same of as many FLOPs of a
    warp group's asynchronous matmul (wgmma, tcgen05).

    `cta_start` is from a free slot to a CTA's first instruction, `cta_setup` what a kernel of
    matmuls then does before its first load and after its last, one thing after the other: lengths
    and tables read, addresses, descriptors, barriers. So does each item of a kernel that
    `sets_up_items`.
    """

    vector: Fraction
    exp: Fraction
    sram: Fraction
    mma_issue_cycles: Cycles
    async_issue_cycles: Cycles = 0.0
    op_latency: Seconds
    cta_start: Seconds
    cta_setup: Seconds


class LaunchCalibration(Section):
    """Host time of one kernel launch, and device time between dependent kernels."""

    latency: Seconds
    gap: Seconds


class LinksCalibration(Section):
    """Share of the links' bandwidths that is sustained, and latencies of a transfer.

    `peer` is that of links.peer, where it is another: of GPUs that are joined by PCIe alone.
    """

    sustained: Fraction
    peer: Fraction | None = None
    latency: Seconds
    network_latency: Seconds


class Calibration(BaseModel):
    """What kernels reach of the vendor's figures, and costs that no datasheet states."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    hbm: HbmCalibration
    l2: L2Calibration
    tensor: TensorCalibration
    sm: SmCalibration
    launch: LaunchCalibration
    links: LinksCalibration


class HardwareProfile(BaseModel):
    """One GPU. All figures are SI floats once parsed."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    title: str
    arch: Arch  # public kernels choose tiles by it
    hbm: Hbm
    l2: L2
    sram: Sram
    sm: Sm
    tensor: Tensor
    power: Power | None = None
    energy: Energy | None = None
    links: Links | None = None
    calibration: Calibration

    @model_validator(mode="after")
    def _reserve_fits(self) -> "HardwareProfile":
        if self.sram.max_per_cta <= 0:
            raise ValueError(
                f"sram.capacity = {self.sram.capacity:,.0f} B must exceed sram.reserved_per_cta = "
                f"{self.sram.reserved_per_cta:,.0f} B"
            )
        return self

    def tensor_flops_per_s(self, dtype: str) -> float | None:
        """The whole device's dense tensor rate for `dtype`, or None where it has none."""
        rate = self.tensor_flops_per_clock(dtype)
        return rate and rate * self.sm.count * self.sm.clock

    def tensor_flops_per_clock(self, dtype: str) -> float | None:
        """An SM's dense tensor rate for `dtype`, or None where the device has none."""
        rate: float | None = getattr(self.tensor, dtype, None)
        return rate

    def matmul_flops_per_s(self, dtype: str) -> float:
        """The vendor's rate of matmuls: of tensor cores, or of fp32 lanes for a dtype without."""
        return self.tensor_flops_per_s(dtype) or 2 * self.vector_ops_per_s  # an FMA is two FLOPs

    def figure(self, key: str) -> float:
        """A figure by its dotted key, such as "calibration.hbm.latency"."""
        value: Any = self
        for part in key.split("."):
            value = getattr(value, part)
        return float(value)

    def with_figures(self, figures: Mapping[str, float]) -> "HardwareProfile":
        """The profile with other figures, by dotted key; they are not checked again."""
        changed = self
        for key, value in figures.items():
            changed = _with_figure(changed, key.split("."), value)
        return changed

    @property
    def matmul_by_warp_group(self) -> bool:
        """Whether a warp group, not a warp, issues the native matmul (wgmma, tcgen05)."""
        return NATIVE_MATMUL[self.arch] in ("wgmma", "tcgen05")

    @property
    def vector_ops_per_s(self) -> float:
        """Lane operations (an FMA is one) a second over the whole device."""
        return self.sm.count * self.sm.fp32_lanes * self.sm.clock

    @property
    def exps_per_s(self) -> float:
        """Exponentials a second over the whole device."""
        return self.sm.count * self.sm.exp_per_clock * self.sm.clock

    @property
    def sram_bytes_per_s(self) -> float:
        """SRAM bandwidth of all SMs together."""
        return self.sm.count * self.sram.bytes_per_clock * self.sm.clock


def _with_figure(section: Model, path: list[str], value: float) -> Model:
    """The section with the figure at `path` below it replaced."""
    first, *rest = path
    changed = _with_figure(getattr(section, first), rest, value) if rest else value
    return section.model_copy(update={first: changed})


def load_profile(
    name: str,
    overrides: Mapping[str, Any] | None = None,
    where: str = "",
    beside: Path | None = None,
) -> HardwareProfile:
    """The profile `name` (shipped name or path) with `overrides` laid over it.

    `where` names the file that overrides, for messages. Raises InputError.
    """
    path = find_toml(name, "hw_profiles", "profile", beside)
    label = str(path) if path.parent.name != "hw_profiles" else f"hw_profiles/{path.name}"
    data = _on_architecture(_with_parents(path, label, ()), label)
    if overrides:
        known = list(HardwareProfile.model_fields)
        for key in overrides:
            if key not in known:
                raise InputError(
                    f"{where}: hardware.{key}: unknown key; {nearest(key, ['profile', *known])}"
                )
        checked(HardwareProfile, {"name": path.stem, **data}, label)
        data = _with_rates_a_clock(_overlay(data, overrides, where))
        return checked(HardwareProfile, {"name": path.stem, **data}, where, "hardware")
    return checked(HardwareProfile, {"name": path.stem, **data}, label)


def variation_toml(
    title: str,
    parent: Path,
    folder: Path,
    tables: Mapping[str, Any],
    source: Callable[[str, list[str]], str],
) -> str:
    """A profile file, to stand in `folder`, that lays `tables` over the profile at `parent`.

    `source` says of a section's name and the figures in it where they come from.
    """
    shipped = parent.parent == Path(str(resources.files("hw_profiles")))
    extends = parent.stem if shipped else os.path.relpath(parent.resolve(), folder.resolve())

    def with_sources(table: Mapping[str, Any], name: str = "") -> dict[str, Any]:
        figures = [key for key, value in table.items() if not isinstance(value, Mapping)]
        parts = {
            key: with_sources(value, f"{name}.{key}".lstrip("."))
            if isinstance(value, Mapping)
            else value
            for key, value in table.items()
        }
        if name and figures:
            parts["source"] = f"{source(name, figures)}."
        return parts

    return tomli_w.dumps({"title": title, "extends": extends, **with_sources(tables)})


def _with_parents(path: Path, label: str, seen: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in seen:
        chain = " -> ".join(p.stem for p in (*seen, path))
        raise InputError(f"{label}: extends: the profiles extend each other in a circle: {chain}")
    data = read_toml(path)
    parent = data.pop("extends", None)
    if parent is None:
        return _with_rates_a_clock(data)
    if not isinstance(parent, str):
        raise InputError(f"{label}: extends = {parent}: the name of a profile was expected")
    try:
        parent_path = find_toml(parent, "hw_profiles", "profile", path.parent)
    except InputError as error:
        raise InputError(f"{label}: extends: {error}") from None
    base = _with_parents(parent_path, str(parent_path), (*seen, path.resolve()))
    return _with_rates_a_clock(_overlay(base, data, label))


def _with_rates_a_clock(data: Mapping[str, Any]) -> dict[str, Any]:
    """The tables with tensor rates that state a device's total as what an SM does in a clock.

    What is not understood stays as it is, for the check to name.
    """
    tensor, sm = data.get("tensor"), data.get("sm")
    if not isinstance(tensor, Mapping) or not isinstance(sm, Mapping):
        return dict(data)
    try:
        clocks_per_s = sm["count"] * parse_quantity(sm["clock"], "hertz", "", "")
    except (KeyError, TypeError, ValueError, OverflowError):
        return dict(data)

    def a_clock(key: str, given: Any) -> Any:
        if key == "source":
            return given
        try:
            rate = parse_quantity(given, "flop/second", "", "") / clocks_per_s
        except (ValueError, ZeroDivisionError):
            return given
        return f"{rate!r} FLOP/clock"

    return {**data, "tensor": {key: a_clock(key, given) for key, given in tensor.items()}}


def _on_architecture(data: Mapping[str, Any], label: str) -> dict[str, Any]:
    """What a device states laid over what its architecture is known to do."""
    known = shipped_names(ARCHITECTURES)
    if {"workload", "schedule"} & data.keys():
        raise InputError(f"{label}: a profile of a device was expected, and this is a scenario")
    fields = ["extends", *HardwareProfile.model_fields]
    if unknown := sorted(data.keys() - set(fields)):
        raise InputError(f"{label}: {unknown[0]}: unknown key; {nearest(unknown[0], fields)}")
    if "arch" not in data:
        raise InputError(
            f"{label}: arch: missing; known: {', '.join(known)}; or extends = the name of a "
            "profile of which this one is a variation"
        )
    if data["arch"] not in known:
        hint = nearest(str(data["arch"]), known)
        raise InputError(f"{label}: arch = {shown(data['arch'])}: no such architecture; {hint}")
    base = read_toml(find_toml(data["arch"], ARCHITECTURES, "architecture"))
    return _overlay(base, data, label)


def _overlay(base: Mapping[str, Any], changes: Mapping[str, Any], who: str) -> dict[str, Any]:
    """`changes` laid over `base`; a section that changes in part tells the sources of both.

    One that changes without a source says who changed it.
    """
    merged = dict(base)
    for key, value in changes.items():
        if isinstance(value, Mapping) and isinstance(base.get(key), Mapping):
            merged[key] = _overlay(base[key], value, who)
            if "source" in base[key]:
                own = value.get("source", f"{', '.join(value)}: set by {who}.")
                kept = base[key].keys() - value.keys() - {"source"}
                rest = f" The rest: {base[key]['source']}" if kept else ""
                # What is no text is left for the check to tell.
                merged[key]["source"] = own + rest if isinstance(own, str) else own
        else:
            merged[key] = value
    return merged

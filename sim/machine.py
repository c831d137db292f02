"""The machine both engines run on: a profile's pipes at the rates that kernels sustain.

A pipe is a FIFO server. Each SM has its own tensor, vector, exp, SRAM and issue pipes and a port to
L2; L2 and HBM are one pipe each for the device.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sim.inputs.files import InputError
from sim.inputs.hardware import HardwareProfile
from sim.inputs.workload import DTYPE_BYTES
from sim.tile_program import Action, Compute, Footprint, Kernel, Load, Transfer

TENSOR, VECTOR, EXP, SRAM, ISSUE, PORT = range(6)
SM_PIPES = 6
L2, HBM = 6, 7
# Causes to which critical time goes: the pipes by their numbers, then what no pipe serves.
L2_LATENCY, HBM_LATENCY, OP_LATENCY, CTA_START = 8, 9, 10, 11
CAUSES = (
    "tensor",
    "vector",
    "exp",
    "sram",
    "issue",
    "sm_port",
    "l2",
    "hbm",
    "l2_latency",
    "hbm_latency",
    "op_latency",
    "cta_start",
)
N_CAUSES = len(CAUSES)

# An SM has 4 sub-partitions, each of which issues one instruction of a warp of 32 lanes a clock
# (CUDA C++ Programming Guide, sections "Compute Capability 7.x" to "9.0").
SUB_PARTITIONS, LANES = 4, 32
# FLOPs of a warp's matmul of 16-bit operands, m16n8k16; of narrower ones as many more (PTX ISA,
# mma.sync). Costs of issuing are for so many FLOPs, whatever the instruction.
MATMUL_FLOPS, MATMUL_OPERAND_BYTES = 4096, 2
SRAM_BYTES_AN_INSTRUCTION = 512  # of a warp's widest access: 16 bytes a lane (LDSM.x4)
# A CTA that finds nothing to do ends sooner than others come to their first load: on an L40S in
# 0.35 us, by `fit` rows of SGLang's latent decoding, whose grids of 131,072 CTAs nearly all do so.
IDLE_SHARE = 0.5
# Of its bytes an L2 leaves so many dirty, and writes others before it needs their room: seven
# softmaxes of 42 MB on an RTX A6000 (6 MiB) end with 2.9 to 3.4 MB not yet written, 0.46 to 0.54
# (fmh66/kernel-opt-skill, demo/*/softmax/*/ncu_summary.md, with what the profiler left before).
MOST_DIRTY = 0.5
ISSUED = ("matmuls", "fp32", "other", "exp", "sram")  # what fills issue slots, by amounts


@dataclass(frozen=True)
class Machine:
    """Sustained rates and fixed times of a profile, in SI."""

    sms: int
    hbm_read_bytes_per_s: float
    hbm_write_bytes_per_s: float
    l2_bytes_per_s: float
    port_bytes_per_s: float
    l2_capacity_bytes: int
    l2_most_dirty_bytes: int
    die_capacities_bytes: tuple[int, ...]  # of each die's own cache, none where there is one die
    l2_latency_s: float
    hbm_latency_s: float
    op_latency_s: float
    dies: int  # to which CTAs are dealt in turn; SM k is on die k mod dies

    def hbm_s(self, read_bytes: float, write_bytes: float) -> float:
        """Seconds that HBM is busy with so many bytes."""
        return read_bytes / self.hbm_read_bytes_per_s + write_bytes / self.hbm_write_bytes_per_s


def machine_of(hw: HardwareProfile) -> Machine:
    """The machine that a profile describes."""
    calibration = hw.calibration
    dies = min(hw.l2.dies, hw.sm.count)
    l2_capacity_bytes = int(hw.l2.capacity * calibration.l2.effective_capacity)
    return Machine(
        sms=hw.sm.count,
        hbm_read_bytes_per_s=hw.hbm.read_bytes_per_s * calibration.hbm.read,
        hbm_write_bytes_per_s=hw.hbm.write_bytes_per_s * calibration.hbm.write,
        l2_bytes_per_s=hw.l2.bandwidth * calibration.l2.sustained,
        port_bytes_per_s=hw.sm.l2_bytes_per_clock * hw.sm.clock,
        l2_capacity_bytes=l2_capacity_bytes,
        l2_most_dirty_bytes=min(int(hw.l2.capacity * MOST_DIRTY), l2_capacity_bytes),
        die_capacities_bytes=(int(hw.l2.die_capacity),) * dies if dies > 1 else (),
        l2_latency_s=calibration.l2.latency,
        hbm_latency_s=calibration.hbm.latency,
        op_latency_s=calibration.sm.op_latency,
        dies=dies,
    )


def cta_start_s(kernel: Kernel, hw: HardwareProfile) -> float:
    """From a free slot to a CTA's first load [s]: of a kernel of matmuls with its setup."""
    calibration = hw.calibration.sm
    sets_up = kernel.multiplies if kernel.sets_up is None else kernel.sets_up
    return calibration.cta_start + (calibration.cta_setup if sets_up else 0.0)


def idle_cta_s(hw: HardwareProfile) -> float:
    """From a free slot to the end of a CTA whose items have no trips [s]: it sets nothing up."""
    return IDLE_SHARE * hw.calibration.sm.cta_start


def item_setup_s(kernel: Kernel, hw: HardwareProfile) -> float:
    """What each item of a CTA but its first begins with, if it has trips [s]."""
    return hw.calibration.sm.cta_setup if kernel.sets_up_items else 0.0


def held_s(load: Load, hw: HardwareProfile) -> float:
    """For how long a load holds its SM's port beyond what its bytes take [s]."""
    return load.held_cycles / hw.sm.clock + load.held_reads * hw.calibration.l2.latency


def service_times_s(
    op: Compute, kernel: Kernel, hw: HardwareProfile, dtype: str
) -> NDArray[np.float64]:
    """Seconds that one worker's share of `op` takes of each SM pipe.

    A dtype without a tensor rate (fp32) has its matmuls on the vector pipe. Returns shape (6,).
    """
    dtype = kernel.matmul_dtype or dtype
    sm, calibration = hw.sm, hw.calibration
    service_s = np.zeros(SM_PIPES)
    flops_per_clock = hw.tensor_flops_per_clock(dtype)
    if flops_per_clock is not None:
        by_warp = kernel.tensor_path == "mma_sync"
        sustained = calibration.tensor.mma_sync if by_warp else calibration.tensor.native
        service_s[TENSOR] = op.mma_flops / (flops_per_clock * sm.clock * sustained)
        service_s[TENSOR] += op.held_cycles / sm.clock
    vector_ops = _vector_ops(op, hw, dtype)
    service_s[VECTOR] = vector_ops / (sm.fp32_lanes * sm.clock * calibration.sm.vector)
    service_s[EXP] = op.exp_count / (sm.exp_per_clock * sm.clock * calibration.sm.exp)
    service_s[SRAM] = op.sram_bytes / (hw.sram.bytes_per_clock * sm.clock * calibration.sm.sram)
    service_s[ISSUE] = sum(_issue_s(op, kernel, hw, dtype).values())
    return service_s / kernel.footprint.workers


def latency_s(op: Compute, kernel: Kernel, hw: HardwareProfile, dtype: str) -> float:
    """Seconds from when the slowest pipe has served `op` until its worker goes on."""
    one_s = hw.calibration.sm.op_latency
    if not op.operand_waits:
        return op.latencies * one_s
    service_s = service_times_s(op, kernel, hw, dtype)
    read_s = float(service_s[SRAM]) + op.operand_waits * one_s
    beside_s = kernel.footprint.workers * float(service_s.max())  # by all of its CTA's workers
    return op.latencies * one_s + max(0.0, read_s - beside_s)


def _vector_ops(op: Compute, hw: HardwareProfile, dtype: str) -> float:
    """Operations of fp32 lanes, which multiply where tensor cores cannot."""
    multiplied = op.mma_flops / 2 if hw.tensor_flops_per_clock(dtype) is None else 0.0
    return op.vector_ops + multiplied  # an FMA is two FLOPs


def _issue_s(op: Compute, kernel: Kernel, hw: HardwareProfile, dtype: str) -> dict[str, float]:
    """Seconds of an SM's issue slots that `op` takes, by what fills them, or leaves them empty."""
    multiplies = hw.tensor_flops_per_clock(dtype) is not None
    holds = multiplies and kernel.tensor_path != "waited"
    by_group = kernel.tensor_path != "mma_sync" and hw.matmul_by_warp_group
    by_itself = by_group and op.mma_flops  # a warp group's matmul reads SRAM without a load
    slots = {
        "matmuls": _held_cycles(op.mma_flops, by_group, hw, dtype) if holds else 0.0,
        "fp32": _vector_ops(op, hw, dtype) / LANES,
        "other": op.other_ops / LANES,
        "exp": op.exp_count / LANES,
        "sram": 0.0 if by_itself else op.sram_bytes / SRAM_BYTES_AN_INSTRUCTION,
    }
    # A warp's next exponential waits for the unit, and what follows it with it.
    cycles_a_second = SUB_PARTITIONS * hw.sm.clock
    exps_a_cycle = hw.sm.exp_per_clock * hw.calibration.sm.exp / SUB_PARTITIONS
    exp_cycles = (op.exp_count - op.exps_beside) / exps_a_cycle
    others = sum(slots.values()) - slots["matmuls"]
    slots["waits for exp"] = max(0.0, exp_cycles - others)
    return {what: cycles / cycles_a_second for what, cycles in slots.items()}


@dataclass(frozen=True)
class IssueSlots:
    """What took a kernel's issue slots, in seconds over all SMs, by instructions (`ISSUED`).

    `exp_bound_s` is how long exponentials were all that was waited for: their unit took longer than
    all that was issued beside them.
    """

    filled_s: dict[str, float]
    busy_s: float
    exp_bound_s: float


def issue_slots(
    counts: Mapping[Action, int], kernel: Kernel, hw: HardwareProfile, dtype: str
) -> IssueSlots:
    """The issue slots of actions that ran so often, a compute once a worker."""
    dtype = kernel.matmul_dtype or dtype
    filled_s, busy_s, exp_bound_s = dict.fromkeys(ISSUED, 0.0), 0.0, 0.0
    for op, count in counts.items():
        if not isinstance(op, Compute):
            continue
        slots_s, times = _issue_s(op, kernel, hw, dtype), count / kernel.footprint.workers
        op_s = sum(slots_s.values())
        busy_s += op_s * times
        if slots_s.pop("waits for exp"):
            exp_bound_s += (op_s - slots_s["matmuls"]) * times
        for what, one_s in slots_s.items():
            filled_s[what] += one_s * times
    return IssueSlots(filled_s, busy_s, exp_bound_s)


def _held_cycles(flops: int, by_group: bool, hw: HardwareProfile, dtype: str) -> float:
    """Cycles, over all sub-partitions, in which matmuls keep other instructions from being issued.

    They go by the architecture's instructions, not by how fast its tensor cores are.
    """
    calibration = hw.calibration.sm
    cycles = calibration.async_issue_cycles if by_group else calibration.mma_issue_cycles
    wider = MATMUL_OPERAND_BYTES / DTYPE_BYTES[dtype]
    return flops / (MATMUL_FLOPS * wider) * cycles


def ctas_per_sm(footprint: Footprint, hw: HardwareProfile) -> int:
    """How many such CTAs one SM holds at once; raises InputError where not even one fits."""
    return room_on_sm(footprint, hw)[0]


def room_on_sm(footprint: Footprint, hw: HardwareProfile) -> tuple[int, str]:
    """How many such CTAs one SM holds at once, and what is too little for one more.

    That is SRAM, registers, threads, CTA slots, or several of these. Registers are dealt a warp in
    units of 256 (CUDA occupancy calculator). Raises InputError where not even one fits.
    """
    warps = -(-footprint.threads // 32)
    registers = warps * (-(-footprint.registers_per_thread * 32 // 256) * 256)
    room = {
        "SRAM": int(hw.sram.capacity // (footprint.sram_bytes + hw.sram.reserved_per_cta))
        if footprint.sram_bytes + hw.sram.reserved_per_cta
        else hw.sm.max_ctas,
        "registers": hw.sm.registers // registers,
        "threads": hw.sm.max_threads // footprint.threads,
        "CTA slots": hw.sm.max_ctas,
    }
    ctas = min(room.values())
    limit = " and ".join(name for name in room if room[name] == ctas)
    if ctas < 1:
        raise InputError(f"one CTA does not fit an SM of {hw.name}: too little of its {limit}")
    return ctas, limit


def fits_sm(footprint: Footprint, hw: HardwareProfile) -> bool:
    """Whether one SM holds such a CTA."""
    try:
        return ctas_per_sm(footprint, hw) > 0
    except InputError:
        return False


def waves(kernel: Kernel, hw: HardwareProfile) -> float:
    """How often the device is filled by the kernel's CTAs or, of a persistent one, by its tiles."""
    at_once = hw.sm.count * ctas_per_sm(kernel.footprint, hw)
    if kernel.dealt_tiles:
        return kernel.dealt_tiles / min(at_once, max(kernel.ctas, hw.sm.count))
    return kernel.ctas / at_once


LinkKind = Literal["peer", "network", "to host", "from host"]


@dataclass(frozen=True)
class Link:
    """What joins two ends: its kind, sustained bytes a second a direction, and latency."""

    kind: LinkKind
    bytes_per_s: float
    latency_s: float


def link_of(hw: HardwareProfile, gpu: int, transfer: Transfer) -> Link:
    """The link that a transfer of GPU `gpu` takes; raises InputError where there is none."""
    if transfer.from_host:
        return host_link(hw, "from host")
    if transfer.to == "host":
        return host_link(hw, "to host")
    return peer_link(hw, gpu, transfer.to)


def host_link(hw: HardwareProfile, kind: LinkKind) -> Link:
    """The link to the host's memory; raises InputError without one."""
    if hw.links is None or hw.links.host is None:
        raise InputError(f"{hw.name} has no links.host: the link to the host's memory")
    calibration = hw.calibration.links
    return Link(kind, hw.links.host * calibration.sustained, calibration.latency)


def peer_link(hw: HardwareProfile, gpu: int, to: int) -> Link:
    """The link from one GPU to another: links.peer within a node, links.network beyond.

    A node has `links.node_gpus`. Raises InputError where the profile has no such link.
    """
    links, calibration = hw.links, hw.calibration.links
    if links is None or links.peer is None:
        raise InputError(f"{hw.name} has no links.peer: the link to other GPUs")
    if links.node_gpus is None or gpu // links.node_gpus == to // links.node_gpus:
        share = calibration.peer or calibration.sustained
        return Link("peer", links.peer * share, calibration.latency)
    if links.network is None:
        raise InputError(
            f"{hw.name} has no links.network: the link beyond the {links.node_gpus} GPUs of a node "
            "(links.node_gpus)"
        )
    return Link("network", links.network * calibration.sustained, calibration.network_latency)

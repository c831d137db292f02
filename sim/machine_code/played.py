"""A loop played through on an SM: how long a trip takes of CTAs whose warps issue in order.

    the next to issue: of all warps the one that can first; of several the one that issued last,
    then the youngest (Huerta et al. 2025, arXiv 2503.20481, recalled)
        its instruction waits until the warp's last has stalled its cycles, until the scoreboards
        that it names are free, and for its pipe;  it takes an issue slot of the sub-partition
        what it writes (or reads) later, a scoreboard tells:  free after the result's latency
    a barrier holds a warp until all of its CTA are there

Stall cycles and scoreboards are the assembler's, in bits 105 to 121 of each instruction: how many
cycles the warp stalls, which of six scoreboards tells that a result is written and which that
operands are read, and those it waits for (Jia et al. 2018, arXiv 1804.06826, section 2.1.1; the
same from Volta on). Latencies and the cycles that a warp holds a pipe for are estimates for sm_80
to sm_90: results of shared memory 29 to 33 cycles, shuffles 24 (arXiv 2208.11174, recalled),
integers and comparisons 16 lanes a cycle, as minima and conversions; matmuls as mma.sync on an
H100, slower tensor cores being the device's affair (trip.py).

Global memory is taken to answer as L1 does, copies (LDGSTS) to come in time; bank conflicts, the
instruction cache and what is on the other side of a branch are left out. Loops whose matmuls are a
warp group's (wgmma, tcgen05) are not played: their waits are no scoreboards.
"""

from collections import defaultdict
from dataclasses import dataclass, field

from sim.machine import SUB_PARTITIONS
from sim.machine_code.loops import Loop
from sim.machine_code.sass import Instruction

TRIPS = 6
SCOREBOARDS = 6
BARRIER_CYCLES = 8
L1_CYCLES = 35
LATENCIES = {
    "LDSM": 33, "LDS": 29, "STS": 12, "SHFL": 24, "MUFU": 20, "LDG": L1_CYCLES, "LDL": 33,
    "STL": 12, "STG": 12, "S2R": 30, "S2UR": 30,
}  # fmt: skip
OTHER_LATENCY = 16  # of what else has a scoreboard: conversions, votes
SHARED_MEMORY = ("LDSM", "LDS", "STS", "STSM", "SHFL", "LDGSTS", "LDG", "STG", "LDL", "STL")
QUEUED_CYCLES = 24  # of accesses to it that wait without holding up their warps
# Cycles for which a warp's instruction holds its sub-partition's pipe.
INTEGER = (
    "LOP3 IADD3 ISETP SHF LEA SEL FMNMX FSETP PLOP3 PRMT IMNMX VIMNMX FSEL SGXT F2FP P2R R2P VIADD "
    "MOV"
)
HELD_CYCLES = dict.fromkeys(INTEGER.split(), ("integer", 2.0)) | {
    "IMAD": ("fp32", 2.0), "FFMA": ("fp32", 1.0), "FMUL": ("fp32", 1.0), "FADD": ("fp32", 1.0),
    "HMMA": ("tensor", 6.5), "MUFU": ("exp", 8.0), "I2F": ("exp", 8.0), "F2I": ("exp", 8.0),
}  # fmt: skip


@dataclass(frozen=True)
class Issue:
    """What an instruction waits for, holds and frees, in cycles."""

    stall: int
    waits: tuple[int, ...]  # scoreboards
    frees: tuple[int, ...]  # scoreboards that it frees
    latency: int
    pipe: tuple[str, float] | None
    shared: int  # cycles for which it holds the SM's shared memory
    meets: bool


@dataclass
class Warp:
    """Where a warp stands in the code and when it can go on."""

    cta: int
    part: int  # its sub-partition
    at: int = 0
    ready: float = 0.0
    trips: int = 0
    boards: list[float] = field(default_factory=lambda: [0.0] * SCOREBOARDS)
    meeting: bool = False


def plays_through(loop: Loop) -> bool:
    """Whether the loop's waits are all in its instructions."""
    return not any(one.of == "mma" and one.root[-4:] != "HMMA" for one in loop.body)


def trip_played(loop: Loop, warps: int, ctas: int) -> float:
    """Cycles of a trip of so many CTAs that share an SM, of so many warps each, all at once."""
    code = [_issue(one) for one in loop.body]
    running = [Warp(cta, warp % SUB_PARTITIONS) for cta in range(ctas) for warp in range(warps)]
    free: defaultdict[tuple[int, str], float] = defaultdict(float)  # pipes of sub-partitions
    slot, shared = [0.0] * SUB_PARTITIONS, 0.0
    last: list[Warp | None] = [None] * SUB_PARTITIONS

    def earliest(warp: Warp) -> float:
        one = code[warp.at]
        waits = [warp.ready, slot[warp.part], *(warp.boards[board] for board in one.waits)]
        if one.pipe:
            waits.append(free[warp.part, one.pipe[0]])
        if one.shared:
            waits.append(shared - QUEUED_CYCLES)
        return max(waits)

    left, now = list(running), 0.0
    while left:
        can = [warp for warp in left if not warp.meeting]
        now, _, number = min(
            (earliest(one), one is not last[one.part], -n) for n, one in enumerate(can)
        )
        warp = last[can[-number].part] = can[-number]
        one = code[warp.at]
        slot[warp.part] = now + 1
        if one.pipe:
            free[warp.part, one.pipe[0]] = now + one.pipe[1]
        done = now + one.latency
        if one.shared:
            shared = max(shared, now) + one.shared
            done = shared + one.latency
        for board in one.frees:
            warp.boards[board] = max(warp.boards[board], done)
        warp.ready, warp.meeting = now + one.stall, one.meets
        warp.at = (warp.at + 1) % len(code)
        if one.meets:
            _meet([other for other in running if other.cta == warp.cta], now)
        if not warp.at:
            warp.trips += 1
            if warp.trips == TRIPS:
                left.remove(warp)
    return now / TRIPS


def _meet(warps: list[Warp], now: float) -> None:
    """Let them go on if all are there."""
    if all(warp.meeting for warp in warps):
        for warp in warps:
            warp.meeting, warp.ready = False, max(warp.ready, now + BARRIER_CYCLES)


def _issue(one: Instruction) -> Issue:
    control = one.control
    written, read = control >> 5 & 7, control >> 8 & 7
    return Issue(
        stall=max(1, control & 15),
        waits=tuple(board for board in range(SCOREBOARDS) if control >> 11 + board & 1),
        frees=tuple(board for board in {written, read} if board < SCOREBOARDS),
        latency=LATENCIES.get(one.root, OTHER_LATENCY),
        pipe=HELD_CYCLES.get(one.root),
        shared=_shared_cycles(one),
        meets=one.waits_for_all,
    )


def _shared_cycles(one: Instruction) -> int:
    """Cycles for which an access holds the SM's shared memory, 128 bytes each."""
    if one.root not in SHARED_MEMORY:
        return 0
    wide = 4 if ".128" in one.opcode else 2 if ".64" in one.opcode else 1
    return max(wide, int(one.sram_bytes) // 128)

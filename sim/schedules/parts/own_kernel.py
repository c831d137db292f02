"""A flash loop whose trip is that of compiled machine code: one's own kernel, by its cubin.

A trip's instructions are attributed to the three computes of the loop by their class:

    S = Q K^T    half the FLOPs, half the bytes of shared memory
    softmax      fp32 lanes, exponentials, and all else that is issued: maxima, conversions,
                 shuffles, addresses, copies, barriers, branches
    O += P V     the other halves

so that FLOPs, fp32 lanes, exponentials, bytes of shared memory and issue slots of a trip are just
the code's. Only the tile is not in it: the one that the schedule is told must do the FLOPs of the
code's matmuls. What the code does to make K or V ready (rotating, dequantising), or for dropout, is
among the counts, so that a schedule adds nothing to them.

Where warps differ (setmaxnreg), those that the FLOPs leave over only load. Keys that a TMA copy
brings are written to shared memory once; of tcgen05, which does not tell its shape, operands are
read once, and the tile cannot be checked.

A kernel for one architecture may be asked about on another. mma.sync runs on every NVIDIA GPU, on a
Hopper or a Blackwell of servers by the slower path; wgmma and tcgen05 are one architecture's own.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from sim.inputs.files import InputError
from sim.inputs.hardware import NATIVE_MATMUL, HardwareProfile
from sim.inputs.units import show, show_binary
from sim.inputs.workload import DTYPE_BYTES, AttentionWorkload
from sim.machine import LANES, SRAM_BYTES_AN_INSTRUCTION
from sim.machine_code.counts import FlashLoop
from sim.schedules.base import Tile
from sim.schedules.parts.kv_cache import row_bytes
from sim.tile_program import CompiledFrom, Compute, Footprint, Load, TensorPath

SIDES = (16, 32, 64, 128, 256, 512)  # of tiles that an error proposes
PROPOSED = 3
WARPS_A_GROUP = 4


@dataclass(frozen=True)
class OwnTrip:
    """What a CTA's trip takes, all its warps together, and what the CTA takes of its SM."""

    mma_flops: int
    vector_ops: int
    other_ops: int
    exp_count: int
    sram_bytes: int
    footprint: Footprint
    tensor_path: TensorPath
    source: CompiledFrom

    def computes(
        self, loads_k: tuple[Load, ...], loads_v: tuple[Load, ...]
    ) -> tuple[Compute, Compute, Compute]:
        """The trip on keys and values that those loads bring."""
        flops, sram_bytes = self.mma_flops // 2, self.sram_bytes // 2
        return (
            Compute("S = Q K^T", loads_k, flops, sram_bytes=sram_bytes),
            Compute(
                "softmax",
                vector_ops=self.vector_ops,
                other_ops=self.other_ops,
                exp_count=self.exp_count,
            ),
            Compute("O += P V", loads_v, flops, sram_bytes=self.sram_bytes - sram_bytes),
        )


@dataclass(frozen=True)
class Asked:
    """What a schedule is told of a kernel: its tile, and what only its launch knows."""

    tile: Tile
    is_stated: bool  # the tile, by whoever asks
    warps: int | None
    dynamic_sram_bytes: int | None


def own_trip(code: FlashLoop, asked: Asked, w: AttentionWorkload, hw: HardwareProfile) -> OwnTrip:
    """The trip of a kernel of `w`'s head_dim on a device; raises InputError where it cannot be."""
    _check_runs(code, w, hw)
    threads = _threads(code, asked)
    working = _working_warps(code, asked, w, threads // LANES)
    sram_bytes = code.sram_bytes * working
    kv_bytes = 2 * asked.tile.kv * row_bytes(w)
    if not code.copies:
        sram_bytes += kv_bytes
    if code.mma_flops is None:
        sram_bytes += kv_bytes + asked.tile.q * w.head_dim * w.dtype_bytes
    slots = code.instructions - code.fp32_lanes / LANES - code.mufu
    others = LANES * slots * working
    if code.matmul == "mma.sync":  # what reads its operands is charged by bytes
        others -= LANES * sram_bytes / SRAM_BYTES_AN_INSTRUCTION
    return OwnTrip(
        mma_flops=_flops(asked.tile, w),
        vector_ops=code.fp32_lanes * working,
        other_ops=max(0, round(others)),
        exp_count=LANES * code.mufu * working,
        sram_bytes=round(sram_bytes),
        footprint=Footprint(
            _sram_bytes(code, asked, hw),
            threads,
            code.kernel.registers,
            producer_threads=threads - LANES * working,
        ),
        tensor_path="mma_sync" if code.matmul == "mma.sync" else "native",
        source=CompiledFrom(code.sha256, code.kernel.name, code.kernel.arch, code.matmul, hw.arch),
    )


def fits(code: FlashLoop, tile: Tile, w: AttentionWorkload) -> bool:
    """Whether its matmuls could be of that tile and head_dim, by as many warps as it was built for.

    Where the code tells neither, any are.
    """
    if code.mma_flops is None or code.kernel.threads is None:
        return True
    warps, left = divmod(_flops(tile, w), code.mma_flops)
    return not left and _may_work(code, int(warps), code.kernel.threads // LANES)


def _check_runs(code: FlashLoop, w: AttentionWorkload, hw: HardwareProfile) -> None:
    """Whether the device has its matmuls, and they are as wide as the workload's elements."""
    native = NATIVE_MATMUL[hw.arch]
    if native == "mfma" or code.matmul not in (native, "mma.sync"):
        raise InputError(
            f"{_kernel(code)}: its matmuls are {code.matmul}, {hw.name} ({hw.arch}) has {native}"
        )
    dtype = code.matmul_dtype
    if dtype is not None and DTYPE_BYTES.get(dtype, w.dtype_bytes) != w.dtype_bytes:
        raise InputError(
            f'{_kernel(code)}: its matmuls are of {dtype}, workload.dtype = "{w.dtype}"'
        )


def _threads(code: FlashLoop, asked: Asked) -> int:
    told = code.kernel.threads
    if told is None and asked.warps is None:
        raise InputError(f"{_kernel(code)}: its launch says how many threads a CTA has: give warps")
    if told is not None and asked.warps not in (None, told // LANES):
        raise InputError(f"{_kernel(code)}: warps = {asked.warps}: it has {told // LANES}")
    return told or LANES * (asked.warps or 0)


def _sram_bytes(code: FlashLoop, asked: Asked, hw: HardwareProfile) -> int:
    dynamic = code.kernel.dynamic_sram_bytes
    if dynamic is None:
        dynamic = asked.dynamic_sram_bytes
    if dynamic is None:
        raise InputError(
            f"{_kernel(code)}: its launch says how much dynamic shared memory a CTA has, and no "
            'description by Triton (FILE.json) is beside it: give dynamic_sram = "... KiB"'
        )
    sram_bytes = code.kernel.static_sram_bytes + dynamic
    if sram_bytes > hw.sram.max_per_cta:
        raise InputError(
            f"{_kernel(code)}: needs {show_binary(sram_bytes)} of SRAM, {hw.name} has "
            f"{show_binary(hw.sram.max_per_cta)} a CTA"
        )
    return sram_bytes


def _flops(tile: Tile, w: AttentionWorkload) -> int:
    return 4 * tile.q * tile.kv * w.head_dim


def _may_work(code: FlashLoop, warps: int, of: int) -> bool:
    """Whether so many of its warps may have matmuls: all, or where warps differ whole groups."""
    some = code.deals_registers and 0 < warps < of and warps % WARPS_A_GROUP == 0
    return warps == of or some


def _working_warps(code: FlashLoop, asked: Asked, w: AttentionWorkload, warps: int) -> int:
    """How many of the CTA's warps run the loop, so that they do the FLOPs of the tile."""
    if code.mma_flops is None:
        if not asked.is_stated:
            raise InputError(
                f"{_kernel(code)}: {code.matmul} does not tell what tile it is of: give tile"
            )
        return warps
    flops = _flops(asked.tile, w)
    working, left = divmod(flops, code.mma_flops)
    if not left and _may_work(code, int(working), warps):
        return int(working)
    whole = code.mma_flops * warps
    fitting = [f"{{ q = {t.q}, kv = {t.kv} }}" for t in _tiles_of(whole, asked.tile, w)]
    would = f"tile = {' or '.join(fitting[:PROPOSED])} would fit"
    raise InputError(
        f"{_kernel(code)}: a trip of its main loop has {show(whole, 'FLOP')} of matmuls in {warps} "
        f"warps, tile = {asked.tile} of head_dim {w.head_dim} {show(flops, 'FLOP')}: "
        + (would if fitting else f"none of head_dim {w.head_dim} would fit")
    )


def _tiles_of(flops: float, near: Tile, w: AttentionWorkload) -> list[Tile]:
    """Tiles of so many FLOPs: those with a side of the one given first, then the squarer ones."""

    def found() -> Iterator[Tile]:
        for q in sorted({*SIDES, near.q}):
            kv, left = divmod(flops, 4 * q * w.head_dim)
            if not left and kv >= SIDES[0] and kv % SIDES[0] == 0 and kv <= SIDES[-1]:
                yield Tile(q=q, kv=int(kv))

    def far(tile: Tile) -> tuple[bool, bool, float]:
        long, short = max(tile.q, tile.kv), min(tile.q, tile.kv)
        return tile.q != near.q, tile.kv != near.kv, long / short

    return sorted(found(), key=far)


def _kernel(code: FlashLoop) -> str:
    return f"{code.file}: {code.kernel.name} ({code.kernel.arch})"

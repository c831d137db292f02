"""SGLang's prefill in Triton, with one warp on each sub-partition: what it waits for.

    for each block of keys, from the first one on:
        with a window:  mask its scores, and go on to the next block if none is seen
        wait for K;  S = Q K^T;  the softmax;  wait for V;  O += P V

Nothing is loaded ahead, and a warp alone on its sub-partition has nobody to work while it waits for
its own results. By machine code played through (sim/machine_code/played.py) of SGLang 0.5.14's
kernel as its Triton, 3.6, compiles it for sm_89, of 64 x 128 x 64 in 4 warps, 255 registers: a trip
of a CTA alone takes 7,032 cycles, of which matmuls are 2,048 and instructions, one a cycle, 1,391.
Whether a block is seen at all is found through SRAM, in 8 barriers.

Source: sgl-project/sglang, python/sglang/srt/layers/attention/triton_ops/extend_attention.py
(_fwd_kernel, SKIP_TILE). Its grid has the blocks of rows in the slowest place.
"""

from dataclasses import dataclass, replace

import numpy as np

from sim.inputs.hardware import HardwareProfile
from sim.inputs.workload import AttentionWorkload
from sim.schedules.base import visible_blocks
from sim.schedules.parts.flash_cta import FlashCta
from sim.schedules.parts.flash_loop import WARPS_A_WORKER, QueryBlocks
from sim.schedules.parts.instructions import LANES, OpsAScore
from sim.tile_program import Compute, IntArray, Loop


@dataclass(frozen=True)
class Played:
    """Cycles a score of a lane: those in which a warp holds its sub-partition, and waits."""

    held: float
    waited: float

    @staticmethod
    def of(alone: int, two: int, told: int = 0) -> "Played":
        """Of a trip of a CTA alone, and of two together, which wait for the pipes alone.

        So many cycles that it holds them are told by what it executes.
        """
        return Played((two / 2 - told) / SCORES_A_LANE, (alone - two / 2) / SCORES_A_LANE)

    def latencies(self, cta: FlashCta, hw: HardwareProfile) -> int:
        """So many dependent results take as long as a trip of the CTA's waits."""
        cycles = self.waited * cta.tile.q * cta.tile.kv / (LANES * cta.warps)
        return round(cycles / hw.sm.clock / hw.calibration.sm.op_latency)


SCORES_A_LANE = 64
# By bytes of an element; its matmuls are told, and as many instructions as of 16 bits: V of 8 bits
# goes to registers a byte at a time, in 431 more.
TRIP = {
    2: Played.of(7_032, 8_443, told=2_048 + 1_391),
    1: Played.of(4_407, 6_079, told=1_024 + 1_391),
}
# Of a block that a window hides, and what a window adds to one that is seen.
HIDDEN = Played.of(3_739, 5_708)
SEEN = Played.of(13_036 - 7_032, 15_736 - 8_443)


def waiting(cta: FlashCta, w: AttentionWorkload, hw: HardwareProfile) -> FlashCta:
    """The CTA with what its warps wait for, where each has a sub-partition and rows of its own."""
    if cta.warps > WARPS_A_WORKER or cta.shares_keys or hw.matmul_by_warp_group:
        return cta
    played = [TRIP[1 if w.dtype_bytes == 1 else 2], *([SEEN] if w.window else [])]
    held = OpsAScore(fp32=0, other=sum(part.held for part in played), exps=0)
    waited = sum(part.latencies(cta, hw) for part in played)
    return replace(cta, own_latencies=waited, a_score=cta.a_score + held)


def hidden_blocks(
    w: AttentionWorkload, cta: FlashCta, grid: QueryBlocks, hw: HardwareProfile
) -> tuple[Loop, ...]:
    """The loop over blocks that a window hides, none where there is no window."""
    if w.window is None:
        return ()
    before = np.maximum(visible_blocks(w, cta.tile)[0], 0)
    executed = round(HIDDEN.held * cta.tile.q * cta.tile.kv)
    masked = Compute("mask", other_ops=executed, latencies=HIDDEN.latencies(cta, hw))

    def trips(items: IntArray) -> IntArray:
        hidden: IntArray = before[grid.row(items)]
        return hidden

    return (Loop(trips, (masked,)),)

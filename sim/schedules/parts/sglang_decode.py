"""What SGLang's decoding in Triton does outside its loop over keys.

    find the sequence's place, its length and its ranges;  the range's keys;  addresses
    ... the loop ...
    log-sum-exp and O of the range, or whole, to their places

Source: sgl-project/sglang 0.5.14, python/sglang/srt/layers/attention/triton_ops/
decode_attention.py, _fwd_grouped_kernel_stage1, as Triton 3.9 compiles it for sm_89, its code
before and behind the loop played through at head_dims of 32 to 256 with what it reads from L2 at
once there: 337, 381, 462 and 628 instructions in 873, 925, 1,187 and 1,868 cycles, of two CTAs an
SM 1,085, 1,165, 1,640 and 2,533; of latents of 512 and 64 columns 850 in 2,395. Where a sequence
lies is read from L2 before its queries are.
"""

from dataclasses import replace

from sim.inputs.hardware import HardwareProfile
from sim.inputs.workload import AttentionWorkload
from sim.schedules.parts.counted import Counted, resident
from sim.schedules.parts.flash_cta import power_of_two
from sim.tile_program import Compute, Footprint, Kernel

OF_A_CTA = Counted(295, 700, beside=160, l2_reads=1)
OF_A_COLUMN = Counted(1.3, 4.4, beside=2.1)
OF_LATENTS = Counted(850, 2_395, beside=1_096, l2_reads=1)


def own_setup(
    w: AttentionWorkload, hw: HardwareProfile, footprint: Footprint, ctas: int
) -> Compute:
    """What a CTA of the kernel begins with, of a grid of which so many have keys."""
    counted = OF_A_CTA + OF_A_COLUMN.times(power_of_two(w.head_dim))
    if w.latent_dim is not None:
        counted = OF_LATENTS
    return counted.compute("find the range", (), hw, resident(footprint, ctas, hw))


def begun_by(setup: Compute, kernel: Kernel) -> Kernel:
    """The kernel with that in place of its architecture's setup."""
    prologue, *rest = kernel.loops
    begun = replace(prologue, ops=(setup, *prologue.ops))
    return replace(kernel, loops=(begun, *rest), sets_up=False)

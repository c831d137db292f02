"""The clock that the power limit leaves, and what a kernel then takes.

    watts(x) = idle + (core J x^2 + HBM J) / time(x)
    time(x)  = path through other than SM pipes + path through SM pipes / x, and none of these busy
               for longer

x is the share of the nominal clock, the largest of at most 1 with watts(x) <= power.tdp. HBM, L2
and latencies stay as they are. The energy of what cores and L2 do goes with the square of the
clock, as their voltage goes with the clock, so that a profile's figures stand for the clock beside
them (`energy.clock`). Source: te42kyfo/gpu-benches, gpu-roofline/genoa_l40.txt and alex_a40.txt,
where an L40 and an A40 at their limits lower the clock under ever more arithmetic: what their cores
draw goes with the power of two to three of the clock, for as much work.

The load is taken to last: a kernel stands for one of many like it, as in a prefill of many layers.
A benchmark of few launches may be over before the regulator has brought the clock down: `acted`.
"""

from collections.abc import Callable
from dataclasses import replace
from math import exp

from sim.engine.kernel_run import KernelRun
from sim.inputs.hardware import Energy, HardwareProfile
from sim.inputs.workload import DTYPE_BYTES
from sim.machine import MATMUL_OPERAND_BYTES, SM_PIPES

# In what time a regulator does all but 1 / e of its work: bf16 matmuls of random numbers, each 72
# times in a row, the last 36 timed, by how long one takes (ai-dynamo/aiconfigurator,
# systems/data/*/gemm, SGLang's and TensorRT-LLM's; collector/helper.py). Of the way from what they
# reach on zeros to what they sustain an L40S, an H100 and an H200 have gone 0.4 to 0.5 where one
# takes 0.45 ms, 0.75 at 1.5 ms, 0.9 at 3 ms; an A100 0.6 and more than 0.9.
REGULATOR_S = 0.05
SLOWEST = 0.1  # of the nominal clock: what no kernel of a sound profile comes down to
HALVINGS = 40  # of the span in which the clock is sought
# A large matmul's bytes a FLOP: of CTAs of 128 x 256, whose warps multiply 64 x 64 (the default of
# NVIDIA/cutlass, include/cutlass/gemm/device/default_gemm_configuration.h, sm80).
MATMUL_L2_ELEMENTS = (128 + 256) / (2 * 128 * 256)
MATMUL_SRAM_ELEMENTS = (64 + 64) / (2 * 64 * 64)


def held_back(run: KernelRun, hw: HardwareProfile, dtype: str) -> KernelRun:
    """The run at the clock that `power.tdp` leaves; as it is where the profile states no energy."""
    if hw.power is None or hw.energy is None:
        return run
    core_j, hbm_j = joules(run, hw, dtype)
    busiest_s = float(run.busy_s[:SM_PIPES].max()) / hw.sm.count
    pipes_s = float(run.path_s[:SM_PIPES].sum())

    def time_s(share: float) -> float:
        return max(run.time_s + pipes_s * (1 / share - 1), busiest_s / share)

    share = _share(core_j, hbm_j, time_s, hw.power.tdp - hw.energy.idle)
    return run if share == 1.0 else _slowed(run, share, time_s(share))


def acted(begin_s: float, end_s: float) -> float:
    """What part of its cost the limit has, from one time after a load's begin to a later one."""
    begin, end = begin_s / REGULATOR_S, end_s / REGULATOR_S
    return 1 - (exp(-begin) - exp(-end)) / (end - begin)


def _share(core_j: float, hbm_j: float, time_s: Callable[[float], float], watts: float) -> float:
    """The largest share of the clock at which so many watts suffice."""

    def suffice(share: float) -> bool:
        return core_j * share**2 + hbm_j <= watts * time_s(share)

    if suffice(1.0):
        return 1.0
    low, high = SLOWEST, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if suffice(middle) else (low, middle)
    return low


def _slowed(run: KernelRun, share: float, time_s: float) -> KernelRun:
    """The run in so much time, stretched evenly; paths and pipes stay as at the nominal clock."""
    longer = time_s / run.time_s
    skipped = run.fast_forward
    return replace(
        run,
        time_s=time_s,
        clock_share=share,
        power_s=time_s - run.time_s,
        cta_start_s=run.cta_start_s * longer,
        cta_end_s=run.cta_end_s * longer,
        bin_width_s=run.bin_width_s * longer,
        fast_forward=skipped and replace(skipped, replayed_s=skipped.replayed_s * longer),
    )


def joules(run: KernelRun, hw: HardwareProfile, dtype: str) -> tuple[float, float]:
    """Energy of what a kernel does at its clock: of the cores and L2, and of HBM; idle apart.

    Rows of a tile that are padding are zeros, which draw next to nothing.
    """
    assert hw.energy is not None
    energy, dtype = hw.energy, run.kernel.matmul_dtype or dtype
    lane_ops = sum(map(run.executed, ("vector_ops", "other_ops", "exp_count")))
    row_j = lane_ops * energy.lane_op + run.executed("mma_flops") * _flop_j(hw, energy, dtype)
    l2_bytes = run.l2_read_bytes + run.l2_write_bytes
    moved_j = run.executed("sram_bytes") * energy.sram_per_byte + l2_bytes * energy.l2_per_byte
    core_j = row_j * (run.kernel.rows_used or 1.0) + moved_j
    hbm_j = (run.hbm_read_bytes + run.hbm_write_bytes) * energy.hbm_per_byte
    return core_j * (hw.sm.clock * run.clock_share / energy.clock) ** 2, hbm_j


def _flop_j(hw: HardwareProfile, energy: Energy, dtype: str) -> float:
    """Energy of a matmul's FLOP: of narrower operands in proportion; without tensor cores half
    a lane's operation."""
    if hw.tensor_flops_per_s(dtype) is None:
        return energy.lane_op / 2
    return energy.tensor_per_flop * DTYPE_BYTES[dtype] / MATMUL_OPERAND_BYTES


def large_matmul_flops_per_s(hw: HardwareProfile, dtype: str) -> float:
    """What a large matmul sustains: its share of the peak, at the clock that power leaves."""
    peak = hw.tensor_flops_per_s(dtype)
    if peak is None:
        flops_per_s = 2 * hw.vector_ops_per_s * hw.calibration.sm.vector
    else:
        flops_per_s = peak * hw.calibration.tensor.native
    if hw.power is None or hw.energy is None:
        return flops_per_s
    energy, element_bytes = hw.energy, DTYPE_BYTES[dtype]
    moved_j = MATMUL_L2_ELEMENTS * energy.l2_per_byte + MATMUL_SRAM_ELEMENTS * energy.sram_per_byte
    flop_j = _flop_j(hw, energy, dtype) + moved_j * element_bytes
    core_j = flop_j * (hw.sm.clock / energy.clock) ** 2
    watts = hw.power.tdp - energy.idle
    return flops_per_s * _share(core_j, 0.0, lambda share: 1 / (flops_per_s * share), watts)

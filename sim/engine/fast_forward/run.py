"""A long kernel's run: made coarser, replayed in part, and told whole."""

from collections.abc import Callable
from dataclasses import replace

from sim.engine.fast_forward.choice import own_cost
from sim.engine.fast_forward.plan import Plan, grain_of, plan_of
from sim.engine.fast_forward.reduced import Grid, coarse, slower
from sim.engine.fast_forward.told import completed, whole_of
from sim.engine.kernel_run import KernelRun
from sim.engine.protocol import Engine, L2State
from sim.inputs.hardware import HardwareProfile
from sim.tile_program import Kernel, chunk_tensors

# Of the time and of HBM bytes, where trips were made one: by comparisons with exact replays.
COARSE_TIME_ERROR, COARSE_HBM_ERROR = 0.003, 0.012


def run_kernel(
    engine: Engine[L2State],
    kernel: Kernel,
    hw: HardwareProfile,
    dtype: str,
    progress: Callable[[int], None],
    most_steps: int,
) -> KernelRun:
    """A kernel from an empty L2, told by a part whose replay costs about so many tile steps."""
    most_steps = most_steps * kernel.tile_steps // own_cost(kernel)  # of several chunks a tile
    grain = grain_of(Grid.of(kernel, hw), most_steps)
    form, device = coarse(kernel, grain), slower(hw, grain)
    plan = plan_of(Grid.of(form, hw), most_steps)
    if plan.part.tile_steps >= kernel.tile_steps:  # so few CTAs stand for no others
        form, device, plan = kernel, hw, Plan(kernel, [], counts=True)
    chunkings = chunk_tensors([plan.part])
    l2 = engine.new_l2(chunkings, device)
    run = engine.run_kernel(plan.part, chunkings, device, l2, dtype, progress)
    if not plan.measured:
        return run
    whole = whole_of(plan, run, Grid.of(plan.part, hw).waves)
    rounded = max(kernel.loop_trips) / (max(form.loop_trips) * grain)
    whole = replace(
        whole,
        time_s=whole.time_s * rounded,
        hbm_bytes=whole.hbm_bytes * rounded,
        time_error=whole.time_error + (COARSE_TIME_ERROR if grain > 1 else 0.0),
        hbm_error=whole.hbm_error + (COARSE_HBM_ERROR if grain > 1 else 0.0),
    )
    return completed(kernel, run, whole, hw, dtype)

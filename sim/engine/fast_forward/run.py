"""A long kernel's run: made smaller or coarser, replayed in part, and told whole."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from sim.engine.fast_forward.choice import own_cost
from sim.engine.fast_forward.errors import errors_of
from sim.engine.fast_forward.plan import grain_of, most_hbm_bytes, plan_of, scales_of
from sim.engine.fast_forward.reduced import Grid, coarse, slower, smaller, smaller_device
from sim.engine.fast_forward.told import Whole, completed, grown, hbm_bytes_of, whole_of
from sim.engine.kernel_run import FastForward, KernelRun
from sim.engine.protocol import Engine, L2State
from sim.inputs.hardware import HardwareProfile
from sim.tile_program import Kernel, chunk_tensors

FILLINGS = 8  # of L2 by what goes through HBM: half of them before anything is measured
REPEATED = "repeated"  # the method of kernels that are told by those before them

# What a kernel takes on a device from an empty L2; is told where to say how far it is.
Replay = Callable[[Kernel, HardwareProfile, Callable[[int], None]], KernelRun]


def run_kernel(
    engine: Engine[L2State],
    kernel: Kernel,
    hw: HardwareProfile,
    dtype: str,
    progress: Callable[[int], None],
    most_steps: int,
) -> KernelRun:
    """A kernel from an empty L2, told by parts whose replay costs about so many tile steps."""

    def replay(part: Kernel, device: HardwareProfile, so_far: Callable[[int], None]) -> KernelRun:
        chunkings = chunk_tensors([part])
        l2 = engine.new_l2(chunkings, device)
        return engine.run_kernel(part, chunkings, device, l2, dtype, so_far)

    # Of several chunks a tile.
    most_steps = max(1, most_steps * kernel.tile_steps // own_cost(kernel))
    scales = scales_of(kernel, hw, most_steps)
    if not scales:
        run, whole = _told(replay, kernel, hw, most_steps, progress)
        return completed(kernel, [run], whole, hw, dtype)
    wholes: list[Whole] = []
    runs: list[KernelRun] = []
    forms = [smaller(kernel, scale) for scale in scales]
    for scale, form in zip(scales, forms, strict=True):
        done = sum(run.kernel.tile_steps for run in runs)
        so_far = partial(_beyond, progress, done)
        most = int(most_steps * (scales[0].times / scale.times) ** 2)  # its share of the steps
        run, whole = _told(replay, form, smaller_device(hw, scale), most, so_far)
        runs.append(run)
        wholes.append(whole.of_a_larger(kernel.tile_steps / form.tile_steps / scale.times**2))
    return completed(kernel, runs, grown(kernel, scales, forms, wholes), hw, dtype)


def repeated(run: KernelRun, before: KernelRun) -> KernelRun:
    """What a kernel takes that does what two did before it, the later of which found L2 alike."""
    errors, hbm_bytes = errors_of(REPEATED), hbm_bytes_of(run)
    time_scatter = abs(before.time_s / run.time_s - 1.0)
    hbm_scatter = abs(hbm_bytes_of(before) - hbm_bytes) / max(hbm_bytes, 1)
    skipped = FastForward(
        steps_skipped=run.kernel.tile_steps,
        time_error=errors.time.estimate(time_scatter),
        hbm_error=errors.hbm.estimate(hbm_scatter),
        replayed_s=run.time_s,
        times_smaller=1.0,
        method=REPEATED,
        time_scatter=time_scatter,
        hbm_scatter=hbm_scatter,
    )
    return replace(run, fast_forward=skipped)


def _beyond(progress: Callable[[int], None], done: int, tile_steps: int) -> None:
    progress(done + tile_steps)


def _told(
    replay: Replay,
    kernel: Kernel,
    hw: HardwareProfile,
    most_steps: int,
    progress: Callable[[int], None],
) -> tuple[KernelRun, Whole]:
    """A part's run, and what it tells of the kernel: itself where a part would be no less.

    From an empty L2 hits and writes are steady once several times its capacity went through HBM:
    a part in which that is not so is replayed anew, twice as long, and one in which it cannot be so
    is not replayed.
    """
    while most_steps < kernel.tile_steps:
        grain = grain_of(Grid.of(kernel, hw), hw, most_steps)
        form, device = coarse(kernel, grain), slower(hw, grain)
        plan = plan_of(Grid.of(form, hw), hw, most_steps)
        if 2 * plan.part.tile_steps > kernel.tile_steps:
            break
        larger = max(kernel.loop_trips) / max(form.loop_trips) / grain
        if grain > 1 and plan.part.tile_steps >= form.tile_steps:
            run = replay(form, device, progress)
            whole = Whole("coarse", run.time_s, float(hbm_bytes_of(run)))
            return run, whole.of_a_larger(larger)
        if most_hbm_bytes(plan.part) >= FILLINGS * hw.l2.capacity:
            run = replay(plan.part, device, progress)
            if hbm_bytes_of(run) >= FILLINGS * hw.l2.capacity:
                return run, whole_of(plan, run).of_a_larger(larger)
        most_steps = 2 * max(most_steps, plan.part.tile_steps)
    run = replay(kernel, hw, progress)
    return run, Whole("whole", run.time_s, float(hbm_bytes_of(run)))

"""Barriers: what waiting for each other costs the workers of a CTA, in closed form."""

from dataclasses import replace

import numpy as np
import pytest

from sim.engine import reference
from sim.engine.compiled import replay
from sim.engine.fast_forward.reduced import coarse
from sim.inputs.hardware import load_profile
from sim.machine import (
    HBM_LATENCY,
    ISSUE,
    L2_LATENCY,
    PORT,
    TENSOR,
    cta_start_s,
    machine_of,
    service_times_s,
)
from sim.schedules import make_schedule
from sim.schedules.base import of_constant
from sim.tile_program import (
    Barrier,
    Compute,
    Footprint,
    Kernel,
    Load,
    Loop,
    Stream,
    Tensor,
    chunk_tensors,
    once,
)
from tests.support.formulas import workload

HW = load_profile("h100-sxm")
LATENCY_S = machine_of(HW).op_latency_s
MATMUL = Compute("S", mma_flops=2**24)
SOFTMAX = Compute("softmax", vector_ops=2**14, exp_count=2**14)
KEYS = Tensor("K", 1, 64 * 64, 64, 2, "input", "key")


def kernel_of(*ops, workers=2, trips=once):
    return Kernel("k", 1, (Loop(trips, ops),), Footprint(1024, 128 * workers, 128), "asynchronous")


def ran(kernel, engine=replay):
    chunkings = chunk_tensors([kernel])
    l2 = engine.new_l2(chunkings, HW)
    return engine.run_kernel(kernel, chunkings, HW, l2, "fp16", lambda _: None)


def time_s(kernel) -> float:
    """Without what a CTA takes before its first op; both engines agree on it."""
    run = ran(kernel)
    assert ran(kernel, reference).time_s == pytest.approx(run.time_s, rel=1e-12)
    return run.time_s - cta_start_s(kernel, HW)


def share_s(op, pipe) -> float:
    """A worker's share of an op on a pipe."""
    return service_times_s(op, kernel_of(op), HW, "fp16")[pipe]


def test_a_worker_that_is_done_with_its_matmul_waits_at_a_barrier_for_the_other():
    """The second worker's matmul comes after the first one's; then both have their softmax."""
    matmul_s, softmax_s = share_s(MATMUL, TENSOR), share_s(SOFTMAX, ISSUE)
    assert softmax_s < matmul_s  # else the tensor cores would not be what is waited for
    alone_s = time_s(kernel_of(MATMUL, SOFTMAX))
    assert alone_s == pytest.approx(2 * matmul_s + softmax_s + 2 * LATENCY_S)
    together_s = time_s(kernel_of(MATMUL, Barrier(), SOFTMAX))
    assert together_s == pytest.approx(2 * matmul_s + 2 * softmax_s + 3 * LATENCY_S)


def test_lockstep_leaves_the_tensor_cores_idle_during_softmax_and_the_reverse():
    free, locked = (
        ran(kernel_of(*ops, trips=of_constant(50)))
        for ops in ((MATMUL, SOFTMAX), (Barrier(), MATMUL, Barrier(), SOFTMAX))
    )
    assert locked.busy_s == pytest.approx(free.busy_s)  # the same work
    a_trip_s = 2 * (share_s(MATMUL, TENSOR) + share_s(SOFTMAX, ISSUE))
    assert locked.time_s > 50 * a_trip_s
    assert free.time_s < 0.9 * locked.time_s


def test_a_worker_alone_pays_a_barriers_latency():
    one = kernel_of(MATMUL, workers=1)
    with_barrier = kernel_of(Barrier(), MATMUL, workers=1)
    assert time_s(with_barrier) - time_s(one) == pytest.approx(LATENCY_S)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_a_load_without_stages_is_waited_for_whole_in_every_trip(workers):
    trips = 10
    matmul = replace_reads(MATMUL, load := Load(Stream(KEYS, 64, 64, np.zeros_like, 1), stages=0))
    kernel = kernel_of(load, Barrier((load,)), matmul, workers=workers, trips=of_constant(trips))
    machine, size = machine_of(HW), KEYS.bytes // 64
    assert machine.hbm_bytes_per_s > machine.port_bytes_per_s
    load_s = size / machine.port_bytes_per_s + machine.hbm_latency_s
    work_s = service_times_s(matmul, kernel, HW, "fp16")[TENSOR] * workers
    assert load_s > LATENCY_S  # the barrier's, which passes meanwhile
    assert time_s(kernel) == pytest.approx(trips * (load_s + work_s + LATENCY_S))
    path_s = ran(kernel).path_s
    assert path_s[HBM_LATENCY] == pytest.approx(trips * machine.hbm_latency_s)
    assert path_s[PORT] == pytest.approx(trips * size / machine.port_bytes_per_s)
    assert path_s[L2_LATENCY] == 0.0


def replace_reads(op, *loads):
    return replace(op, reads=loads)


def test_coarse_trips_meet_at_the_same_barriers_which_issue_the_coarse_loads():
    w = workload(heads=1, seq_len=4096, head_dim=64)
    schedule = make_schedule({"name": "flash2", "implementation": "sglang"}, "a test")
    (command,) = schedule.program(w, HW)
    fine, wide = (kernel.loops[1] for kernel in (command.work, coarse(command.work, 4)))
    assert [type(op) for op in wide.ops] == [type(op) for op in fine.ops]
    issued = [load for op in wide.ops if isinstance(op, Barrier) for load in op.issues]
    assert issued == wide.loads
    assert all(load.stages == 0 for load in issued)

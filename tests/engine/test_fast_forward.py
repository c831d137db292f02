"""Fast-forward against the exact replay, and what must hold of it where that is too long."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim import simulate
from sim.device.program import kernels_of
from sim.engine.compiled import replay
from sim.engine.compiled.timeline import HBM_BYTES, L2_BYTES, L2_HIT_BYTES, TENSOR_BUSY
from sim.engine.fast_forward.choice import (
    ACTIONS_A_STEP,
    STEPS_A_CTA,
    Choice,
    own_cost,
    replay_cost,
)
from sim.engine.fast_forward.errors import errors_of
from sim.engine.fast_forward.lanes import touched_bytes
from sim.engine.fast_forward.plan import asked_bytes, most_hbm_bytes, scales_of
from sim.engine.fast_forward.reduced import (
    Scale,
    can_be_coarse,
    coarse,
    slower,
    smaller,
    smaller_device,
)
from sim.engine.fast_forward.run import FILLINGS, run_kernel
from sim.engine.fast_forward.told import Whole, grown
from sim.inputs.hardware import load_profile
from sim.inputs.workload import WorkloadTable
from sim.machine import HBM, L2, TENSOR
from sim.runs.scenario import Limits
from sim.schedules import make_schedule
from sim.tile_program import Kernel, chunk_tensors

H100 = load_profile("h100-sxm")
TINY_L2 = load_profile("h100-sxm", {"l2": {"capacity": "256 KiB"}}, "a test")
MOST_STEPS = Limits().replayed_steps


def kernels_by(name: str, options: dict[str, Any] | None = None, hw=H100, **workload):
    """The kernels of a schedule, at head_dim 128 and causal unless told."""
    w = WorkloadTable.model_validate({"head_dim": 128, "causal": True, **workload}).workload()
    return kernels_of(make_schedule({"name": name, **(options or {})}, "a test").program(w, hw))


def kernel_of(name: str, options: dict[str, Any] | None = None, hw=H100, **workload):
    """The longest of them."""
    return max(kernels_by(name, options, hw, **workload), key=lambda kernel: kernel.tile_steps)


def test_a_persistent_grid_of_fewer_waves_than_heads_is_told_by_any_part():
    kernel = kernel_of("flash3", heads=8, head_dim=128, seq_len=4096, causal=True)
    exact = exactly(kernel)
    for most_steps in (100, 500, 2000):
        told = run_kernel(replay, kernel, H100, "fp16", lambda _: None, most_steps)
        assert told.time_s == pytest.approx(exact.time_s, rel=0.5)


def exactly(kernel, hw=H100):
    chunkings = chunk_tensors([kernel])
    l2 = replay.new_l2(chunkings, hw)
    return replay.run_kernel(kernel, chunkings, hw, l2, "fp16", lambda _: None)


def skipping(kernel, most_steps=MOST_STEPS):
    return run_kernel(replay, kernel, H100, "fp16", lambda _: None, most_steps)


def hbm_bytes(run) -> int:
    return run.hbm_read_bytes + run.hbm_write_bytes


# Workload, what of it is replayed, and by how much time and HBM bytes may be off.
CASES = {
    "each head has its keys": ({"heads": 8, "kv_heads": 8, "causal": False}, 400_000, 0.005, 0.04),
    "few steps": ({"heads": 8, "kv_heads": 8, "causal": False}, 130_000, 0.02, 0.05),
    "a triangle": ({"heads": 16, "kv_heads": 16}, 400_000, 0.025, 0.04),
    "heads that share keys": ({"heads": 16, "kv_heads": 4}, 400_000, 0.01, 0.04),
    "heads in turn": ({"heads": 8, "kv_heads": 8, "grid_order": "head_fast"}, 250_000, 0.01, 0.05),
}


@pytest.mark.parametrize("case", CASES)
def test_a_shorter_sequence_on_a_smaller_device_tells_of_the_whole(case):
    workload, most_steps, time_error, hbm_error = CASES[case]
    options = {key: workload[key] for key in workload.keys() & {"grid_order"}}
    workload = {key: value for key, value in workload.items() if key not in options}
    kernel = kernel_of("flash2", options, seq_len=32768, **workload)
    assert scales_of(kernel, H100, most_steps)
    whole, ours = exactly(kernel), skipping(kernel, most_steps)
    assert ours.fast_forward.steps_skipped > kernel.tile_steps / 4
    assert ours.time_s == pytest.approx(whole.time_s, rel=time_error)
    assert hbm_bytes(ours) == pytest.approx(hbm_bytes(whole), rel=hbm_error)
    stored = whole.l2_write_bytes  # of which random evictions leave more or less in L2
    assert ours.hbm_write_bytes == pytest.approx(whole.hbm_write_bytes, abs=0.1 * stored)
    assert ours.counts == whole.counts
    assert ours.l2_read_bytes == pytest.approx(whole.l2_read_bytes, rel=1e-9)
    assert ours.l2_write_bytes == pytest.approx(whole.l2_write_bytes, rel=1e-9)
    for pipe in (TENSOR, L2, HBM):
        assert ours.busy_s[pipe] == pytest.approx(whole.busy_s[pipe], rel=max(hbm_error, 1e-9))


@pytest.mark.parametrize("sms", [66, 33])
def test_a_smaller_form_is_the_whole_seen_from_further_away(sms):
    """Time goes with the scale, CTAs with it, tile steps with its square."""
    kernel = kernel_of("flash2", heads=4, seq_len=32768)
    scale = Scale(H100.sm.count / sms, sms)
    form, device = smaller(kernel, scale), smaller_device(H100, scale)
    assert form.ctas == pytest.approx(kernel.ctas / scale.times, rel=0.02)
    assert form.tile_steps == pytest.approx(kernel.tile_steps / scale.times**2, rel=0.1)
    assert exactly(form, device).time_s == pytest.approx(
        exactly(kernel).time_s / scale.times, rel=0.06
    )


def test_what_forms_tell_is_as_sure_as_two_of_them_tell_a_larger_one():
    """By the rule, three forms agree, however far the whole is; a third that does not is heard."""
    kernel = kernel_of("flash2", heads=4, seq_len=32768)
    scales = scales_of(kernel, H100, kernel.tile_steps // 8)
    forms = [smaller(kernel, scale) for scale in scales]
    assert [scale.sms for scale in scales] == [41, 20, 10]

    def told(times: float, touched: int) -> Whole:
        by_line = (3.0 + 0.1 * times) / times
        return Whole("whole", by_line, touched + by_line * 1e9)

    of_forms = [told(s.times, touched_bytes(f)) for s, f in zip(scales, forms, strict=True)]
    whole, exact = grown(kernel, scales, forms, of_forms), told(1.0, touched_bytes(kernel))
    assert (whole.time_s, whole.hbm_bytes) == pytest.approx((exact.time_s, exact.hbm_bytes))
    assert (whole.time_scatter, whole.hbm_scatter) == pytest.approx((0.0, 0.0))
    third = replace(of_forms[2], hbm_bytes=of_forms[2].hbm_bytes * 1.1)
    unsure = grown(kernel, scales, forms, [*of_forms[:2], third])
    assert unsure.hbm_bytes == whole.hbm_bytes
    assert unsure.hbm_scatter > 0.01 > unsure.time_scatter


def test_every_matrix_keeps_its_share_of_the_ctas_of_a_smaller_form():
    """Where heads take turns in the grid, leaving out every second CTA would leave out heads."""
    kernel = kernel_of("flash2", {"grid_order": "head_fast"}, heads=4, seq_len=16384)
    form = smaller(kernel, Scale(2.0, 66))
    q = form.loops[0].streams[0]
    heads = q.base(form.items) // q.tiles_down
    assert set(np.bincount(heads)) == {len(heads) // 4}


def test_query_heads_that_share_keys_go_together_where_heads_take_turns():
    """They find what one of them brings, while other blocks of rows are many trips away."""
    kernel = kernel_of("flash2", {"grid_order": "head_fast"}, heads=8, kv_heads=2, seq_len=16384)
    form = smaller(kernel, Scale(2.0, 66))
    q, k = form.loops[0].streams[0], form.loops[1].streams[0]
    row, head = q.base(form.items) % q.tiles_down, k.base(form.items) // k.tiles_down
    _, counts = np.unique(np.stack([row, head]), axis=1, return_counts=True)
    assert set(counts) == {4}


NARROW = {"tile": {"q": 32, "kv": 32}, "depth": 32, "stages": 1}


def matmul_of_p_and_v(seq_len: int, heads: int, **workload):
    """O = P V in tiles of 32 columns: the CTAs of a row of tiles share what one brings of P."""
    kernels = kernels_by("naive", NARROW, seq_len=seq_len, heads=heads, **workload)
    return next(kernel for kernel in kernels if kernel.kind == "output")


@pytest.mark.parametrize("head_dim", [128, 256])
def test_ctas_that_share_a_row_of_p_are_left_out_together(head_dim):
    """One CTA in two, whichever, would read all of P again: 1.9 times the bytes, 3.4 in a third."""
    kernel = matmul_of_p_and_v(4096, 8, head_dim=head_dim)
    whole = exactly(kernel)
    for share in (3, 8):
        ours = skipping(kernel, kernel.tile_steps // share)
        assert ours.fast_forward.method == "scales"
        assert ours.time_s == pytest.approx(whole.time_s, rel=0.03)
        assert hbm_bytes(ours) == pytest.approx(hbm_bytes(whole), rel=0.04)
        form = smaller(kernel, Scale(3.3, 40))
        p = form.loops[0].streams[0]
        of_a_row = np.unique(p.base(form.items), return_counts=True)[1]
        assert set(of_a_row) == {head_dim // 32}


@pytest.mark.parametrize(
    "kernel",
    [
        kernel_of("flash2", heads=2, seq_len=5000),
        kernel_of("flash2", {"key_order": "descending"}, heads=4, kv_heads=2, seq_len=4096),
        kernel_of("flash3", heads=2, seq_len=3000, causal=False),
        matmul_of_p_and_v(2000, 2),
    ],
    ids=["ragged", "descending", "persistent", "matmul"],
)
def test_what_is_touched_is_what_hbm_brings_once(kernel):
    """From an empty L2, edges of matrices included."""
    run = exactly(kernel)
    assert touched_bytes(kernel) == run.hbm_read_bytes - run.hbm_reread_bytes


def test_of_a_kernel_of_very_many_items_nothing_is_counted_but_its_tensors(monkeypatch):
    """A CTA a row: as many rows as a million tokens have, over 32 heads, would take gigabytes."""
    few = [
        k
        for k in kernels_by("naive", heads=2, seq_len=20000, causal=False)
        if k.kind in ("softmax", "output")
    ]
    exact = [touched_bytes(kernel) for kernel in few]
    monkeypatch.setattr("sim.engine.fast_forward.lanes.MOST_ITEMS", 0)
    assert [touched_bytes(kernel) for kernel in few] == exact
    (many,) = (k for k in kernels_by("naive", heads=32, seq_len=2**20) if k.kind == "softmax")
    monkeypatch.setattr(Kernel, "items", property(lambda _: pytest.fail("its items are listed")))
    assert touched_bytes(many) == sum(t.bytes for t in many.tensors if t.name == "S")


def test_what_is_added_to_in_l2_is_written_to_hbm_as_seldom_as_in_the_part():
    """Backward adds to dQ block after block: of 55 bytes that it writes to L2, HBM sees one."""
    kernels = kernels_by("flash2", phase="training", heads=8, seq_len=32768)
    kernel = next(kernel for kernel in kernels if kernel.name == "dQ, dK, dV")
    whole, ours = exactly(kernel), skipping(kernel, kernel.tile_steps // 4)
    assert whole.l2_write_bytes > 20 * whole.hbm_write_bytes
    assert ours.hbm_write_bytes == pytest.approx(whole.hbm_write_bytes, rel=0.05)
    assert ours.hbm_read_bytes == pytest.approx(whole.hbm_read_bytes, rel=0.05)
    assert 0 <= ours.l2_hit_bytes <= ours.l2_read_bytes


@pytest.mark.parametrize(
    ("name", "workload"),
    [
        ("flash2", {"phase": "training", "heads": 2, "seq_len": 4096}),
        ("naive", {"heads": 2, "seq_len": 4096}),
        ("nsa", {"heads": 16, "kv_heads": 1, "seq_len": 4096}),
    ],
)
def test_hbm_moves_no_more_than_loads_and_stores_ask_for(name, workload):
    for kernel in kernels_by(name, hw=TINY_L2, **workload):
        assert hbm_bytes(exactly(kernel, TINY_L2)) <= most_hbm_bytes(kernel)


def test_no_part_is_replayed_of_which_hbm_moves_too_little_to_tell(monkeypatch):
    """A part of so few steps would have to be replayed anew, twice as long, and again."""
    kernel = next(k for k in kernels_by("naive", heads=32, seq_len=8192) if k.name == "mask")
    replayed = []
    whole = replay.run_kernel
    monkeypatch.setattr(
        replay, "run_kernel", lambda part, *how: replayed.append(part) or whole(part, *how)
    )
    run = skipping(kernel, 20_000)
    assert run.fast_forward is not None
    (part,) = replayed
    assert most_hbm_bytes(part) >= FILLINGS * H100.l2.capacity


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("name", ["flash2", "flash3"])
def test_what_hits_is_what_hbm_did_not_bring(name, causal):
    run = skipping(kernel_of(name, heads=8, seq_len=2**20, causal=causal), 200_000)
    assert run.fast_forward is not None
    assert run.l2_hit_bytes == pytest.approx(run.l2_read_bytes - run.hbm_read_bytes, rel=1e-6)
    assert 0 <= run.l2_hit_bytes < run.l2_read_bytes


def test_what_repeats_is_told_by_the_kernel_not_by_its_tensors():
    """RoPE's table is one matrix for 48 heads, of which three share K and V."""
    kernel = kernel_of("flash2", {"rope": "fused"}, heads=48, kv_heads=16, seq_len=32768)
    assert (kernel.periods, kernel.sharing) == (48, 3)
    whole, ours = exactly(kernel), skipping(kernel, 1_200_000)
    assert hbm_bytes(ours) == pytest.approx(hbm_bytes(whole), rel=0.04)


def test_ctas_that_drift_apart_on_their_way_through_keys_do_so_in_a_smaller_form():
    """Four causal heads of 8 waves: some share what one brings, and bytes are known less well."""
    kernel = kernel_of("flash2", heads=4, seq_len=262144)
    whole = exactly(kernel)
    ours = skipping(kernel, kernel.tile_steps // 4)
    assert ours.fast_forward.steps_skipped > kernel.tile_steps / 3
    assert ours.time_s == pytest.approx(whole.time_s, rel=0.01)
    assert hbm_bytes(ours) == pytest.approx(hbm_bytes(whole), rel=0.08)


@pytest.mark.parametrize("causal", [True, False])
def test_ten_million_tokens_take_as_long_to_tell_as_a_million(causal):
    runs = {}
    for tokens in (2**20, 10 * 2**20):
        kernel = kernel_of("flash2", heads=4, kv_heads=1, seq_len=tokens, causal=causal)
        assert Choice.of([kernel], H100, MOST_STEPS).cost == {kernel: MOST_STEPS}
        runs[tokens] = ours = skipping(kernel)
        assert kernel.tile_steps - ours.fast_forward.steps_skipped < 3 * 10**7
        assert ours.fast_forward.time_error < 0.04
        totals = {HBM_BYTES: hbm_bytes(ours), L2_HIT_BYTES: ours.l2_hit_bytes}
        totals |= {L2_BYTES: ours.l2_read_bytes + ours.l2_write_bytes}
        totals |= {TENSOR_BUSY: ours.busy_s[TENSOR]}
        for track, total in totals.items():
            assert ours.bins[track].sum() == pytest.approx(total, rel=1e-6)
        assert ours.path_s.sum() == pytest.approx(ours.time_s)
        sm_s = ours.busy_s[:6].max() / H100.sm.count
        assert ours.time_s >= max(sm_s, ours.busy_s[L2], ours.busy_s[HBM])
    assert runs[10 * 2**20].time_s == pytest.approx(100 * runs[2**20].time_s, rel=0.1)


def test_coarse_trips_on_a_slower_machine_are_the_same_from_further_away():
    kernel = kernel_of("flash2", heads=4, seq_len=16384, causal=False)
    assert can_be_coarse(kernel)
    whole = exactly(kernel)
    errors = [
        exactly(coarse(kernel, grain), slower(H100, grain)).time_s / whole.time_s - 1
        for grain in (8, 4, 2)
    ]
    assert errors[0] > errors[1] > errors[2] > -1e-3
    assert errors[2] < 0.005
    assert coarse(kernel, 1) is kernel


@pytest.mark.parametrize("grain", [2, 4, 16])
def test_ctas_that_drift_apart_do_so_in_coarse_trips(grain):
    """Neighbours whose trips came to as many coarse ones kept step: 43, 24 and 79% hits, not 1."""
    scale = Scale(H100.sm.count / 16, 16)
    form = smaller(kernel_of("flash2", heads=1, seq_len=2**20), scale)
    device = smaller_device(H100, scale)
    fine, ours = exactly(form, device), exactly(coarse(form, grain), slower(device, grain))
    hits, found = (run.l2_hit_bytes / run.l2_read_bytes for run in (fine, ours))
    assert found == pytest.approx(hits, abs=0.05)


@pytest.mark.parametrize("name", ["flash2", "flash3"])
def test_beyond_millions_of_tokens_hbm_bytes_go_on_with_their_square(name):
    """What L2 keeps of K and V is a small share of either: 8M took 4 GB, below the inputs' own."""
    read, reads_more = (
        skipping(kernel_of(name, heads=1, seq_len=tokens)).hbm_read_bytes
        for tokens in (2**22, 2**23)
    )
    assert reads_more == pytest.approx(4 * read, rel=0.1)


@pytest.mark.parametrize("causal", [True, False])
def test_a_persistent_kernel_is_told_by_a_smaller_form_or_by_its_first_items(causal):
    kernel = kernel_of("flash3", heads=16, seq_len=65536, causal=causal)
    whole, ours = exactly(kernel), skipping(kernel, 400_000)
    assert ours.fast_forward.steps_skipped > kernel.tile_steps / 2
    assert ours.time_s == pytest.approx(whole.time_s, rel=0.02)
    assert abs(ours.time_s / whole.time_s - 1) < ours.fast_forward.time_error + 0.005
    # Of a full mask bytes swing from wave to wave: one in ten errors is beyond its estimate.
    most = (1 if causal else 2) * ours.fast_forward.hbm_error
    assert abs(hbm_bytes(ours) / hbm_bytes(whole) - 1) < most
    assert ours.counts == whole.counts


@pytest.mark.parametrize("name", ["flash2", "flash3"])
def test_a_single_head_is_told_by_its_coarse_form_where_that_fits(name):
    kernel = kernel_of(name, heads=1, seq_len=131072)
    whole, ours = exactly(kernel), skipping(kernel, kernel.tile_steps)
    assert ours.time_s == pytest.approx(whole.time_s, rel=0.01)
    hbm_off = abs(hbm_bytes(ours) / hbm_bytes(whole) - 1)
    assert hbm_off < min(0.025, ours.fast_forward.hbm_error)


def test_a_short_kernel_is_replayed_whole():
    short = kernel_of("flash2", heads=4, seq_len=4096)
    choice = Choice.of([short], H100, MOST_STEPS)
    assert not choice.in_part
    assert choice.cost == {short: short.tile_steps + STEPS_A_CTA * short.ctas}


# Tiles of 128 x 128 of S, and rows of it, are made of chunks of 1 x 128; P is read 64 wide.
CHUNKS_A_TILE = 128


def naive_kernels(**workload):
    w = WorkloadTable.model_validate({"head_dim": 128, **workload}).workload()
    return make_schedule({"name": "naive"}, "a test").lower(w, H100)


def test_what_a_replay_costs_counts_the_chunks_that_its_steps_touch():
    product, softmax, output = kernels = naive_kernels(heads=2, seq_len=4096)
    chunkings = chunk_tensors(kernels)
    tiles = 2 * 32 * 32
    assert product.tile_steps == tiles * 3  # two slices and a store
    assert own_cost(product) == tiles * (3 + STEPS_A_CTA)
    assert replay_cost(product, chunkings) == tiles * (2 + CHUNKS_A_TILE + STEPS_A_CTA)
    executed = len(softmax.actions) * softmax.footprint.workers // ACTIONS_A_STEP
    assert replay_cost(softmax, chunkings) == 2 * 4096 * (32 + 64 - 2 + executed + STEPS_A_CTA)
    assert replay_cost(output, chunkings) == 64 * (64 * CHUNKS_A_TILE + 1 + STEPS_A_CTA)


def test_the_costliest_is_told_by_a_part_first_as_the_rest_may_then_have_larger_chunks():
    product, softmax, output = kernels = naive_kernels(heads=2, seq_len=4096)
    choice = Choice.of(kernels, H100, 400_000)  # times LONG: 800,000
    assert list(choice.in_part) == [softmax]
    assert choice.cost[product] == own_cost(product)
    assert choice.cost[output] == own_cost(output)
    assert not Choice.of(kernels, H100, None).in_part
    assert not Choice.of(kernels, H100, 600_000).in_part


def test_a_grid_of_a_billion_ctas_and_tensors_beyond_any_memory_are_told_too():
    """S of a million tokens is 2 TiB a head; each of 8,192 rows of tiles reads 256 MiB of K."""
    w = WorkloadTable.model_validate({"heads": 8, "head_dim": 128, "seq_len": 2**20}).workload()
    kernel = make_schedule({"name": "naive"}, "a test").lower(w, H100)[0]
    assert kernel.tile_steps == kernel.ctas * kernel.trips_of(np.array([0])).sum()
    ours = skipping(kernel, 200_000)
    assert hbm_bytes(ours) == pytest.approx(8 * 2 * 2**41, rel=0.01)
    assert ours.fast_forward.hbm_error < 0.05


def test_a_record_says_what_was_skipped_and_exact_skips_nothing():
    tables = {
        "workload": {"heads": 32, "head_dim": 128, "seq_len": 16384, "causal": True},
        "hardware": "h100-sxm",
        "schedule": "flash2",
    }
    budget = {"replayed_steps": 110_000}
    (skipped,) = simulate(**tables, limits=budget)
    (whole,) = simulate(**tables, limits={"exact": True, **budget})
    assert whole.fast_forward is None
    assert skipped.fast_forward is not None
    assert 0 < skipped.fast_forward["steps_skipped"] < whole.kernels[0].tile_steps
    assert 0 <= skipped.fast_forward["time_error"] < 1
    assert skipped.flops == whole.flops
    assert skipped.occupancy == pytest.approx(whole.occupancy, rel=0.25)
    assert len(skipped.timeline[0].hbm_utilisation) > 1
    assert np.isfinite(skipped.energy_j or 0.0)


def test_matrices_written_in_tiles_and_read_by_rows_are_told_by_few_touches():
    """115,000 tile steps touch 12 million chunks together, each kernel alone 600,000 in all."""
    tables = {
        "workload": {"heads": 4, "head_dim": 128, "seq_len": 8192},
        "hardware": "h100-sxm",
        "schedule": "naive",
    }
    (told,) = simulate(**tables, limits={"replayed_steps": 100_000})
    (whole,) = simulate(**tables, limits={"exact": True})
    assert told.time_s == pytest.approx(whole.time_s, rel=0.01)
    hbm_bytes = told.hbm_read_bytes + told.hbm_write_bytes
    assert hbm_bytes == pytest.approx(whole.hbm_read_bytes + whole.hbm_write_bytes, rel=0.02)
    of_s_and_p = 4 * 4 * 8192**2 * 2  # each written once and read once
    assert hbm_bytes == pytest.approx(of_s_and_p, rel=0.02)
    assert told.peak_hbm_bytes == whole.peak_hbm_bytes
    written, of_whole = (one.hbm_write_bytes + one.l2_dirty_bytes for one in (told, whole))
    assert written == pytest.approx(of_whole, rel=0.002)


@pytest.mark.parametrize("a_head", [0.1, 0.5, 2.0, 8.0])
def test_a_pruned_kernel_is_told_by_whole_heads_or_by_blocks_of_waves(a_head):
    kernel = kernel_of("hip", heads=48, kv_heads=48, seq_len=65536)
    most_steps = int(a_head * kernel.tile_steps // 48)
    whole, ours = exactly(kernel), skipping(kernel, most_steps)
    assert ours.fast_forward.steps_skipped > kernel.tile_steps / 2
    assert ours.time_s == pytest.approx(whole.time_s, rel=0.01)
    assert hbm_bytes(ours) == pytest.approx(hbm_bytes(whole), rel=0.02)


def test_times_told_by_a_part_have_one_line_by_whatever_method():
    by_a_part = errors_of("periods").time
    assert 0 <= by_a_part.floor < 0.1
    for method in ("waves", "blocks", "thinned", "coarse", "repeated"):
        assert errors_of(method).time == by_a_part
    assert errors_of("scales").time != by_a_part


def test_hbm_bytes_of_a_method_that_no_question_was_told_by_have_the_worst_line_of_all():
    lines = [errors_of(method).hbm for method in ("scales", "waves", "periods", "blocks")]
    worst = errors_of("none of these").hbm
    assert worst.floor == max(line.floor for line in lines)
    assert worst.slope == max(line.slope for line in lines)
    assert all(0 <= line.floor < 0.1 for line in lines)


@pytest.mark.parametrize("sms", [1, 2, 5, 7, 13])
@pytest.mark.parametrize("replayed_steps", [1, 1000])
def test_devices_of_few_sms_and_budgets_of_few_steps_are_told_too(sms, replayed_steps):
    (record,) = simulate(
        workload={"heads": 2, "head_dim": 64, "seq_len": 1024, "causal": True},
        hardware={"profile": "h100-sxm", "sm": {"count": sms}},
        schedule="flash2",
        limits={"replayed_steps": replayed_steps},
    )
    assert record.time_s > 0
    assert 0 <= record.l2_hit_rate <= 1


LIFETIMES = ("input", "output")
DRAWN = st.fixed_dictionaries(
    {
        "seq_len": st.integers(2**15, 10 * 2**20),
        "heads": st.sampled_from([1, 2, 8, 32]),
        "kv_heads": st.sampled_from([1, 2, 8, 32]),
        "causal": st.booleans(),
    }
).filter(lambda drawn: drawn["kv_heads"] <= drawn["heads"])


@given(DRAWN, st.sampled_from(["flash2", "flash3"]), st.sampled_from(["h100-sxm", "h20"]))
@settings(max_examples=25)
def test_what_is_told_is_sound_and_grows_with_the_tokens(drawn, name, device):
    hw = load_profile(device)
    before = None
    for tokens in (drawn["seq_len"], drawn["seq_len"] * 11 // 10):
        kernel = kernel_of(name, hw=hw, **{**drawn, "seq_len": tokens})
        told = run_kernel(replay, kernel, hw, "fp16", lambda _: None, 100_000)
        assert 0 <= told.l2_hit_bytes <= told.l2_read_bytes
        tensors = kernel.tensors
        inputs, outputs = (sum(t.bytes for t in tensors if t.lifetime == of) for of in LIFETIMES)
        of_tiles = sum(asked_bytes(kernel))  # what there would be without an L2
        off_by = told.fast_forward.hbm_error if told.fast_forward else 0.0
        assert inputs * (1 - off_by) <= told.hbm_read_bytes <= told.l2_read_bytes
        assert told.hbm_write_bytes + told.l2_dirty_bytes >= outputs * (1 - off_by)
        assert told.hbm_write_bytes <= told.l2_write_bytes * 1.001
        assert hbm_bytes(told) <= of_tiles * 1.001
        missed = told.l2_read_bytes - told.l2_hit_bytes
        assert told.hbm_read_bytes == pytest.approx(missed, rel=0.01)
        if before is not None and told.fast_forward and before.fast_forward:
            off = told.fast_forward.time_error + before.fast_forward.time_error
            assert told.time_s >= before.time_s * (1 - off)
            off = told.fast_forward.hbm_error + before.fast_forward.hbm_error
            assert hbm_bytes(told) >= hbm_bytes(before) * (1 - off)
        before = told

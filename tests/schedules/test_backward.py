"""Training: backward's bytes and FLOPs against formulas written from the papers' algorithms."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.api import simulate
from sim.device.program import kernels_of
from sim.inputs.files import InputError
from sim.inputs.hardware import load_profile
from sim.inputs.workload import WorkloadTable
from sim.schedules import SCHEDULES
from sim.schedules.base import Tile
from sim.schedules.parts.flash2_backward import query_blocks
from sim.schedules.parts.public_tiles import public_backward_cta
from tests.support.drawn import devices, lowered, workloads
from tests.support.formulas import run, run_head_dim, visited

STATISTICS_BYTES = 4


@st.composite
def training(draw, *names):
    """A schedule with a small tile or its own, and a workload to train."""
    side = st.sampled_from((16, 32, 64))
    tile = draw(st.none() | st.fixed_dictionaries({"q": side, "kv": side}))
    schedule = SCHEDULES[draw(st.sampled_from(names))].model_validate({"tile": tile})
    return schedule, replace(draw(workloads()), phase="training", dropout=draw(st.booleans()))


def by_name(kernels, hw, w):
    names = [kernel.name for kernel in kernels]
    assert len(set(names)) == len(names)
    return dict(zip(names, run(kernels, hw, w), strict=True))


def tile_of(kernel) -> Tile:
    """The tile of a flash kernel, read off its streams."""
    streams = {stream.tensor.name: stream for stream in kernel.streams}
    return Tile(q=streams["Q"].tile_rows, kv=streams["K"].tile_rows)


def visits_of(w, tile) -> tuple[int, int]:
    """Query rows once for each key block they see, and keys that anyone sees, of one head."""
    pairs = visited(w, tile)
    rows = np.minimum(tile.q, w.seq_q - tile.q * np.arange(pairs.shape[0]))
    keys = np.minimum(tile.kv, w.seq_kv - tile.kv * np.arange(pairs.shape[1]))
    return int((pairs * rows[:, None]).sum()), int((pairs.any(axis=0) * keys).sum())


def sums_bytes(w) -> tuple[int, int]:
    """(read, written) by one of the sums over the heads that share a KV head."""
    row = w.batch * w.seq_kv * w.head_dim * w.dtype_bytes
    return row * w.heads, row * w.kv_heads


@given(training("flash2"), devices(l2="0 B"))
@settings(max_examples=60)
def test_flash2_backward_without_l2_moves_what_algorithm_2_says(case, hw):
    schedule, w = case
    kernels = lowered(schedule, w, hw)
    runs = by_name(kernels, hw, w)
    (main,) = [kernel for kernel in kernels if kernel.name == "dQ, dK, dV"]
    tile, matrices = tile_of(main), w.batch * w.heads
    row_bytes = w.head_dim * w.dtype_bytes
    rows, d = matrices * w.seq_q, run_head_dim(w)
    first, last = runs["D = rowsum(dO O)"], runs["dQ to dtype"]
    assert first.hbm_read_bytes == 2 * rows * row_bytes
    assert first.hbm_write_bytes == rows * (STATISTICS_BYTES + 4 * d)
    assert (last.hbm_read_bytes, last.hbm_write_bytes) == (4 * rows * d, rows * row_bytes)
    visits, keys = visits_of(w, tile)
    ran, added_bytes = runs["dQ, dK, dV"], matrices * visits * d * 4
    loaded = 2 * keys * row_bytes + visits * (2 * row_bytes + 2 * STATISTICS_BYTES)
    assert ran.l2_read_bytes == matrices * loaded
    assert ran.hbm_read_bytes == matrices * loaded + added_bytes
    assert ran.hbm_write_bytes == added_bytes + 2 * matrices * w.seq_kv * row_bytes
    pairs = int(visited(w, tile).sum()) * tile.q * tile.kv
    assert ran.executed("mma_flops") == 10 * d * pairs * matrices
    assert ran.executed("exp_count") == pairs * matrices


@given(training("flash1", "flash2", "naive"), devices(l2="0 B"))
@settings(max_examples=60)
def test_dk_and_dv_are_summed_where_heads_share_a_kv_head(case, hw):
    schedule, w = case
    runs = by_name(lowered(schedule, w, hw), hw, w)
    sums = [ran for name, ran in runs.items() if "sum over heads" in name]
    assert len(sums) == (0 if w.heads == w.kv_heads else 2)
    for ran in sums:
        assert (ran.hbm_read_bytes, ran.hbm_write_bytes) == sums_bytes(w)


@pytest.mark.parametrize("tile", [Tile(q=16, kv=16), Tile(q=32, kv=16), Tile(q=16, kv=48)], ids=str)
@pytest.mark.parametrize("seq_q", [1, 37, 70])
def test_blocks_of_query_rows_are_those_that_see_any_key_of_the_block(tile, seq_q):
    table = WorkloadTable(heads=1, head_dim=16, seq_q=seq_q, seq_kv=70)
    full = table.workload()
    windows = [replace(full, causal=True, window=size) for size in range(1, 70)]
    number = np.arange(-(-seq_q // tile.q))[:, None]
    for w in (full, replace(full, causal=True), *windows):
        seen = query_blocks(w, tile)
        shown = (number >= seen.first) & (number < seen.end)
        np.testing.assert_array_equal(shown, visited(w, tile))


def tiles_of(stream, kernel, loop) -> list[np.ndarray]:
    """The (matrix, row of tiles, column of tiles) that each item's trips touch."""
    base, down, across = stream.base(kernel.items), stream.tiles_down, stream.tiles_across
    trips = [np.arange(n) for n in kernel.trips[loop]]
    numbers = [b + stream.stride * trip for b, trip in zip(base, trips, strict=True)]
    return [np.stack([n // (down * across), n // across % down, n % across]) for n in numbers]


@given(training("flash1", "flash2", "naive"), devices())
@settings(max_examples=40)
def test_sums_take_the_heads_of_the_group_at_the_same_rows(case, hw):
    schedule, w = case
    group = w.heads // w.kv_heads
    for kernel in lowered(schedule, w, hw):
        if "sum over heads" not in kernel.name:
            continue
        parts, whole = (stream for stream in kernel.streams)
        written = tiles_of(whole, kernel, 1)
        for read, ((matrix,), (row,), _) in zip(tiles_of(parts, kernel, 0), written, strict=True):
            np.testing.assert_array_equal(read[0], group * matrix + np.arange(group))
            assert (read[1] == row).all()


@given(training("flash1", "flash2"), devices())
@settings(max_examples=40)
def test_backward_reads_the_keys_whose_gradients_it_writes(case, hw):
    schedule, w = case
    for kernel in lowered(schedule, w, hw):
        if kernel.name not in ("dQ, dK, dV", "flash1 backward"):
            continue
        k, dk = kernel.streams[0], kernel.streams[-2]
        assert k.tensor.name == "K"
        assert dk.tensor.name in ("dK", "dK of heads")
        matrix, row = np.divmod(k.base(kernel.items), k.tiles_down)
        head_matrix, own_row = np.divmod(dk.base(kernel.items), dk.tiles_down)
        sequence, head = np.divmod(head_matrix, w.heads)
        group = head // (w.heads // w.kv_heads)
        np.testing.assert_array_equal(row, own_row)
        np.testing.assert_array_equal(matrix, sequence * w.kv_heads + group)
        assert len(np.unique(dk.base(kernel.items))) == len(kernel.items)


@given(training("naive"), devices())
@settings(max_examples=40)
def test_naive_s_dk_and_dv_take_their_keys_column_of_the_matrix_and_all_query_rows(case, hw):
    schedule, w = case
    for kernel in lowered(schedule, w, hw):
        if kernel.name not in ("dV = P^T dO", "dK = dS^T Q"):
            continue
        p, do, result = kernel.streams
        down = np.arange(-(-w.seq_q // p.tile_rows))  # slices of all query rows
        reads = zip(tiles_of(p, kernel, 0), tiles_of(do, kernel, 0), strict=True)
        for (of_p, of_do), (matrix, row, col) in zip(
            reads, tiles_of(result, kernel, 1), strict=True
        ):
            np.testing.assert_array_equal(of_p, [matrix + 0 * down, down, row + 0 * down])
            np.testing.assert_array_equal(of_do, [matrix + 0 * down, down, col + 0 * down])


@given(training("flash1", "flash2"), devices())
@settings(max_examples=40)
def test_backward_takes_five_matmuls_where_forward_takes_two(case, hw):
    schedule, w = case
    schedule = schedule.model_copy(update={"tile": Tile(q=16, kv=16)})
    kernels = kernels_of(schedule.program(w, hw))
    flops = [ran.executed("mma_flops") for ran in run(kernels, hw, w)]
    assert sum(flops) == 3.5 * flops[0]
    assert sum(flops) >= w.useful_flops


@given(training("flash1"), devices(l2="0 B"))
@settings(max_examples=60)
def test_flash1_backward_without_l2_moves_what_algorithm_4_says(case, hw):
    schedule, w = case
    kernels = lowered(schedule, w, hw)
    (kernel,) = [k for k in kernels if k.name == "flash1 backward"]
    ran, tile = by_name(kernels, hw, w)["flash1 backward"], tile_of(kernel)
    visits, _ = visits_of(w, tile)
    row_bytes, matrices = w.head_dim * w.dtype_bytes, w.batch * w.heads
    kv_bytes = 2 * w.seq_kv * row_bytes
    of_rows = visits * (3 * row_bytes + 2 * STATISTICS_BYTES) + (visits - w.seq_q) * row_bytes
    assert ran.hbm_read_bytes == matrices * (kv_bytes + of_rows)
    assert ran.hbm_write_bytes == matrices * (kv_bytes + visits * row_bytes)
    pairs = int(visited(w, tile).sum()) * tile.q * tile.kv
    assert ran.executed("mma_flops") == 10 * w.head_dim * pairs * matrices


@pytest.mark.parametrize("share", [1.0, 0.5, 0.25])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_flash1_backward_traffic_goes_as_the_square_of_n_d_over_sram(share, head_dim):
    """Theorem 5 of arXiv 2205.14135: Theta(N^2 d^2 / M) accesses, as forward.

    Algorithm 4 reads Q, O, dO, dQ, l and m and writes dQ, once for each of N / Bc blocks of keys;
    Bc = M / 8d here, down to a multiple of 16. K, V, dK and dV come once.
    """
    n, d = 8192, head_dim
    w = WorkloadTable(heads=1, head_dim=d, seq_len=n, phase="training").workload()
    capacity = f"{int(256 * share)} KiB"
    overrides = {"l2": {"capacity": "0 B"}, "sram": {"capacity": capacity}}
    hw = load_profile("h100-sxm", overrides, "a test")
    ran = by_name(kernels_of(SCHEDULES["flash1"]().program(w, hw)), hw, w)["flash1 backward"]
    elements = (ran.hbm_read_bytes + ran.hbm_write_bytes) / w.dtype_bytes
    m = hw.sram.max_per_cta / w.dtype_bytes
    passes = n / (m / (8 * d) - 16) + 1
    assert 40 * n**2 * d**2 / m < elements < passes * n * (5 * d + 4) + 4 * n * d


@given(training("naive"), devices(l2="0 B"), st.booleans())
@settings(max_examples=60)
def test_naive_backward_without_l2_moves_what_eager_pytorch_does(case, hw, scale):
    schedule, w = case
    schedule = schedule.model_copy(update={"scale": scale})
    kernels = lowered(schedule, w, hw)
    runs = by_name(kernels, hw, w)
    moved = {n: (r.hbm_read_bytes, r.hbm_write_bytes) for n, r in runs.items()}
    tile = kernels[0].loops[-1].ops[0].stream
    down, across = -(-w.seq_q // tile.tile_rows), -(-w.seq_kv // tile.tile_cols)
    matrices, row_bytes = w.batch * w.heads, w.head_dim * w.dtype_bytes
    scores = matrices * w.seq_q * w.seq_kv * w.dtype_bytes
    q_bytes, kv_bytes = (matrices * n * row_bytes for n in (w.seq_q, w.seq_kv))
    widths = -(-w.head_dim // tile.tile_cols)
    assert moved["dP = dO V^T"] == (across * q_bytes + down * kv_bytes, scores)
    assert moved["P dP"] == (2 * scores, scores)
    assert moved["dS = softmax backward"] == (2 * scores, scores)
    assert ("dropout backward" in moved) == w.dropout
    if w.dropout:
        kept = scores // w.dtype_bytes
        assert moved["dropout"] == (scores, scores + kept)
        assert moved["dropout backward"] == (scores + kept, scores)
    assert ("scale backward" in moved) == scale
    if scale:
        assert moved["scale backward"] == (scores, scores)
    assert moved["dQ = dS K"] == (widths * scores + down * kv_bytes, q_bytes)
    key_blocks = -(-w.seq_kv // tile.tile_rows)
    for name in ("dV = P^T dO", "dK = dS^T Q"):
        assert moved[name] == (widths * scores + key_blocks * q_bytes, kv_bytes)


def test_naive_takes_four_matmuls_more_of_the_same_flops():
    hw = load_profile("a100-sxm-40gb")
    w = WorkloadTable(heads=2, head_dim=64, seq_len=256, phase="training").workload()
    runs = by_name(kernels_of(SCHEDULES["naive"]().program(w, hw)), hw, w)
    flops = [ran.executed("mma_flops") for ran in runs.values() if ran.executed("mma_flops")]
    assert flops == [2 * 2 * 64 * 256 * 256] * 6


def test_softmax_backward_of_rows_beyond_sram_reads_their_product_twice():
    hw = load_profile("h100-sxm", {"sram": {"capacity": "64 KiB"}}, "a test")
    table = WorkloadTable(heads=1, head_dim=16, seq_q=2, seq_kv=40_000, phase="training")
    w = table.workload()
    ran = by_name(kernels_of(SCHEDULES["naive"]().program(w, hw)), hw, w)["dS = softmax backward"]
    assert ran.l2_read_bytes == 3 * 2 * 40_000 * 2


@given(training("flash1", "flash2", "naive"), devices(l2="64 MiB"))
@settings(max_examples=40)
def test_infinite_l2_reads_no_gradient_and_each_input_once(case, hw):
    schedule, w = case
    kernels = lowered(schedule, w, hw)
    tensors = dict.fromkeys(t for k in kernels for t in k.tensors)
    if sum(t.bytes for t in tensors) > 64 * 2**20:
        return
    runs = run(kernels, hw, w)
    inputs = sum(t.bytes for t in tensors if t.lifetime == "input")
    reads = sum(ran.hbm_read_bytes for ran in runs)
    assert reads == inputs if w.mask == "full" or schedule.name == "naive" else reads <= inputs
    written = sum(ran.hbm_write_bytes for ran in runs) + runs[-1].l2_dirty_bytes
    assert written == sum(t.bytes for t in tensors if t.lifetime != "input")


# flash_bwd_launch_template.h and the kB that its comments and conditions state.
@pytest.mark.parametrize(
    ("profile", "head_dim", "dropout", "tile", "kib"),
    [
        ("a100-sxm-40gb", 32, True, (128, 128), 104),
        ("a100-sxm-40gb", 32, False, (128, 128), 96),
        ("a100-sxm-40gb", 64, False, (128, 128), 144),
        ("a100-sxm-40gb", 96, False, (64, 128), 92),
        ("a100-sxm-40gb", 96, True, (64, 128), 116),
        ("a100-sxm-40gb", 128, False, (64, 128), 144),
        ("h100-sxm", 192, False, (64, 64), 136),
        ("h100-sxm", 256, False, (64, 64), 176),
        ("a100-sxm-40gb", 256, True, (64, 64), 144),
        ("rtx-4090", 64, False, (64, 128), 72),
        ("rtx-4090", 128, False, (64, 64), 80),
        ("rtx-4090", 256, False, (64, 32), 96),
    ],
)
def test_backward_tiles_and_their_sram_are_the_public_kernel_s(
    profile, head_dim, dropout, tile, kib
):
    hw = load_profile(profile)
    table = WorkloadTable(heads=1, head_dim=head_dim, seq_len=64, dropout=dropout)
    cta = public_backward_cta(table.workload(), hw)
    assert (cta.tile.q, cta.tile.kv) == tile
    assert cta.sram_bytes(table.workload())(cta.tile) == kib * 1024


@pytest.mark.parametrize(
    ("head_dim", "tile"), [(64, (128, 64)), (128, (128, 32)), (192, (64, 64)), (256, (128, 64))]
)
def test_dropout_runs_in_the_public_kernel_s_smaller_tiles(head_dim, tile):
    w = WorkloadTable(heads=1, head_dim=head_dim, seq_len=512, dropout=True).workload()
    (kernel,) = kernels_of(SCHEDULES["flash2"]().program(w, load_profile("a100-sxm-40gb")))
    assert (tile_of(kernel).q, tile_of(kernel).kv) == tile


@pytest.mark.parametrize("name", ["flash1", "flash2"])
def test_dropout_costs_random_numbers_for_each_score_and_no_bytes(name):
    hw = load_profile("a100-sxm-40gb", {"l2": {"capacity": "0 B"}}, "a test")
    schedule = SCHEDULES[name].model_validate({"tile": {"q": 64, "kv": 64}})
    w = WorkloadTable(heads=2, head_dim=64, seq_len=512, phase="training").workload()
    plain = run(kernels_of(schedule.program(w, hw)), hw, w)
    dropped = run(kernels_of(schedule.program(replace(w, dropout=True), hw)), hw, w)
    scores = 2 * 512 * 512
    more = sum(
        d.executed("vector_ops") - p.executed("vector_ops")
        for d, p in zip(dropped, plain, strict=True)
    )
    assert more == (4 + 6) * scores
    for with_it, without in zip(dropped, plain, strict=True):
        assert with_it.hbm_read_bytes == without.hbm_read_bytes
        assert with_it.hbm_write_bytes == without.hbm_write_bytes


@pytest.mark.parametrize(
    ("schedule", "workload", "complaint"),
    [
        ({"name": "flash2", "implementation": "triton"}, {}, 'implementation = "triton"'),
        ({"name": "flash2", "tile": {"q": 128, "kv": 128}}, {"head_dim": 128}, "needs 192 KiB"),
        ({"name": "flash2"}, {"head_dim": 256, "dropout": True}, "with dropout on rtx-4090"),
        ({"name": "flash2", "rope": "fused"}, {}, 'rope = "fused"'),
        ({"name": "block_sparse"}, {}, "prefill or decode"),
    ],
)
def test_what_cannot_be_trained_is_said(schedule, workload, complaint):
    table = {"heads": 2, "head_dim": 64, "seq_len": 256, "phase": "training"} | workload
    with pytest.raises(InputError, match=complaint):
        simulate(workload=table, hardware="rtx-4090", schedule=[schedule])

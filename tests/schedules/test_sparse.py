"""Pruned attention other than HiP: kept keys against brute-force masks, bytes against formulas."""

from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from sim.device.program import kernels_of
from sim.inputs.files import InputError
from sim.inputs.hardware import load_profile
from sim.inputs.workload import AttentionWorkload, WorkloadTable
from sim.machine import ctas_per_sm
from sim.schedules import SCHEDULES
from sim.schedules.base import Tile
from sim.schedules.parts.row_select import row_select_kernels
from sim.tile_program import Compute, Footprint, Kernel, Load, Store, Stream, Tensor
from tests.support.drawn import cases, devices, lowered
from tests.support.formulas import (
    blocks_with_any,
    ceil,
    kept_bytes,
    run,
    run_head_dim,
    tile_of,
    visible,
    visited,
)

NO_L2 = {"l2": {"capacity": "0 B"}}


def touched(kernel: Kernel, stream: Stream) -> list[list[int]]:
    """The tiles that each item touches by a stream, trip after trip."""
    items = kernel.items
    (loop,) = [
        number
        for number, loop in enumerate(kernel.loops)
        if any(getattr(op, "stream", None) is stream for op in loop.ops)
    ]
    tiles = []
    for item, base, start in zip(items, stream.base(items), stream.start(items), strict=True):
        trips = np.arange(kernel.trips[loop][item])
        offsets = stream.stride * trips if stream.table is None else stream.table[start + trips]
        tiles.append((base + offsets).tolist())
    return tiles


def tiles_of(kernel: Kernel, name: str, loop: int) -> list[list[int]]:
    """The tiles of a tensor that each item loads in a loop, trip after trip."""
    (load,) = [load for load in kernel.loops[loop].loads if load.stream.tensor.name == name]
    return touched(kernel, load.stream)


def distances(w: AttentionWorkload) -> np.ndarray:
    """Position of each query less that of each key: (seq_q, seq_kv)."""
    return np.arange(w.seq_q)[:, None] - np.arange(w.seq_kv)[None, :]


@given(cases("bigbird"), devices(l2="0 B"))
@settings(max_examples=40)
def test_bigbird_visits_window_global_and_random_blocks_once_each(case, hw):
    w, schedule = case
    kernels = lowered(schedule, w, hw)
    tile, (ran,) = tile_of(kernels), run(kernels, hw, w)
    seen = visited(w, tile)
    down, across = seen.shape
    first, last = ceil(schedule.global_blocks, 2), schedule.global_blocks // 2
    is_global = {b for b in range(across) if b < first or b >= across - last}
    found = np.zeros_like(seen)
    for row, tiles in enumerate(tiles_of(kernels[0], "K", 1)[:down]):
        bottom = min((row + 1) * tile.q, w.seq_q) - 1
        own = set(range(row * tile.q // tile.kv, bottom // tile.kv + 1))
        side = range(-(schedule.window_blocks // 2), schedule.window_blocks // 2 + 1)
        fixed = is_global | {b + s for b in own for s in side}
        if own & is_global:
            fixed = set(range(across))
        shown = set(np.flatnonzero(seen[row]))
        rest = len(shown - fixed)
        assert len(set(tiles)) == len(tiles)
        assert fixed & shown <= set(tiles) <= shown
        assert len(tiles) == len(fixed & shown) + min(rest, schedule.random_blocks)
        found[row, tiles] = True
    matrices = w.batch * w.heads
    assert ran.hbm_read_bytes == matrices * kept_bytes(w, found, tile)
    pairs = matrices * int(found.sum()) * tile.q * tile.kv
    assert ran.executed("mma_flops") == 4 * run_head_dim(w, schedule) * pairs


@given(cases("longformer"), devices(l2="0 B"))
@settings(max_examples=40)
def test_longformer_keeps_both_sides_and_what_is_global_either_way(case, hw):
    w, schedule = case
    kernels = lowered(schedule, w, hw)
    tile, (ran,) = tile_of(kernels), run(kernels, hw, w)
    kept = abs(distances(w)) <= schedule.keep_window // 2
    kept[: schedule.global_tokens] = kept[:, : schedule.global_tokens] = True
    pairs = blocks_with_any(kept & visible(w), tile)
    matrices = w.batch * w.heads
    assert ran.hbm_read_bytes == matrices * kept_bytes(w, pairs, tile)
    steps, d = matrices * pairs.sum(), run_head_dim(w, schedule)
    assert ran.executed("mma_flops") == 4 * d * steps * tile.q * tile.kv


@pytest.mark.parametrize("causal", [True, False])
def test_longformer_s_window_ends_where_its_mask_does(causal):
    hw = load_profile("h100-sxm")
    w = WorkloadTable(heads=1, head_dim=64, seq_len=150, causal=causal).workload()
    for keep_window in range(1, 70):
        schedule = SCHEDULES["longformer"](keep_window=keep_window, tile={"q": 32, "kv": 16})
        (kernel,) = kernels_of(schedule.program(w, hw))
        kept = abs(distances(w)) <= keep_window // 2
        kept[:1] = kept[:, :1] = True
        pairs = blocks_with_any(kept & visible(w), Tile(q=32, kv=16))
        np.testing.assert_array_equal(kernel.trips[1], pairs.sum(axis=1))


@given(st.integers(1, 9000), st.integers(1, 700), st.integers(1, 5000), st.integers(0, 99))
def test_minference_s_lines_are_those_forced_and_as_many_as_asked_for(n, vertical, slash, seed):
    schedule = SCHEDULES["minference"](vertical=vertical, slash=slash, seed=seed)
    lines = schedule.lines(n)
    for line, forced, count in ((lines.verticals, 30, vertical), (lines.slashes, 100, slash)):
        assert len(line) == min(n, max(count, forced))
        assert (np.diff(line) > 0).all()
        np.testing.assert_array_equal(line[:forced], np.arange(min(n, forced)))
        assert line[-1] < n


def merged(slashes: np.ndarray, end: int) -> list[int]:
    """Where the ranges of 64 keys of the block of query rows before `end` begin.

    As convert_vertical_slash_indexes_kernel merges them (microsoft/MInference).
    """
    begins: list[int] = []
    low = high = None
    for slash in sorted((s for s in slashes if s < end), reverse=True):
        reached = max(end - slash, 64)
        if high is None or reached > high + 64:
            begins += [] if high is None else range(low, high, 64)
            low, high = reached - 64, reached
        elif reached > high:
            high += 64
    return [*begins, *range(low, high, 64)]


@given(st.integers(64, 5000), st.integers(1, 900), st.integers(0, 9), st.integers(0, 99))
@settings(max_examples=60)
def test_minference_visits_the_ranges_that_its_index_merges(n, slash, seed, row):
    lines = SCHEDULES["minference"](slash=slash, seed=seed).lines(n)
    row = min(row, n // 64 - 1)
    begins = merged(lines.slashes, (row + 1) * 64)
    visited = row - lines.behind[: int(lines.key_blocks(np.array([row]))[0])]
    # Where a slash reaches beyond the first key the merge begins elsewhere.
    assert abs(len(visited) - len(begins)) <= 1
    if lines.slashes[-1] < row * 64:
        assert sorted(begin // 64 for begin in begins) == sorted(visited)


@given(cases("minference"), devices(l2="0 B"))
@settings(max_examples=40)
def test_minference_attends_to_blocks_that_a_slash_crosses_and_to_other_verticals(case, hw):
    w, schedule = case
    kernels = lowered(schedule, w, hw)
    attentions = [
        (kernel, ran)
        for kernel, ran in zip(kernels, run(kernels, hw, w), strict=True)
        if kernel.name == "sparse attention"
    ]
    lines, tile, down = schedule.lines(w.seq_kv), Tile(q=64, kv=64), ceil(w.seq_kv, 64)
    apart = np.arange(down)[:, None] - np.arange(down)[None, :]
    crossed = np.isin(apart, lines.behind)
    columns = [
        [v for v in lines.verticals if v < (row + 1) * 64 and not crossed[row, v // 64]]
        for row in range(len(crossed))
    ]
    rows = sum(map(len, columns))
    matrices, row_bytes = w.batch * w.heads, w.head_dim * w.dtype_bytes
    assert len(attentions) == (1 if schedule.implementation == "triton" else matrices)
    expected = kept_bytes(w, crossed, tile) + 2 * rows * row_bytes
    assert sum(ran.hbm_read_bytes for _, ran in attentions) == matrices * expected
    assert sum(ran.hbm_write_bytes for _, ran in attentions) == matrices * w.seq_q * row_bytes
    steps = int(crossed.sum()) + sum(ceil(len(row), 64) for row in columns)
    own = "cuda" if schedule.implementation == "sglang" else "triton"
    flops = 4 * run_head_dim(w, implementation=own) * matrices * steps * 64 * 64
    assert sum(ran.executed("mma_flops") for _, ran in attentions) == flops
    gathering = attentions[0][0].loops[2].loads[0].stream
    gathered = touched(attentions[0][0], gathering)[: len(crossed)]
    assert [[t % w.seq_kv for t in row] for row in gathered] == columns


@given(cases("minference"), devices(l2="0 B"))
@settings(max_examples=30)
def test_minference_estimates_by_passes_over_the_last_queries_scores(case, hw):
    w, schedule = case
    schedule = schedule.model_copy(update={"implementation": "triton"})
    runs = run(lowered(schedule, w, hw), hw, w)
    scores, softmax, columns, _, pad, diagonals, _, index, _ = runs
    n, size, matrices = w.seq_kv, w.dtype_bytes, w.batch * w.heads
    last = (n - 1) % 64 + 1
    row_bytes = w.head_dim * size
    assert scores.hbm_read_bytes == matrices * (n + ceil(n, 128) * last) * row_bytes
    assert scores.hbm_write_bytes == matrices * last * n * size
    assert softmax.hbm_read_bytes == 3 * scores.hbm_write_bytes
    p_bytes = matrices * last * n * 4
    assert softmax.hbm_write_bytes == columns.hbm_read_bytes == pad.hbm_read_bytes == p_bytes
    assert pad.hbm_write_bytes == diagonals.hbm_read_bytes == p_bytes
    assert columns.hbm_write_bytes == diagonals.hbm_write_bytes == matrices * n * 4
    lines, down = schedule.lines(n), ceil(n, 64)
    listed = len(lines.verticals) + len(lines.slashes)
    assert index.hbm_read_bytes == matrices * ceil(down, 64) * listed * 4
    most = np.count_nonzero(lines.behind < down)
    assert index.hbm_write_bytes == matrices * down * (len(lines.verticals) + most) * 4


def test_minference_goes_head_by_head_and_copies_what_it_pads():
    """Forty launches a head by its authors' code; a port has nine for all heads."""
    hw = load_profile("a100-sxm-80gb", NO_L2)
    table = {"heads": 4, "kv_heads": 2, "head_dim": 128, "seq_len": 4096, "causal": True}
    w = WorkloadTable.model_validate(table).workload()
    launches = {}
    for own in ("minference", "sglang", "triton"):
        program = SCHEDULES["minference"](implementation=own).program(w, hw)
        kernels = [command.work for command in program]
        launches[own] = [kernel.name for kernel in kernels]
        runs = list(zip(kernels, run(kernels, hw, w), strict=True))
        copies = [ran for kernel, ran in runs if kernel.name.startswith("copy")]
        a_head = 4096 * 128 * 2
        assert {ran.hbm_read_bytes for ran in copies} <= {a_head}
        cleared = [ran.hbm_write_bytes for k, ran in runs if k.name == "clear key blocks"]
        slashes = len(SCHEDULES["minference"]().lines(4096).slashes)
        assert set(cleared) <= {64 * slashes * 4}
    assert len(launches["triton"]) == 9
    own, ours = launches["minference"], launches["sglang"]
    assert own[:2] == ours[:2] == ["repeat K", "repeat V"]
    assert (len(own) - 2) % 4 == (len(ours) - 2) % 4 == 0
    assert own[2 : 2 + (len(own) - 2) // 4] * 4 == own[2:]
    assert own.count("copy K'") == own.count("clear O") == 4
    assert "copy K'" not in ours
    assert ours.count("copy Q") == ours.count("copy O of a head") == 4


@given(cases("quest"), devices(l2="0 B"))
@settings(max_examples=50)
def test_quest_reads_two_rows_a_page_and_then_the_pages_of_its_budget(case, hw):
    w, schedule = case
    kernels = lowered(schedule, w, hw)
    runs = dict(zip([k.name for k in kernels], run(kernels, hw, w), strict=True))
    size, heads, width = schedule.page_size, w.batch * w.heads, w.dtype_bytes
    pages = ceil(w.seq_kv, size)
    read = min(pages, schedule.budget // size)
    last = w.seq_kv - (pages - 1) * size
    row_bytes = w.head_dim * width
    assert ("estimate" in runs) == (pages > read)
    if "estimate" in runs:
        assert runs["estimate"].hbm_read_bytes == heads * (1 + 2 * (pages - 1)) * row_bytes
        assert runs["estimate"].hbm_write_bytes == heads * (pages - 1) * width
        passes = 8 * width // 8 + 1
        assert runs["choose pages"].hbm_read_bytes == heads * (pages - 1) * width * passes
        assert runs["choose pages"].hbm_write_bytes == heads * (read - 1) * 4
    (attention,) = [k for k in kernels if k.name == "attention"]
    parts = attention.ctas // heads
    tokens = (read - 1) * size + last
    assert runs["attention"].hbm_read_bytes == heads * (parts + 2 * tokens) * row_bytes
    tiles = tiles_of(attention, "K", 1)
    for head in range(heads):
        own = list(chain.from_iterable(tiles[head * parts : (head + 1) * parts]))
        assert len(set(own)) == len(own) == read
        matrix = head // w.heads * w.kv_heads + head % w.heads * w.kv_heads // w.heads
        assert {tile // pages for tile in own} == {matrix}
        assert own[-1] % pages == pages - 1
    partial = heads * parts * (row_bytes + 4) if parts > 1 else heads * row_bytes
    assert runs["attention"].hbm_write_bytes == partial
    if parts > 1:
        assert runs["merge"].hbm_read_bytes == partial
        assert runs["merge"].hbm_write_bytes == heads * row_bytes


@given(cases("minference", "quest", "nsa"), devices())
@settings(max_examples=40)
def test_each_kernel_writes_all_it_makes_once_and_reads_all_but_keys_and_pages(case, hw):
    w, schedule = case
    if schedule.name == "minference":  # head by head, a launch has its head's part of Q, K, V, O
        schedule = schedule.model_copy(update={"implementation": "triton"})
    for kernel in lowered(schedule, w, hw):
        reads, writes = {}, {}
        for loop in kernel.loops:
            for op in loop.ops:
                if isinstance(op, Load | Store):
                    found = reads if isinstance(op, Load) else writes
                    tiles = chain.from_iterable(touched(kernel, op.stream))
                    found.setdefault(op.stream.tensor, (op.stream, []))[1].extend(tiles)
        for tensor, (stream, tiles) in [*reads.items(), *writes.items()]:
            count = tensor.groups * stream.tiles_down * stream.tiles_across
            if tensor.name == "key blocks":  # as many as there are slashes, few are found
                assert {tile % stream.tiles_across for tile in tiles} == {0}
            elif tensor.name == "marks" and kernel.name != "clear marks":  # of chosen blocks alone
                assert set(tiles) <= set(range(count)), kernel.name
            elif tensor.name == "dQ in fp32" and kernel.name == "dQ, dK, dV":
                assert set(tiles) == set(range(count))  # added to, by each block of keys
            elif tensor in writes:
                assert sorted(tiles) == list(range(count)), (kernel.name, tensor.name)
            elif tensor.name == "Q" and kernel.name == "S = Q_last K^T":
                assert {tile % stream.tiles_down for tile in tiles} == {stream.tiles_down - 1}
            elif tensor.name not in ("K", "V") and tiles:  # none before the first compressed key
                assert set(tiles) == set(range(count)), (kernel.name, tensor.name)


def compressed_visible(w: AttentionWorkload, schedule) -> np.ndarray:
    """Which compressed keys lie wholly before each query: (seq_q, compressed keys)."""
    length, stride = schedule.pooled
    count = max(1, (w.seq_kv - length) // stride + 1)
    position = np.arange(w.seq_q)[:, None] + w.seq_kv - w.seq_q
    return np.arange(count)[None, :] * stride + length - 1 <= position


@given(cases("nsa"))
@settings(max_examples=40)
def test_nsa_selects_the_first_two_local_and_other_blocks(case):
    w, schedule = case
    first = w.seq_kv - w.seq_q
    chosen, starts = schedule.selected(first, w.seq_q)
    for row in range(w.seq_q):
        own = (first + row) // schedule.block
        blocks = list(chosen[starts[row] : starts[row + 1]])
        assert blocks == sorted(set(blocks))
        assert {0, max(0, own - 1), own} <= set(blocks) <= set(range(own + 1))
        assert len(blocks) == min(schedule.top, own + 1)


@given(cases("nsa"), devices(l2="0 B"))
@settings(max_examples=40)
def test_nsa_moves_what_each_of_its_branches_must(case, hw):
    w, schedule = case
    schedule = schedule.model_copy(update={"implementation": "nsa_triton"})
    if w.phase == "training":
        w = replace(w, phase="prefill")
    kernels = lowered(schedule, w, hw)
    runs = dict(zip([k.name for k in kernels], run(kernels, hw, w), strict=True))
    by_name = {k.name: k for k in kernels}
    n, width, group = w.seq_kv, w.dtype_bytes, w.heads // w.kv_heads
    heads, matrices, row_bytes = w.batch * w.heads, w.batch * w.kv_heads, w.head_dim * width
    seen = compressed_visible(w, schedule)
    count, decode = seen.shape[1], w.phase == "decode"
    if not decode:
        (length, stride), pooled = schedule.pooled, 0
        for c in range(count):
            pooled += min(length, n - c * stride)
        for name in ("compress K", "compress V"):
            assert runs[name].hbm_read_bytes == matrices * pooled * row_bytes
            assert runs[name].hbm_write_bytes == matrices * count * row_bytes
        for name, mask in (
            ("compressed attention", seen),
            ("window attention", visible(w) & (distances(w) < schedule.keep_window)),
        ):
            q, k = (by_name[name].loops[i].loads[0].stream for i in (0, 1))
            pairs = blocks_with_any(mask, Tile(q=q.tile_rows, kv=k.tile_rows))
            keys = np.minimum(k.tile_rows, mask.shape[1] - k.tile_rows * np.arange(pairs.shape[1]))
            read = heads * (n + 2 * int((pairs * keys).sum())) * row_bytes
            assert runs[name].hbm_read_bytes == read
            assert runs[name].hbm_write_bytes == heads * n * (row_bytes + 4)
            own = "cuda" if name == "window attention" else "triton"
            d = run_head_dim(w, implementation=own)
            flops = 4 * d * heads * int(pairs.sum()) * q.tile_rows * k.tile_rows
            assert runs[name].executed("mma_flops") == flops
    chosen, _ = schedule.selected(n - w.seq_q, w.seq_q)
    keys = np.minimum(schedule.block, n - chosen * schedule.block).sum()
    selected = runs["selected attention"]
    assert selected.hbm_read_bytes == (heads * w.seq_q + 2 * matrices * keys) * row_bytes
    assert selected.hbm_write_bytes == heads * w.seq_q * (row_bytes + 4)
    rows = 16
    while rows < group:
        rows *= 2
    pairs = matrices * len(chosen) * rows * schedule.block
    d = run_head_dim(w, implementation="triton")
    assert selected.executed("mma_flops") == 4 * d * pairs
    scores = w.seq_q * count * 4
    passes = 1 if decode else ceil(w.seq_q, 128)
    across = ceil(count, 128)
    expected = passes * count * row_bytes + across * group * w.seq_q * (row_bytes + 4)
    assert runs["scores"].hbm_read_bytes == matrices * expected
    assert runs["scores"].hbm_write_bytes == runs["block scores"].hbm_read_bytes
    assert runs["scores"].hbm_write_bytes == matrices * scores
    sums = matrices * w.seq_q * ceil(n, schedule.block) * 4
    assert runs["block scores"].hbm_write_bytes == sums
    # Its passes after the first read L1.
    assert runs["choose blocks"].hbm_read_bytes == sums
    assert runs["clear block scores"].hbm_write_bytes == sums
    assert runs["gate"].hbm_read_bytes == heads * w.seq_q * 3 * (row_bytes + width)
    assert runs["gate"].hbm_write_bytes == heads * w.seq_q * row_bytes


def fla(schedule, **options):
    """The same schedule by fla-org's kernels, which compress each block to a key."""
    table = schedule.model_dump() | {"implementation": "fla", **options}
    return SCHEDULES["nsa"].model_validate(
        table | {"compress_block": None, "compress_stride": None}
    )


@given(cases("nsa"), devices(l2="0 B"))
@settings(max_examples=30)
def test_fla_s_kernels_have_a_cta_a_position_and_write_no_scores(case, hw):
    w, schedule = case
    schedule = fla(schedule)
    kernels = lowered(schedule, w, hw)
    runs = dict(zip([k.name for k in kernels], run(kernels, hw, w), strict=True))
    n, row_bytes = w.seq_kv, w.head_dim * w.dtype_bytes
    heads, matrices = w.batch * w.heads, w.batch * w.kv_heads
    seen = compressed_visible(w, schedule)
    at_once = min(64, 16 * ceil(seen.shape[1], 16))
    count, own = seen.sum(1), (n - w.seq_q + np.arange(w.seq_q)) // schedule.block

    def keys_read(steps: np.ndarray) -> int:
        return int(np.minimum(steps * at_once, seen.shape[1]).sum())

    compressed, chosen = runs["compressed attention"], runs["choose blocks"]
    read = heads * w.seq_q + 2 * matrices * keys_read(-(-count // at_once))
    assert compressed.hbm_read_bytes == read * row_bytes
    assert compressed.hbm_write_bytes == heads * w.seq_q * (row_bytes + 4)
    read = heads * w.seq_q + matrices * keys_read(own // at_once + 1)
    assert chosen.hbm_read_bytes == read * row_bytes + heads * w.seq_q * 4
    top = min(schedule.top, ceil(n, schedule.block))
    assert chosen.hbm_write_bytes == matrices * w.seq_q * top * 4
    assert runs["gate"].hbm_write_bytes == heads * w.seq_q * row_bytes


def training(case):
    """The same case, trained by fla-org's kernels."""
    w, schedule = case
    return replace(w, phase="training", seq_q=w.seq_kv, tokens=1), fla(schedule)


@given(cases("nsa").map(training), devices(l2="0 B"))
@settings(max_examples=20)
def test_fla_s_backward_reads_each_position_for_each_block_that_it_attends_to(case, hw):
    w, schedule = case
    kernels = [k for k in lowered(schedule, w, hw) if k.backward]
    runs = dict(zip([k.name for k in kernels], run(kernels, hw, w), strict=True))
    n, row_bytes, block = w.seq_kv, w.head_dim * w.dtype_bytes, schedule.block
    heads, matrices, group = w.batch * w.heads, w.batch * w.kv_heads, w.heads // w.kv_heads
    chosen, _ = schedule.selected(0, n)
    keys = int(np.minimum(block, n - chosen * block).sum())
    statistics = 2 * 4  # log-sum-exp and D
    dq, dkv = runs["dQ of selected, a part"], runs["dK of selected, dV of selected"]
    once = heads * n * (2 * row_bytes + statistics)  # Q and dO
    assert dq.hbm_read_bytes == once + 2 * matrices * keys * row_bytes
    assert dq.hbm_write_bytes == heads * n * row_bytes
    rows = matrices * len(chosen) * group * (2 * row_bytes + statistics)
    marks = dkv.hbm_read_bytes - rows - 2 * matrices * n * row_bytes
    assert dkv.hbm_write_bytes == 2 * matrices * n * row_bytes
    across = ceil(n, block)
    least = matrices * sum(n - block * i for i in range(across))
    assert least <= marks <= 32 * matrices * sum(n - block * i + 64 for i in range(across))
    d = run_head_dim(w, implementation="triton")
    tile_rows = max(16, 1 << (group - 1).bit_length())
    pairs = matrices * len(chosen) * tile_rows * block
    assert dq.executed("mma_flops") == 3 * 2 * pairs * d
    assert dkv.executed("mma_flops") == 4 * 2 * pairs * d


def test_nsa_trains_by_fla_s_kernels_alone():
    table = {"heads": 16, "kv_heads": 1, "head_dim": 128, "seq_len": 256, "causal": True}
    w = WorkloadTable.model_validate(table | {"phase": "training"}).workload()
    hw = load_profile("h100-sxm")
    with pytest.raises(InputError, match='"fla" was expected'):
        SCHEDULES["nsa"]().program(w, hw)
    kernels = kernels_of(SCHEDULES["nsa"](implementation="fla").program(w, hw))
    names = [k.name for k in kernels if k.backward]
    assert names.index("dQ, dK, dV") < names.index("dK of selected, dV of selected")
    assert {"dQ", "dK", "dV"} <= {t.name for k in kernels for t in k.tensors}


def test_a_launch_of_nsa_s_choice_has_one_kv_head_on_long_prompts():
    """compressed_attention.py: parallel_topk_compute, up to 32,768 tokens."""
    hw = load_profile("h100-sxm")
    for tokens, launches in ((32768, 1), (32832, 4)):
        table = {"heads": 64, "kv_heads": 4, "head_dim": 128, "seq_len": tokens, "causal": True}
        w = WorkloadTable.model_validate(table).workload()
        program = SCHEDULES["nsa"]().program(w, hw)
        names = [command.work.name for command in program]
        assert names.count("scores") == names.count("choose blocks") == launches


@pytest.mark.parametrize(
    ("blocks", "threads", "rounds"), [(20, 32, 1), (1024, 1024, 1), (3000, 1024, 3)]
)
def test_pytorch_s_topk_goes_over_a_row_once_for_each_two_bits(blocks, threads, rounds):
    hw = load_profile("h100-sxm")
    scores, found = Tensor("scores", 2, 9, blocks, 4), Tensor("found", 2, 9, 16, 8)
    select, order = row_select_kernels("choose", hw, scores, found)
    assert (select.ctas, select.footprint.threads) == (18, threads)
    count = next(op for op in select.actions if isinstance(op, Compute))
    assert count.other_ops == 16 * threads * (70 + 50 * rounds)
    assert order.name == "choose: by scores"


def test_nsa_s_positions_may_choose_fewer_blocks():
    hw = load_profile("h100-sxm")
    table = {"heads": 16, "kv_heads": 1, "head_dim": 128, "seq_len": 8192, "causal": True}
    w = WorkloadTable.model_validate(table).workload()
    steps = {}
    for fewest in (None, 1):
        program = SCHEDULES["nsa"](implementation="fla", fewest=fewest).program(w, hw)
        (kernel,) = (c.work for c in program if c.work.name == "selected attention")
        steps[fewest] = kernel.trips[1].mean()
    assert steps[1] / steps[None] == pytest.approx(8.5 / 16, rel=0.05)


def selected_attention(hw, **options):
    table = {"heads": 64, "kv_heads": 4, "head_dim": 128, "seq_len": 8192, "causal": True}
    w = WorkloadTable.model_validate(table | {"dtype": "bf16"}).workload()
    program = SCHEDULES["nsa"](**options).program(w, hw)
    return next(c.work for c in program if c.work.name == "selected attention")


def test_nsa_s_benchmark_draws_blocks_from_all_of_a_sequence_and_keeps_those_before_a_position():
    """test/test_topk_sparse_attention.py, generate_topk_idx_example: about half of them.

    Of 16 drawn evenly the n-th stands at n / 17 of the sequence; in place of the first is block 0.
    """
    hw = load_profile("h100-sxm")
    kept = [selected_attention(hw, drawn=drawn).trips[1] for drawn in ("before", "anywhere")]
    assert kept[1].min() == 1
    assert kept[1].mean() == pytest.approx(1 + sum(1 - n / 17 for n in range(2, 17)), rel=0.01)
    assert kept[0].mean() > 15


@pytest.mark.parametrize("profile", ["a100-sxm-80gb", "h100-sxm"])
def test_two_ctas_of_nsa_s_selected_attention_share_an_sm(profile):
    """Triton 3.0: 71,680 bytes of SRAM, 8 warps of 104 registers or 4 of 220."""
    hw = load_profile(profile)
    footprint = selected_attention(hw).footprint
    compiled = (104, 256) if profile.startswith("a100") else (220, 128)
    assert ctas_per_sm(footprint, hw) == 2
    assert ctas_per_sm(Footprint(71_680, compiled[1], compiled[0]), hw) == 2
    assert 0 <= 71_680 - footprint.sram_bytes <= 2048  # P goes through SRAM too


@pytest.mark.parametrize(
    ("profile", "options", "cycles"),
    # A trip beside another CTA's by the real machine code (`attnsim kernel`): nsa_triton's by
    # Triton 3.0, fla's by 3.2, which waits for a read of L2 of 300 cycles beside K's and V's.
    [
        ("a100-sxm-80gb", {}, 3274),
        ("h100-sxm", {}, 2775),
        ("h100-sxm", {"implementation": "fla"}, 2709 + 300),
    ],
)
def test_a_trip_of_selected_attention_takes_what_its_machine_code_takes(profile, options, cycles):
    hw = load_profile(profile)
    kernel = selected_attention(hw, **options)
    (trip,) = (op for op in kernel.loops[1].ops if isinstance(op, Compute))
    together = ctas_per_sm(kernel.footprint, hw)
    waited = trip.latencies * hw.calibration.sm.op_latency * hw.sm.clock
    held = max(trip.sram_bytes / 128, trip.other_ops / 128)
    beside = kernel.footprint.threads / 32 * (85 + 8.3 * 64 / (kernel.footprint.threads / 32)) - 200
    assert waited + held - (together - 2) * beside == pytest.approx(cycles, rel=0.12)


@given(cases("nsa"), devices(l2="0 B"))
@settings(max_examples=20)
def test_a_fused_window_is_read_by_the_kernel_of_selected_attention(case, hw):
    w, schedule = case
    assume(w.phase != "training")
    apart = {k.name: k for k in lowered(fla(schedule), w, hw)}
    fused = {k.name: k for k in lowered(fla(schedule, fused_window=True), w, hw)}
    both = fused["selected and window attention"]
    assert set(apart) - set(fused) >= {"selected attention", "window attention"}
    position = w.seq_kv - w.seq_q + np.arange(w.seq_q)
    of_window = -(-np.minimum(position + 1, schedule.keep_window) // schedule.block)
    (a_run,), (its_run,) = run([apart["selected attention"]], hw, w), run([both], hw, w)
    matrices, row_bytes = w.batch * w.kv_heads, w.head_dim * w.dtype_bytes
    block = np.arange(schedule.block)
    keys = 0
    for own, count in zip(position // schedule.block, of_window, strict=True):
        rows = (own - np.arange(count))[:, None] * schedule.block + block
        keys += int(((rows >= 0) & (rows < w.seq_kv)).sum())
    more = its_run.hbm_read_bytes - a_run.hbm_read_bytes
    assert more == 2 * matrices * keys * row_bytes
    assert its_run.hbm_write_bytes == 2 * a_run.hbm_write_bytes


def test_only_fla_s_kernels_had_a_window_in_them_and_forward():
    with pytest.raises(ValueError, match='"fla" was expected'):
        SCHEDULES["nsa"](fused_window=True)
    table = {"heads": 16, "kv_heads": 1, "head_dim": 128, "seq_len": 256, "causal": True}
    w = WorkloadTable.model_validate(table | {"phase": "training"}).workload()
    with pytest.raises(InputError, match="fused_window"):
        SCHEDULES["nsa"](implementation="fla", fused_window=True).program(
            w, load_profile("h100-sxm")
        )


@pytest.mark.parametrize(
    ("tokens", "equivalent"), [(8192, 2048), (16384, 2560), (32768, 3584), (65536, 5632)]
)
def test_nsa_decodes_with_the_paper_s_memory_accesses(tokens, equivalent):
    """Tokens of K and V read, 11.6 times fewer at 64k: arXiv 2502.11089, Table 4 (recalled).

    But for the window's 512: FlashAttention-2 packs no heads behind a window, each reads its own.
    """
    hw = load_profile("a100-sxm-80gb", NO_L2)
    w = WorkloadTable(
        heads=64, kv_heads=4, head_dim=128, seq_kv=tokens, causal=True, phase="decode"
    ).workload()
    schedule = SCHEDULES["nsa"]()
    branches = ("compressed attention", "selected attention")
    kernels = [k for k in kernels_of(schedule.program(w, hw)) if k.name in branches]
    read = sum(ran.hbm_read_bytes for ran in run(kernels, hw, w))
    of_q = sum(k.ctas // w.kv_heads for k in kernels) * w.heads * 256
    assert (read - of_q) / (2 * w.kv_heads * 256) == pytest.approx(equivalent - 512, abs=1)


@pytest.mark.parametrize("name", ["bigbird", "longformer"])
def test_patterns_visit_as_many_blocks_a_row_however_long_the_sequence(name):
    hw, steps = load_profile("h100-sxm"), {}
    for length in (8192, 16384):
        w = WorkloadTable(heads=2, head_dim=64, seq_len=length, causal=False).workload()
        (kernel,) = kernels_of(SCHEDULES[name]().program(w, hw))
        steps[length] = np.median(kernel.trips[1])
    assert steps[8192] == steps[16384] <= 9


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("bigbird", {"seq_q": 64}, "seq_q = seq_kv = 256"),
        ("longformer", {"phase": "decode"}, 'workload.phase = "decode"'),
        ("minference", {"causal": False}, "workload.causal = false: causal = true"),
        ("quest", {}, 'workload.phase = "prefill": decode was expected'),
        ("nsa", {"window": 32}, "workload.window = 32: causal = true, without a window"),
        ("nsa", {"dtype": "fp32"}, 'dtype = "fp32", head_dim = 64: fp16 or bf16'),
    ],
)
def test_what_cannot_be_is_said_in_one_line(name, change, message):
    table = {"heads": 2, "head_dim": 64, "seq_kv": 256, "seq_q": 256, "causal": True, **change}
    if change.get("phase") == "decode":
        table["seq_q"] = 1
    with pytest.raises(InputError, match=message) as error:
        SCHEDULES[name]().check(WorkloadTable(**table).workload())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("bigbird", {"window_blocks": 2}, "an odd number"),
        ("nsa", {"compress_stride": 12}, "a divisor of compress_block"),
        ("nsa", {"implementation": "fla", "compress_stride": 16}, "compress each block of 64"),
        ("nsa", {"fewest": 20}, "at most top = 16"),
        ("nsa", {"top": 2}, "greater than or equal to 3"),
    ],
)
def test_options_that_do_not_go_together_are_refused(name, options, message):
    with pytest.raises(ValidationError, match=message):
        SCHEDULES[name].model_validate(options)


def test_quest_needs_a_page_to_choose():
    w = WorkloadTable(heads=2, head_dim=64, seq_kv=256, phase="decode").workload()
    with pytest.raises(InputError, match="at least two pages"):
        SCHEDULES["quest"](budget=16).check(w)

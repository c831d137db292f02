"""HiP and InfiniteHiP against the papers' counts, a plain LRU and the promise of n log n."""

import tracemalloc
from dataclasses import replace
from itertools import pairwise
from math import log2

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.device.program import kernels_of
from sim.device.run import run_on_device
from sim.engine.power import joules
from sim.inputs.files import InputError
from sim.inputs.hardware import load_profile
from sim.inputs.workload import AttentionWorkload, WorkloadTable
from sim.machine import ctas_per_sm
from sim.schedules import make_schedule
from sim.schedules.base import Tile
from sim.schedules.hip import Hip
from sim.schedules.infinite_hip import InfiniteHip, Lru
from sim.schedules.parts.hip_search import search_for, search_rounds
from sim.tile_program import Compute, Kernel, Load, Store, Transfer, in_order
from tests.support.drawn import cases, devices, lowered
from tests.support.formulas import run_head_dim

H100 = load_profile("h100-sxm")


def workload(**table) -> AttentionWorkload:
    shape = {"heads": 4, "kv_heads": 1, "head_dim": 64, "causal": True}
    return WorkloadTable.model_validate(shape | table).workload()


def run(commands, hw, w):
    return run_on_device(commands, hw, w.dtype, "replay", lambda _: None)


def without_l2(kernel: Kernel) -> int:
    """Bytes that the kernel loads and stores, of tiles that no edge cuts."""
    return sum(
        int(trips.sum()) * op.stream.tile_bytes
        for loop, trips in zip(kernel.loops, kernel.trips, strict=True)
        for op in loop.ops
        if isinstance(op, Load | Store)
    )


def chunks_scored(middle: int, found: int) -> int:
    """Algorithm 1: 2 k chunks a round, of which k are kept and halved, until they are blocks."""
    if middle <= found:
        return 0
    size, rounds = -(-middle // (2 * found)), 1
    while size > 1:
        size, rounds = -(-size // 2), rounds + 1
    return 2 * found * rounds


@given(cases("hip"), devices(l2="0 B"), st.integers(1, 7))
@settings(max_examples=60)
def test_hip_moves_and_computes_what_its_algorithm_says_for_every_token(case, hw, tokens):
    w, schedule = case
    schedule = schedule.model_copy(update={"implementation": "triton"})
    if w.phase == "decode":
        w = replace(w, tokens=tokens)
    first = lowered(schedule, w, hw)
    rows, size = first[0].streams[0].tile_rows, first[1].streams[1].tile_rows
    schedule = schedule.model_copy(update={"tile": Tile(q=rows, kv=size)})
    commands = schedule.program(w, hw)
    chunks = visits = keys = 0
    key = np.arange(w.seq_kv)
    for top in range(0, w.seq_q, rows):
        position = w.seq_kv - w.seq_q + np.arange(top, min(top + rows, w.seq_q))[:, None]
        shown = key <= position
        if w.window is not None:
            shown &= key > position - w.window
        shown_blocks = {int(k) // size for k in np.flatnonzero(shown.any(0))}
        fixed = {
            block
            for block in shown_blocks
            if block * size < schedule.sinks
            or (block + 1) * size > position[0, 0] + 1 - schedule.keep_window
        }
        found = schedule.keep // size
        middle = len(shown_blocks) - len(fixed)
        chunks += chunks_scored(middle, found)
        visits += len(fixed) + min(middle, found)
        keys += sum(min(size, w.seq_kv - b * size) for b in fixed) + size * min(middle, found)
    matrices, row_bytes = w.batch * w.heads, w.head_dim * w.dtype_bytes
    estimations = -(-w.tokens // schedule.refresh)
    ran = run(commands, hw, w).kernels
    read = {"estimate mask": 0, "hip": 0}
    flops = dict.fromkeys(read, 0)
    for launched in ran:
        read[launched.run.kernel.name] += launched.run.hbm_read_bytes
        flops[launched.run.kernel.name] += launched.run.executed("mma_flops")
    assert read["estimate mask"] == estimations * matrices * row_bytes * (w.seq_q + 16 * chunks)
    assert read["hip"] == w.tokens * matrices * row_bytes * (w.seq_q + 2 * keys)
    assert flops["estimate mask"] == estimations * matrices * 2 * rows * 16 * w.head_dim * chunks
    d = run_head_dim(w, schedule)
    assert flops["hip"] == w.tokens * matrices * 4 * rows * size * d * visits


@given(st.integers(1, 20), st.integers(1, 10))
def test_the_mask_is_searched_anew_every_so_many_tokens(tokens, refresh):
    w = workload(seq_kv=2000, phase="decode", tokens=tokens)
    commands = Hip(implementation="triton", refresh=refresh).program(w, H100)
    expected = []
    for token in range(tokens):
        expected += ["estimate mask", "hip"] if token % refresh == 0 else ["hip"]
    assert [command.work.name for command in commands] == expected
    sparse = {command.work for command in commands if command.work.name == "hip"}
    assert len(sparse) == expected.count("estimate mask")
    # Of the one query row a head, tensor cores take no fewer than 16.
    assert {kernel.streams[0].tile_rows for kernel in sparse} == {16}


@given(st.integers(1, 8), st.integers(0, 500), st.integers(0, 2**32 - 1))
def test_the_search_finds_every_hot_block(keep, most, seed):
    rng = np.random.default_rng(seed)
    low = rng.integers(0, 100, 5)
    high = low + rng.integers(0, most + 1, 5)
    hot = low[:, None] + (rng.random((5, keep)) * (high - low)[:, None]).astype(np.int64)
    centres, starts, found = search_for(hot, low, high, seed)
    ends = np.append(starts[1:], len(centres))
    for row, count in enumerate(high - low):
        its_found, its_centres = found[row][:count], centres[starts[row] : ends[row]]
        assert np.all(np.diff(its_found) > 0)
        assert len(its_found) == min(count, keep)
        assert len(its_centres) == 2 * keep * search_rounds(count, keep)
        if count:
            assert set(hot[row]) <= set(its_found)
            assert np.all((its_centres >= low[row]) & (its_centres < high[row]))
            assert set(its_found) <= set(range(low[row], high[row]))


def test_chunks_that_hold_nothing_hot_are_found_as_often_as_any():
    queries, count, keep = 4000, 40, 4
    none = np.full((queries, keep), -1)
    low, high = np.zeros(queries, np.int64), np.full(queries, count)
    *_, found = search_for(none, low, high, 7)
    times = np.bincount(found.ravel(), minlength=count)
    assert times.sum() == queries * keep
    assert times.min() > 0.7 * queries * keep / count
    assert times.max() < 1.3 * queries * keep / count


@pytest.mark.parametrize("reuse", [0.0, 0.5, 0.9])
def test_neighbouring_masks_have_the_reused_share_in_common(reuse):
    w = workload(seq_kv=1 << 20, phase="decode", tokens=40)
    schedule = Hip(implementation="triton", refresh=1, keep=4096, reuse=reuse)
    found = []
    for command in schedule.program(w, H100):
        if command.work.name == "hip":
            k, trips = command.work.streams[1], int(command.work.trips[1][0])
            visited = k.table[int(k.start(np.array([0]))[0]) :][:trips]
            found.append(set(visited[-64:]))
    common = [len(a & b) / 64 for a, b in pairwise(found)]
    assert np.mean(common) == pytest.approx(reuse, abs=0.05)


def test_a_mask_file_says_which_blocks_are_visited(tmp_path):
    rng = np.random.default_rng(0)
    w = workload(seq_len=1000)
    rows = [np.sort(rng.permutation(n // 2 + 1)[:3]) for n in range(-(-1000 // 32))]
    np.savez(
        tmp_path / "mask.npz",
        tile=[32, 64],
        indptr=np.cumsum([0] + [len(row) for row in rows]),
        indices=np.concatenate(rows),
    )
    table = {"name": "hip", "implementation": "triton", "mask_file": "mask.npz"}
    schedule = make_schedule(table, "a test", tmp_path)
    estimation, sparse = kernels_of(schedule.program(w, H100))
    plain, _ = kernels_of(Hip(implementation="triton", tile={"q": 32, "kv": 64}).program(w, H100))
    np.testing.assert_array_equal(estimation.trips, plain.trips)
    k = sparse.streams[1]
    for item in range(sparse.ctas):
        start, trips = int(k.start(np.array([item]))[0]), int(sparse.trips[1][item])
        np.testing.assert_array_equal(k.table[start : start + trips], rows[item % len(rows)])
    with pytest.raises(ValueError, match="mask_file excludes tile"):
        Hip(mask_file=tmp_path / "mask.npz", tile={"q": 32, "kv": 64})


@given(cases("hip"), devices(l2="0 B"))
@settings(max_examples=40)
def test_the_authors_search_reads_as_many_keys_and_scores_every_second_row(case, hw):
    w, schedule = case
    schedule = schedule.model_copy(update={"implementation": "hip_attention", "tile": None})
    own = schedule.model_copy(
        update={"implementation": "triton", "tile": Tile(q=64, kv=16), "warps": 4, "stages": 1}
    )
    kernels = {kernel.name: kernel for kernel in lowered(schedule, w, hw)}
    assert list(kernels) == [
        "initialise chunks",
        "score first chunks",
        "estimate mask",
        "scale block numbers",
        "sort blocks",
        "order scores",
        "hip",
    ]
    theirs, ours = kernels["estimate mask"], lowered(own, w, hw)[0]
    matrices, row_bytes = w.batch * w.heads, w.head_dim * w.dtype_bytes
    keys = {
        name: ran.run.hbm_read_bytes // row_bytes
        for name, kernel in (("theirs", theirs), ("ours", ours))
        for ran in run(in_order([kernel]), hw, w).kernels
    }
    scored = sum(min(32, w.seq_q - top) for top in range(0, w.seq_q, 64))
    assert keys["theirs"] - matrices * scored == keys["ours"] - matrices * w.seq_q
    # Of the chunks of the first round's halves it scores one of two before.
    first = run(in_order([kernels["score first chunks"]]), hw, w).kernels[0].run
    rounds = ours.trips[1] // (2 * schedule.keep // 16)
    assert first.executed("mma_flops") == sum(
        2 * 32 * schedule.keep * w.head_dim for number in rounds if number
    )


@pytest.mark.parametrize(
    ("profile", "ctas", "cycles"),
    # Machine code of masking_iteration_draft_cuda_fused (Triton 3.2, fp16, head_dim 128, mask_k
    # 512) played through: a round of sm_89 alone, of sm_90 beside another, L2 277 cycles away.
    [("rtx-4090", 1, 53874), ("h100-sxm", 2, 67831)],
)
def test_the_authors_search_takes_what_its_machine_code_takes(profile, ctas, cycles):
    hw = load_profile(profile)
    w = workload(heads=32, kv_heads=8, head_dim=128, seq_len=32768)
    kernel = next(k for k in Hip().lower(w, hw) if k.name == "estimate mask")
    assert ctas_per_sm(kernel.footprint, hw) == ctas
    computes = [op for op in kernel.loops[1].ops if isinstance(op, Compute)]
    # Of each warp 14,127 instructions on sm_90, 512 of them HMMA; 13,876 on sm_89.
    issued = sum(op.other_ops / 128 + op.sram_bytes / 512 / 4 for op in computes)
    assert 4 * issued == pytest.approx(14000 - 512, rel=0.03)
    waited = sum(op.latencies for op in computes) * hw.calibration.sm.op_latency * hw.sm.clock
    held = sum(max(op.sram_bytes / 128, op.other_ops / 128) for op in computes)
    assert 4 * (waited + held) == pytest.approx(cycles, rel=0.05)


def test_a_warp_that_waits_draws_no_power():
    """Of counted work the energy goes by instructions, on however slow a path they wait."""
    hw, w = load_profile("rtx-4090"), workload(heads=32, kv_heads=8, head_dim=128, seq_len=8192)
    kernel = next(k for k in Hip().lower(w, hw) if k.name == "estimate mask")
    slower = hw.calibration.l2.model_copy(update={"latency": 4 * hw.calibration.l2.latency})
    far = hw.model_copy(update={"calibration": hw.calibration.model_copy(update={"l2": slower})})
    distant = next(k for k in Hip().lower(w, far) if k.name == "estimate mask")
    near_run, far_run = (
        run(in_order([k]), on, w).kernels[0].run for k, on in ((kernel, hw), (distant, far))
    )
    assert far_run.time_s > 1.5 * near_run.time_s
    assert joules(far_run, far, w.dtype) == pytest.approx(joules(near_run, hw, w.dtype), rel=0.01)


def test_work_and_traffic_grow_as_n_log_n_from_4k_to_4m_tokens():
    lengths = 4096 * 4 ** np.arange(6)
    counts = {"hip": [], "flash2": []}
    tracemalloc.start()
    for name, counted in counts.items():
        for n in lengths if name == "hip" else lengths[:3]:
            table = {"name": name, "implementation": "triton" if name == "hip" else "cuda"}
            kernels = kernels_of(
                make_schedule(table, "a test").program(workload(seq_len=int(n)), H100)
            )
            counted.append(
                (sum(k.tile_steps for k in kernels), sum(without_l2(k) for k in kernels))
            )
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 2**30
    for counted in np.array(counts["hip"], float).T:
        a_token, log_n = counted / lengths, np.log2(lengths)
        slope, constant = np.polyfit(log_n, a_token, 1)
        np.testing.assert_allclose(slope * log_n + constant, a_token, rtol=0.08)
        assert slope > 0
        assert log2(counted[-1] / counted[-2]) / 2 < 1.15  # the exponent of growth, 1 + 1 / ln n
    for counted in np.array(counts["flash2"], float).T:
        assert log2(counted[-1] / counted[-2]) / 2 > 1.9


@given(st.integers(1, 12), st.lists(st.lists(st.integers(0, 20), min_size=1), max_size=8))
def test_the_cache_is_lru(capacity, requests):
    lru, held = Lru(capacity), []
    for asked in requests:
        accessed = lru.touch(np.array(asked))
        misses = 0
        for one in sorted(set(asked)):
            if one in held:
                held.remove(one)
            else:
                misses += 1
            held = [*held, one][-capacity:]
        assert (accessed.touched, accessed.misses) == (len(set(asked)), misses)
        slots = dict(zip(asked, accessed.slots.tolist(), strict=True))
        here = [slots[one] for one in held if one in slots]
        assert len(set(here)) == len(here)
        assert set(slots.values()) <= set(range(capacity))


@st.composite
def pruned(draw):
    """InfiniteHiP with stages of small chunks, over a middle of whole first chunks."""
    sizes = draw(st.sampled_from(((64, 16, 8), (32, 8, 4), (64, 32, 16))))
    kept = tuple(size * draw(st.integers(1, 9)) for size in sizes)
    schedule = InfiniteHip(
        chunks=sizes,
        keep=kept,
        refresh=draw(st.sampled_from(((4, 2, 1), (6, 3, 3), (1, 1, 1)))),
        sinks=64 * draw(st.integers(0, 2)),
        keep_window=64 * draw(st.integers(1, 2)),
        cache_tokens=draw(st.integers(16, 900)),
        mask_cache_tokens=draw(st.integers(1, 900)),
        seed=draw(st.integers(0, 99)),
    )
    kv_heads = draw(st.integers(1, 2))
    middle = 64 * draw(st.integers(0, 40))
    w = workload(
        batch=draw(st.integers(1, 2)),
        heads=kv_heads * draw(st.sampled_from((1, 3, 4, 20))),
        kv_heads=kv_heads,
        seq_kv=schedule.sinks + middle + schedule.keep_window,
        phase="decode",
        tokens=draw(st.integers(1, 8)),
    )
    return w, schedule, middle


@given(pruned(), devices(l2="0 B"))
@settings(max_examples=60)
def test_infinite_hip_moves_what_its_stages_and_misses_say(case, hw):
    w, schedule, middle = case
    hw = hw.model_copy(update={"links": H100.links})
    commands = schedule.program(w, hw)
    matrices, row_bytes = w.batch * w.kv_heads, w.head_dim * w.dtype_bytes
    q_rows, page = w.heads // w.kv_heads, schedule.chunks[-1]
    candidates, chosen, left = [], [], middle
    for size, kept in zip(schedule.chunks, schedule.keep, strict=True):
        candidates.append(left // size)
        left = min(left, kept)
        chosen.append(left // size)
    ran = run(commands, hw, w)
    read = {}
    for launched in ran.kernels:
        read.setdefault(launched.run.kernel.name, []).append(launched.run.hbm_read_bytes)
    for i, size in enumerate(schedule.chunks):
        groups = [min(64, candidates[i] - n) for n in range(0, candidates[i], 64)]
        loads = sum(-(-2 * int(log2(size)) * n // 16) * 16 for n in groups)
        expected = matrices * row_bytes * (q_rows * len(groups) + loads)
        due = -(-w.tokens // schedule.refresh[i]) if candidates[i] > chosen[i] else 0
        assert read.get(f"score chunks, stage {i + 1}", []) == [expected] * due
    tokens = schedule.sinks + schedule.keep_window + left
    tile = max(16, page)
    tiles = -(-tokens // tile)
    ranges = -(-tiles // -(-tiles // 8))
    attention = matrices * row_bytes * (ranges * q_rows + 2 * tiles * tile)
    assert read["block sparse attention"] == [attention] * w.tokens
    replayed = list(schedule.replay(w))
    key_misses = [keys.misses for token in replayed for keys in token.stages.values()]
    page_misses = [token.pages.misses for token in replayed]
    assert all(token.pages.touched == tokens // page for token in replayed)
    transfers = [command.work for command in commands if isinstance(command.work, Transfer)]
    assert all(transfer.from_host for transfer in transfers)
    moved = [t.bytes for t in transfers if t.name.endswith("pages")]
    assert moved == [n * matrices * 2 * page * row_bytes for n in page_misses if n]
    moved = [t.bytes for t in transfers if "keys, stage" in t.name]
    assert moved == [n * matrices * row_bytes for n in key_misses if n]
    assert sum(sent.transfer.bytes for sent in ran.sent) == sum(t.bytes for t in transfers)


@given(pruned())
@settings(max_examples=40)
def test_infinite_hip_holds_its_caches_in_hbm_and_no_more_of_keys_and_values(case):
    w, schedule, _ = case
    kernels = [
        command.work for command in schedule.program(w, H100) if isinstance(command.work, Kernel)
    ]
    tensors = dict.fromkeys(tensor for kernel in kernels for tensor in kernel.tensors)
    caches = [t for t in tensors if t.lifetime == "input" and t.name != "Q"]
    pages = schedule.cache_tokens // schedule.page
    rows = {"mask K cache": schedule.mask_cache_tokens}
    rows |= {f"{name} cache": pages * schedule.page for name in "KV"}
    assert all(t.rows == rows[t.name] and t.groups == w.batch * w.kv_heads for t in caches)
    assert {"K cache", "V cache"} <= {t.name for t in caches}
    assert len(caches) == len({t.name for t in caches})


def test_a_page_is_fetched_before_the_attention_that_waits_for_it():
    w = workload(seq_kv=1 << 18, phase="decode", tokens=4)
    schedule = InfiniteHip(refresh=(4, 4, 4))
    commands = schedule.program(w, H100)
    first = next(schedule.replay(w))
    names = [command.work.name for command in commands]
    assert names[:3] == [
        f"fetch {first.stages[0].misses} of {first.stages[0].touched} keys, stage 1",
        "score chunks, stage 1",
        "keep chunks, stage 1",
    ]
    fetch = names.index(f"fetch {first.pages.misses} of {first.pages.touched} pages")
    assert names[fetch + 1] == "block sparse attention"
    assert commands[fetch + 1].after == (commands[fetch],)
    assert commands[fetch].after == (commands[fetch - 1],)
    assert names.count("score chunks, stage 3") == 1
    assert names.count("block sparse attention") == 4
    ran = run(commands, H100, w)
    attention = next(k for k in ran.kernels if k.run.kernel.name == "block sparse attention")
    arrival_s = next(s.end_s for s in ran.sent if s.transfer is commands[fetch].work)
    assert attention.start_s >= arrival_s


def test_without_a_link_to_the_host_nothing_is_fetched():
    w = workload(seq_kv=1 << 18, phase="decode")
    hw = H100.model_copy(update={"links": None})
    with pytest.raises(InputError, match=r"has no links\.host"):
        run(InfiniteHip().program(w, hw), hw, w)


def test_pages_once_more_than_the_cache_holds_never_hit():
    w = workload(seq_kv=1 << 16, phase="decode", tokens=8)
    visited = 256 + 2048 + 1024
    small = list(InfiniteHip(cache_tokens=visited - 8).replay(w))
    fits = list(InfiniteHip(cache_tokens=visited).replay(w))
    for token in range(8):
        if token % 4:
            assert small[token].pages.misses == small[token].pages.touched == visited // 8
            assert fits[token].pages.misses == 0


def test_hits_of_pages_are_within_ten_points_of_those_published():
    """arXiv 2502.08910, Table 4, "SA Hit Ratio" at 256k tokens: None, S1 and S1&2 cached."""
    w = workload(seq_kv=1 << 18, phase="decode", tokens=256)
    hits = {0: [], 1: [], 2: []}
    for token in InfiniteHip(refresh=(32, 16, 8)).replay(w):
        if token.stages:
            hits[min(token.stages)].append(1 - token.pages.misses / token.pages.touched)
    assert [100 * np.mean(hits[i]) for i in range(3)] == pytest.approx([58.9, 69.3, 88.6], abs=10)
    assert hits[0][0] > 0.4  # the caches are warm when the first token comes


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"chunks": [256, 32]}, "an entry for each stage"),
        ({"chunks": [256, 24, 8]}, "powers of two"),
        ({"chunks": [256, 32, 32]}, "each below the one before"),
        ({"keep": [32768, 8192, 2044]}, "whole chunks of 8"),
        ({"refresh": [16, 6, 4]}, "each divides the one before"),
        ({"cache_tokens": 7}, "at least 8, a page"),
    ],
)
def test_stages_that_do_not_fit_are_said(options, complaint):
    with pytest.raises(InputError, match=complaint):
        make_schedule({"name": "infinite_hip", **options}, "a test")


@given(cases("infinite_hip"), devices())
@settings(max_examples=20)
def test_any_lengths_go_through_the_stages(case, hw):
    w, schedule = case
    for kernel in kernels_of(schedule.program(w, hw)):
        for stream in kernel.streams:
            if stream.table is not None and stream.tensor.name.endswith("cache"):
                assert stream.table.min() >= 0
                assert stream.table.max() < stream.tiles_down
    (token,) = schedule.replay(w)
    assert 0 < token.pages.touched <= -(-w.seq_kv // schedule.page)
    attention = next(
        k for k in kernels_of(schedule.program(w, hw)) if k.name == "block sparse attention"
    )
    visited = [s.table for s in attention.streams if s.tensor.name == "K cache"]
    assert set(np.concatenate(visited)) == set(token.pages.slots)

"""The order of traversal: the same tiles in other orders, and what that makes of L2 and HBM."""

from typing import get_args

import numpy as np
import pytest

from sim import simulate
from sim.inputs.files import InputError
from sim.inputs.hardware import load_profile
from sim.inputs.workload import WorkloadTable
from sim.schedules import make_schedule
from sim.schedules.parts.traversal import GridOrder, KeyOrder
from sim.tile_program import Kernel

KEY_ORDERS, GRID_ORDERS = get_args(KeyOrder), get_args(GridOrder)
ON = {"flash2": "a100-sxm-80gb", "flash3": "h100-sxm", "flash4": "b200"}
HEAD_DIM, TOKENS = 128, 4096
KV_BYTES = 2 * TOKENS * HEAD_DIM * 2  # of a head, in 16 bits
SHAPE = {"head_dim": HEAD_DIM, "seq_len": TOKENS, "dtype": "bf16"}


def device(name: str, sms: int, l2: str):
    """So many SMs, and an L2 that is an LRU but for the chance of a draw."""
    as_lru = {"effective_capacity": 1.0, "candidates": 64}
    over = {"sm": {"count": sms}, "l2": {"capacity": l2}, "calibration": {"l2": as_lru}}
    return {"profile": name, **over}


def kernel_of(name: str, w: dict, **options) -> Kernel:
    schedule = make_schedule({"name": name, **options}, "a test")
    workload = WorkloadTable.model_validate(SHAPE | w).workload()
    (command,) = schedule.program(workload, load_profile(ON[name]))
    return command.work


def visited(kernel: Kernel) -> dict[int, list[int]]:
    """The key blocks of each tile of Q, in the order in which its CTA visits them."""
    found: dict[int, list[int]] = {}
    items = kernel.items
    q = next(stream for stream in kernel.streams if stream.tensor.role == "query")
    tiles = q.base(items)
    for loop, trips in zip(kernel.loops, kernel.trips, strict=True):
        for load in loop.loads:
            if load.stream.tensor.role == "key":
                base = load.stream.base(items)
                for item in np.flatnonzero(trips):
                    blocks = base[item] + load.stream.stride * np.arange(trips[item])
                    found.setdefault(int(tiles[item]), []).extend(blocks.tolist())
    return found


def ran(name: str, w: dict, hw: dict, engine="replay", **options):
    table = {"name": name, **options}
    (record,) = simulate(workload=SHAPE | w, hardware=hw, schedule=[table], engine=engine)
    return record


# Which tiles, in which order


@pytest.mark.parametrize("mask", [{}, {"causal": True}, {"causal": True, "window": 900}])
@pytest.mark.parametrize("name", ON)
def test_every_order_visits_the_same_key_blocks_of_every_tile_once(name, mask):
    w = {"heads": 6, "kv_heads": 2, "batch": 2, "seq_len": 1500, **mask}
    usual = {tile: sorted(keys) for tile, keys in visited(kernel_of(name, w)).items()}
    for grid in GRID_ORDERS:
        for keys in KEY_ORDERS:
            kernel = kernel_of(name, w, grid_order=grid, key_order=keys)
            found = visited(kernel)
            assert {tile: sorted(keys) for tile, keys in found.items()} == usual
            assert sorted(found) == sorted(set(found))


@pytest.mark.parametrize("name", ON)
def test_keys_go_down_or_up_and_with_alternating_down_then_up(name):
    w = {"heads": 40, "causal": True}
    ways = {
        order: [
            np.sign(np.diff(keys)).tolist()
            for keys in visited(kernel_of(name, w, key_order=order)).values()
            if len(keys) > 1
        ]
        for order in KEY_ORDERS
    }
    assert {tuple(set(way)) for way in ways["descending"]} == {(-1,)}
    assert {tuple(set(way)) for way in ways["ascending"]} == {(1,)}
    assert {tuple(set(way)) for way in ways["alternating"]} == {(-1,), (1,)}


def test_heads_of_the_grid_are_slow_fast_or_in_sections_that_fit_l2():
    w = {"heads": 4, "kv_heads": 4, "seq_len": 1024}  # 8 blocks of 128 rows; K and V 512 KiB a head
    two_heads = load_profile("a100-sxm-80gb").with_figures({"l2.capacity": 1.5 * 2**20})
    workload = WorkloadTable.model_validate(SHAPE | w).workload()

    def heads_and_blocks(order):
        schedule = make_schedule({"name": "flash2", "grid_order": order}, "a test")
        (command,) = schedule.program(workload, two_heads)
        q = next(one for one in command.work.streams if one.tensor.role == "query")
        return [divmod(int(tile), 8) for tile in q.base(command.work.items)]

    assert heads_and_blocks("head_slow")[:9] == [*((0, block) for block in range(8)), (1, 0)]
    assert heads_and_blocks("head_fast")[:5] == [(0, 0), (1, 0), (2, 0), (3, 0), (0, 1)]
    swizzled = heads_and_blocks("swizzled")
    assert swizzled[:3] == [(0, 7), (1, 7), (0, 6)]
    assert swizzled[16:18] == [(2, 7), (3, 7)]


@pytest.mark.parametrize("name", ["flash3", "flash4"])
@pytest.mark.parametrize(("mask", "order"), [({}, "head_slow"), ({"causal": True}, "swizzled")])
def test_unless_told_masked_tiles_are_swizzled_and_others_head_slow(name, mask, order):
    w = {"heads": 8, **mask}
    usual, told = kernel_of(name, w), kernel_of(name, w, grid_order=order)
    for one, other in zip(usual.streams, told.streams, strict=True):
        assert (one.base(usual.items) == other.base(told.items)).all()


def test_ranges_of_split_keys_have_no_order():
    with pytest.raises(InputError, match="splits = 4: a CTA a range has no order"):
        kernel_of("flash3", {"heads": 2}, splits=4, key_order="ascending")


@pytest.mark.parametrize(("name", "own"), [("flash2", "head_slow"), ("flash3", None)])
@pytest.mark.parametrize(("key", "given"), [("grid_order", "swizzled"), ("key_order", "ascending")])
def test_sequences_of_several_lengths_have_the_kernels_own_order(name, own, key, given):
    w = WorkloadTable.model_validate(
        {"head_dim": 128, "dtype": "bf16", "heads": 2, "seq_q": [300, 900], "seq_kv": [300, 900]}
    ).workload()
    call = {"call": "varlen"} if name == "flash3" else {}
    make_schedule({"name": name, "grid_order": own, **call}, "a test").check(w)
    asked = make_schedule({"name": name, key: given, **call}, "a test")
    with pytest.raises(InputError) as error:
        asked.check(w)
    assert str(error.value) == (
        f'schedule {name}: {key} = "{given}": sequences of one length were expected; of lists of '
        f"lengths it has its own order (no {key})"
    )


# What it makes of bytes


@pytest.mark.parametrize("grid", GRID_ORDERS)
@pytest.mark.parametrize("keys", KEY_ORDERS)
@pytest.mark.parametrize("name", ON)
def test_without_an_l2_no_order_changes_bytes_and_with_a_vast_one_all_are_compulsory(
    name, keys, grid
):
    w = {"heads": 4, "kv_heads": 2, "seq_len": 1024, "causal": True}
    bytes_of = {}
    for l2 in ("0 B", "1 GiB"):
        hw = device(ON[name], 3, l2)
        usual = ran(name, w, hw)
        told = ran(name, w, hw, grid_order=grid, key_order=keys)
        assert told.l2_bytes == usual.l2_bytes
        assert told.hbm_read_bytes == usual.hbm_read_bytes
        assert told.flops == usual.flops
        bytes_of[l2] = told.hbm_read_bytes
    rows = 1024 * HEAD_DIM * 2
    assert bytes_of["1 GiB"] == (4 + 2 * 2) * rows


@pytest.mark.parametrize("grid", GRID_ORDERS)
@pytest.mark.parametrize("name", ON)
def test_both_engines_agree_on_every_order(name, grid):
    w, hw = {"heads": 3, "seq_len": 700, "causal": True}, device(ON[name], 2, "300 KiB")
    for keys in KEY_ORDERS:
        replay, reference = (
            ran(name, w, hw, engine, grid_order=grid, key_order=keys)
            for engine in ("replay", "reference")
        )
        assert replay.hbm_bytes == reference.hbm_bytes
        assert replay.time_s == pytest.approx(reference.time_s, rel=1e-9)


@pytest.mark.parametrize(("name", "sms"), [("flash2", 1), ("flash3", 2)])
@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_alternating_finds_in_l2_what_it_holds_of_k_and_v_where_an_lru_in_one_order_misses_all(
    name, sms, share
):
    """In one order every wave of two CTAs reads K and V. Alternating, every one but the first reads
    what the L2 does not hold of them: Q and O of a wave, and keys on their way, take part of it."""
    hw = device(ON[name], sms, f"{share * KV_BYTES} B")
    q_bytes, waves = KV_BYTES // 2, TOKENS // 128 // 2
    reads = {
        order: (ran(name, {"heads": 1}, hw, key_order=order).hbm_read_bytes - q_bytes) / KV_BYTES
        for order in KEY_ORDERS
    }
    beside = 2 * q_bytes / waves / KV_BYTES
    assert reads["descending"] == pytest.approx(waves, rel=0.01)
    assert reads["ascending"] == pytest.approx(waves, rel=0.01)
    assert 0 <= (reads["alternating"] - 1) / (waves - 1) - (1 - share) < 0.1 + beside


def test_a_grid_whose_heads_are_fast_reads_every_heads_keys_anew_for_every_block():
    """The L2 holds K and V of two heads of eight: sections of two read them once."""
    hw, w = device("a100-sxm-80gb", 2, f"{3 * KV_BYTES} B"), {"heads": 8, "kv_heads": 8}
    blocks, compulsory = TOKENS // 128, 8 * KV_BYTES
    reads = {
        order: ran("flash2", w, hw, grid_order=order).hbm_read_bytes - 8 * KV_BYTES // 2
        for order in GRID_ORDERS
    }
    assert reads["head_slow"] == pytest.approx(compulsory, rel=0.01)
    assert reads["swizzled"] == pytest.approx(compulsory, rel=0.01)
    assert reads["head_fast"] == pytest.approx(blocks * compulsory, rel=0.01)


def test_a_pruned_kernels_grid_has_orders_too():
    hw, w = device("a100-sxm-80gb", 2, f"{3 * KV_BYTES} B"), {"heads": 8, "kv_heads": 8}
    slow, fast = (
        ran("block_sparse", w, hw, grid_order=order) for order in ("head_slow", "head_fast")
    )
    assert slow.l2_bytes == fast.l2_bytes
    assert fast.hbm_read_bytes > 10 * slow.hbm_read_bytes


def test_heads_that_share_keys_read_them_once_where_they_are_fast():
    """All 8 query heads of the one KV head: a block of all of them reads K and V once."""
    hw = device("a100-sxm-80gb", 4, f"{KV_BYTES / 8} B")
    w, blocks = {"heads": 8, "kv_heads": 1}, TOKENS // 128
    fast = ran("flash2", w, hw, grid_order="head_fast")
    slots = 4 * fast.kernels[0].ctas_per_sm
    reads = fast.hbm_read_bytes - 8 * KV_BYTES // 2
    assert reads == pytest.approx(blocks * 8 / slots * KV_BYTES, rel=0.05)


@pytest.mark.parametrize("name", ON)
def test_causal_ctas_that_all_begin_at_the_first_key_share_what_they_read(name):
    hw, w = device(ON[name], 16, f"{KV_BYTES / 4} B"), {"heads": 1, "causal": True}
    down, up = (
        ran(name, w, hw, grid_order="head_slow", key_order=order)
        for order in ("descending", "ascending")
    )
    assert up.hbm_read_bytes < 0.8 * down.hbm_read_bytes
    assert up.l2_hit_rate > down.l2_hit_rate


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("options", [{"key_order": "alternating"}, {"grid_order": "head_fast"}])
def test_fast_forward_tells_them_too(options, causal):
    hw, w = device("a100-sxm-80gb", 24, "12 MiB"), {"heads": 8, "seq_len": 16384, "causal": causal}
    tables = {"workload": SHAPE | w, "hardware": hw, "schedule": [{"name": "flash2", **options}]}
    (exact,) = simulate(**tables, limits={"exact": True})
    (told,) = simulate(**tables, limits={"replayed_steps": 30_000})
    assert told.fast_forward is not None
    assert told.time_s == pytest.approx(exact.time_s, rel=0.02)
    # Where CTAs go up and down in turn, those that a smaller form keeps may all go one way.
    off = 0.15 if "key_order" in options else 0.05
    assert told.hbm_bytes == pytest.approx(exact.hbm_bytes, rel=off)

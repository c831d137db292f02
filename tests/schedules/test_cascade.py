"""Cascade attention: bytes and FLOPs of its levels, by hand, and what it takes beside copies."""

import pytest
from hypothesis import given, settings

from sim import simulate
from sim.device.memory import check_memory
from sim.device.program import kernels_of
from sim.inputs.files import InputError
from sim.inputs.hardware import load_profile
from sim.report.notes import notes
from sim.schedules import make_schedule
from tests.support.drawn import cases, devices, lowered
from tests.support.formulas import run, workload

H100 = load_profile("h100-sxm", {"l2": {"capacity": "0 B"}}, "a test")
BEAMS = {"heads": 16, "kv_heads": 8, "head_dim": 128, "batch": 128, "phase": "decode"}


def beams(shared: int, own: int, **table):
    return workload(**(BEAMS | {"seq_kv": shared + own, "shared_prefix": shared} | table))


def kernels(w, hw=H100):
    return kernels_of(make_schedule({"name": "cascade"}, "a test").program(w, hw))


def test_the_prefix_is_read_once_a_tile_of_rows_and_own_keys_once_a_sequence():
    """256 rows of a KV head are two tiles of 128; page numbers are the rest."""
    own, prefix, merge, levels = run(kernels(beams(4096, 40, dtype="bf16")), H100, beams(4096, 40))
    q, row = 128 * 16 * 256, 256  # bytes of all queries, and of a key of a head
    numbers = 128 * 8 * 32  # of 40 keys, three pages: a sector for each sequence and head
    assert own.hbm_read_bytes == q + 128 * 8 * 2 * 40 * row + numbers
    assert own.hbm_write_bytes == 128 * 16 * (256 + 4)
    ranges = 16  # see below
    cache = 2 * 8 * 2 * 4096 * row
    assert 0 < prefix.hbm_read_bytes - ranges * q - cache < 0.002 * cache
    partials = ranges * 128 * 16 * (256 + 4)
    assert prefix.hbm_write_bytes == merge.hbm_read_bytes == partials
    assert levels.hbm_read_bytes == 2 * levels.hbm_write_bytes == 2 * own.hbm_write_bytes


def test_the_prefix_is_multiplied_in_tiles_of_all_rows_and_own_keys_in_tiles_of_16():
    """264 CTAs are enough for 16 ranges of two tiles of 8 heads: 256 tokens, 4 blocks of 64."""
    own, prefix, *_ = run(kernels(beams(4096, 40)), H100, beams(4096, 40))
    assert own.executed("mma_flops") == 128 * 8 * (4 * 128 * 16 * 128)
    assert prefix.kernel.ctas == 16 * 2 * 8
    assert prefix.executed("mma_flops") == 16 * 2 * 8 * 4 * (4 * 128 * 128 * 64)


@given(cases("cascade"), devices())
@settings(max_examples=40)
def test_memory_has_the_prefix_once(case, hw):
    w, schedule = case
    held = check_memory(schedule.program(w, load_profile("h100-sxm")), load_profile("h100-sxm"))
    tensors = {t for k in lowered(schedule, w, hw) for t in k.tensors if t.role in ("key", "value")}
    width = w.head_dim * (1 if w.kv_dtype else w.dtype_bytes)
    keys = w.shared_prefix + w.batch * (w.seq_kv - w.shared_prefix)
    assert sum(t.bytes for t in tensors) == 2 * w.kv_heads * keys * width < held


def test_sequences_of_several_lengths_have_their_own_keys_and_one_prefix():
    w = workload(
        heads=8, kv_heads=2, head_dim=64, phase="decode", shared_prefix=500,
        seq_q=[1, 4, 2], seq_kv=[600, 504, 1700], causal=True,
    )  # fmt: skip
    *_, levels = kernels(w)
    assert levels.ctas == 7
    ran = run([levels], H100, w)[0]
    assert ran.hbm_read_bytes == 2 * ran.hbm_write_bytes == 2 * 7 * 8 * (128 + 4)
    held = {t.name + str(t.groups): t.bytes for k in kernels(w) for t in k.tensors}
    assert held["O6"] == 7 * 8 * 64 * 2


@pytest.mark.parametrize(("shared", "measured_us"), [(256, 199), (1024, 754), (4096, 2965)])
def test_a_copy_each_takes_what_flashinfer_s_was_measured_to_take(shared, measured_us):
    """NVIDIA/TensorRT-LLM, pull request 14396: FlashInfer on an L20, 128 beams, 3 tokens each."""
    copies, once = simulate(
        workload=BEAMS | {"seq_kv": shared + 3, "shared_prefix": shared, "dtype": "bf16"},
        hardware="l20",
        schedule=[{"name": "paged", "implementation": "flashinfer"}, {"name": "cascade"}],
    )
    assert copies.time_s == pytest.approx(measured_us * 1e-6, rel=0.05)
    # Measured 90, 90, 93 us, the first two of which are Python's four launches.
    assert once.time_s < 1.05 * 93e-6
    if shared == 4096:
        assert once.time_s == pytest.approx(93e-6, rel=0.1)
    (told,) = (line for line in notes([copies, once]) if "copy" in line)
    assert told.startswith("paged: each sequence has a copy of the tokens that all share")


@pytest.mark.parametrize(
    ("table", "complaint"),
    [
        ({"shared_prefix": 0}, "workload.shared_prefix = 0: the tokens that all sequences have"),
        ({"dtype": "fp32"}, 'workload.dtype = "fp32": fp16 or bf16 was expected'),
    ],
)
def test_what_it_has_no_kernel_for_is_one_line(table, complaint):
    with pytest.raises(InputError, match=complaint):
        kernels(beams(256, 3, **table))


@pytest.mark.parametrize(
    ("table", "complaint"),
    [
        ({"seq_q": 8}, "shared_prefix = 256 is cached, and the 8 queries .* at most 251"),
        ({"causal": True, "window": 100}, "shared_prefix = 256 goes without a window"),
    ],
)
def test_a_prefix_that_queries_do_not_stand_behind_is_refused(table, complaint):
    with pytest.raises(ValueError, match=complaint):
        beams(256, 3, **table)

"""Micro-benchmarks: kernels that compute and compile to what they claim, and what is read off them.

Run as a program, this compiles the kernels for sm_90 without a GPU and prints what came of each:
TRITON_INTERPRET must not be set where kernels are compiled (tests/conftest.py sets it).
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from math import log2
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sim.inputs.hardware import HardwareProfile, load_profile
from tests.support.interpreted import DEVICE
from validate.kernels import micro as kernels
from validate.measurement import Micro
from validate.micro import (
    BLOCK,
    ELEMENTS,
    FMAS,
    MATMULS,
    MMA_SYNC_TILES,
    NATIVE_TILES,
    SIDE,
    random_cycle,
    run_micro,
)
from validate.readings import readings

H100 = load_profile("h100-sxm")
TINY = load_profile("h100-sxm", {"l2": {"capacity": "256 KiB"}, "sm": {"count": 2}}, "a test")


# -- The kernels compute what their names say --


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(DEVICE)


def test_a_copy_is_its_source_and_a_write_the_value():
    x, y = drawn(3 * 64), drawn(3 * 64)
    kernels.copy_kernel[(3,)](x, y, 64)
    assert torch.equal(x, y)
    kernels.write_kernel[(3,)](y, 0.5, 64)
    assert (y == 0.5).all()


@pytest.mark.parametrize(("blocks", "trips"), [(7, 2), (7, 7), (3, 5), (1, 2)])
def test_each_program_sums_the_blocks_that_it_meets(blocks, trips):
    programs = 4
    x, out = drawn(blocks, 64), drawn(programs)
    kernels.read_kernel[(programs,)](x, out, blocks, trips, 64)
    sums = x.sum(1).tolist()
    met = [[(p + t * programs) % blocks for t in range(trips)] for p in range(programs)]
    assert out.tolist() == pytest.approx([sum(sums[b] for b in row) for row in met], abs=1e-4)
    if trips == blocks:
        assert all(sorted(row) == list(range(blocks)) for row in met)


def test_a_walk_meets_every_line_before_any_again_and_goes_on_where_it_ended():
    lines = 8
    cycle = random_cycle(lines, DEVICE)
    at = torch.zeros(1, dtype=torch.int32, device=DEVICE)
    met = []
    for _ in range(lines // 2):
        kernels.chase_kernel[(1,)](cycle, at, 2, num_warps=1)
        met.append(int(at))
    assert met[-1] == 0
    assert len(set(met)) == lines // 2
    following = cycle.tolist()
    walked = [0]
    for _ in range(lines):
        walked.append(following[walked[-1]])
    assert sorted(walked[1:]) == [32 * line for line in range(lines)]
    assert met == walked[2::2]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("matmuls", [1, 3])
def test_matmuls_add_up(matmuls, dtype):
    a, b, out = drawn(32, 64).to(dtype), drawn(64, 16).to(dtype), drawn(2, 32, 16)
    kernels.tensor_kernel[(2,)](a, b, out, 2, 32, 16, 64, matmuls)
    expected = 2 * matmuls * (a.double() @ b.double())
    for one in out:
        torch.testing.assert_close(one.double(), expected, rtol=1e-3, atol=1e-3)


def test_exps_go_to_the_number_that_is_its_own_power():
    x = drawn(64)
    out = torch.empty_like(x)
    kernels.exp_kernel[(1,)](x, out, 3, 64)
    torch.testing.assert_close(out, 2 ** -(2 ** -(2**-x)))
    kernels.exp_kernel[(1,)](x, out, 40, 64)
    assert out.tolist() == pytest.approx([0.6412] * 64, abs=1e-4)


def test_fmas_multiply_and_add_so_many_times_a_trip():
    x = drawn(64)
    out = torch.empty_like(x)
    kernels.fma_kernel[(1,)](x, out, 0.5, 1.0, 2, 64, 3)
    torch.testing.assert_close(out, 2 + (x - 2) / 2**6)


@pytest.mark.parametrize("trips", [1, 2, 3])
def test_an_odd_number_of_transposes_is_one(trips):
    x = drawn(2, 16, 16)
    out = torch.empty_like(x)
    kernels.transpose_kernel[(2,)](x, out, trips, 16)
    assert torch.equal(out, x.mT if trips % 2 else x)


# -- The compiler makes of them what their docstrings say --

Case = tuple[Any, dict[str, Any], int]


def cases() -> dict[str, Case]:
    x, line = torch.zeros(1), torch.zeros(1, dtype=torch.int32)
    streams, trips = {"X": x, "OUT": x, "trips": 100}, {"trips": 100}
    found: dict[str, Case] = {
        "empty": (kernels.empty_kernel, {}, 32),
        "copy": (kernels.copy_kernel, {"X": x, "Y": x, "BLOCK": BLOCK}, 8),
        "write": (kernels.write_kernel, {"Y": x, "value": 0.5, "BLOCK": BLOCK}, 8),
        "read": (kernels.read_kernel, {**streams, "blocks": 99, "BLOCK": BLOCK}, 8),
        "chase": (kernels.chase_kernel, {"NEXT": line, "AT": line, **trips}, 1),
        "exp": (kernels.exp_kernel, {**streams, "BLOCK": ELEMENTS}, 8),
        "fma": (
            kernels.fma_kernel,
            {**streams, "factor": 0.5, "addend": 1.0, "BLOCK": ELEMENTS, "FMAS": FMAS},
            8,
        ),
        "transpose": (kernels.transpose_kernel, {**streams, "SIDE": SIDE}, 8),
    }
    for path, tiles in (("native", NATIVE_TILES), ("mma_sync", MMA_SYNC_TILES)):
        for m, n, k, warps in tiles:
            for dtype in (torch.bfloat16, torch.float16):
                a = torch.zeros(1, dtype=dtype)
                shape = {"M": m, "N": n, "K": k, "MATMULS": MATMULS[path]}
                arguments = {"A": a, "B": a, "OUT": x, **trips, **shape}
                found[f"{path} {m} x {n} x {k} {dtype}"] = (kernels.tensor_kernel, arguments, warps)
    return found


def loop(ptx: str) -> str:
    """The one loop: from the label that is branched back to up to the branch."""
    (found,) = re.findall(r"^(\$\w+):((?:(?!^\$\w+:).)*?bra(?:\.uni)?\s+\1;)", ptx, re.M | re.S)
    return found[1]


def shared_bytes(code: str, instruction: str) -> int:
    """Bytes that a thread moves by ld.shared or st.shared."""
    found = re.findall(rf"{instruction}\.shared(?:\.v(\d))?\.b(\d+)", code)
    return sum(int(vector or 1) * int(bits) // 8 for vector, bits in found)


@pytest.fixture(scope="module")
def compiled() -> dict[str, dict[str, Any]]:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.validate.test_micro"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_nothing_spills_and_four_ctas_of_eight_warps_fit_an_sm(compiled):
    for name, (_, _, warps) in cases().items():
        assert compiled[name]["stack_bytes"] == 0, name
        if warps == 8 and "native" not in name:
            assert compiled[name]["registers"] <= 64, name


@pytest.mark.parametrize("case", [name for name in cases() if " x " in name])
def test_matmuls_of_128_rows_are_wgmma_and_of_32_mma_sync(case, compiled):
    body, native = loop(compiled[case]["ptx"]), case.startswith("native")
    assert ("wgmma.mma_async" in body) == native
    assert ("mma.sync" in body) == (not native)
    assert "ld.global" not in body
    assert "ld.shared" not in body


@pytest.mark.parametrize("case", [name for name in cases() if "mma_sync" in name])
def test_mma_sync_takes_longer_than_its_operands_from_sram(case, compiled):
    body = loop(compiled[case]["ptx"])
    _, arguments, warps = cases()[case]
    sram_clocks = body.count("ldmatrix") * 16 * 32 * warps / H100.sram.bytes_per_clock
    flops = 2 * arguments["M"] * arguments["N"] * arguments["K"] * arguments["MATMULS"]
    peak_clocks = flops * H100.sm.count * H100.sm.clock / H100.tensor_flops_per_s("bf16")
    assert body.count("mma.sync") * 2 * 16 * 8 * 16 * warps == flops
    assert sram_clocks < 0.5 * peak_clocks


def test_an_exp_is_one_ex2_approx_and_a_change_of_sign(compiled):
    body = loop(compiled["exp"]["ptx"])
    assert body.count("ex2.approx.ftz.f32") == ELEMENTS / 256
    others = set(re.findall(r"\b(\w+)\.(?:\w+\.)*f32", body)) - {"ex2"}
    assert others in ({"neg"}, {"sub"})  # Triton 3.9, 3.6


def test_fmas_are_fused_and_nearly_all_of_their_loop(compiled):
    body = loop(compiled["fma"]["ptx"])
    fmas = body.count("fma.rn.f32")
    assert fmas == FMAS * ELEMENTS / 256
    assert fmas / body.count(";") > 0.95


def test_a_transpose_stores_and_loads_the_tile_in_sram(compiled):
    body = loop(compiled["transpose"]["ptx"])
    assert shared_bytes(body, "st") * 256 == 4 * SIDE**2
    assert shared_bytes(body, "ld") * 256 == 4 * SIDE**2
    assert "shfl" not in body


def test_reads_bypass_l1_sixteen_bytes_a_thread_and_go_to_registers(compiled):
    body = loop(compiled["read"]["ptx"])
    assert body.count("ld.global.cg.v4.b32") == body.count("ld.global") == BLOCK / 256 / 4
    assert "cp.async" not in body


def test_a_step_of_a_walk_is_one_load_that_bypasses_l1(compiled):
    body = loop(compiled["chase"]["ptx"])
    assert body.count("ld.global.cg.b32") == body.count("ld.global") == 1
    assert body.count("mad.wide") == 1


def test_copies_and_writes_move_sixteen_bytes_a_thread(compiled):
    for name in ("copy", "write"):
        assert compiled[name]["ptx"].count("st.global.v4.b32") == BLOCK / 256 / 4


# -- Running them --


class GrowingClock:
    """Runs the work; each thing that it times takes longer than the last."""

    device = DEVICE

    def __init__(self) -> None:
        self.timed = 0

    def time_s(self, work: Callable[[], object], repeats: int = 20) -> list[float]:
        work()
        self.timed += 1
        return [self.timed * 1e-6] * 3

    def graph_time_s(self, work: Callable[[], object], launches: int = 20) -> list[float]:
        return self.time_s(work)


@pytest.fixture(scope="module")
def tiny() -> list[Micro]:
    return list(run_micro(GrowingClock(), TINY, busy_s=1e-9))


UNITS = {
    "hbm_copy": "B/s",
    "hbm_read": "B/s",
    "hbm_write": "B/s",
    "l2_read": "B/s",
    "latency": "s",
    "launch_plain": "s",
    "launch_graph": "s",
    "cta_start": "s",
    "tensor": "FLOP/s",
    "vector": "op/s",
    "exp": "op/s",
    "sram": "B/s",
}


def test_every_micro_benchmark_runs_in_its_unit(tiny):
    assert {one.name: one.unit for one in tiny} == UNITS


def test_working_sets_go_from_a_sixteenth_of_l2_to_four_times_it(tiny):
    capacity = TINY.l2.capacity
    sizes = [one.settings["working_set_bytes"] for one in tiny if one.name == "l2_read"]
    assert sizes[0] == capacity / 16
    assert 0.9 * 4 * capacity < sizes[-1] <= 4 * capacity
    near, far = [one.settings["working_set_bytes"] for one in tiny if one.name == "latency"]
    assert (near, far) == (capacity / 8, 4 * capacity)


def test_matmuls_are_of_both_paths_and_dtypes(tiny):
    found = {(m.settings["path"], m.settings["dtype"]) for m in tiny if m.name == "tensor"}
    assert found == {(path, dtype) for path in MATMULS for dtype in ("bf16", "fp16")}


# -- Reading them --

PARAMETERS = {
    "hbm.read": (0.3, 1.0),
    "hbm.write": (0.3, 1.0),
    "hbm.latency": (3e-7, 1e-6),
    "l2.sustained": (0.5, 1.0),
    "l2.effective_capacity": (0.4, 1.0),
    "l2.latency": (1e-7, 3e-7),
    "tensor.native": (0.1, 1.0),
    "tensor.mma_sync": (0.1, 1.0),
    "sm.vector": (0.1, 1.0),
    "sm.exp": (0.1, 1.0),
    "sm.sram": (0.1, 1.0),
    "sm.cta_start": (1e-7, 1e-6),
    "launch.latency": (1e-6, 1e-5),
    "launch.gap": (1e-7, 2e-6),
}
GIVEN = {name: (low + high) / 2 for name, (low, high) in PARAMETERS.items()}


def made_from(given: dict[str, float], hw: HardwareProfile) -> list[Micro]:
    """Micro-benchmarks as they would come out on a device of these parameters, without noise."""

    def micro(name: str, value: float, **settings: Any) -> Micro:
        return Micro(name=name, unit=UNITS[name], samples=[value] * 3, settings=settings)

    def l2_read(size: float) -> Micro:
        """Falls over an octave about the effective capacity."""
        octaves = log2(size / (given["l2.effective_capacity"] * hw.l2.capacity))
        from_l2 = min(1.0, max(0.0, 0.5 - octaves))
        hbm = given["hbm.read"] * hw.hbm.bandwidth
        fast = given["l2.sustained"] * hw.l2.bandwidth
        return micro("l2_read", hbm + (fast - hbm) * from_l2, working_set_bytes=size)

    def tensor(path: str, dtype: str, share: float) -> Micro:
        rate = hw.tensor_flops_per_s(dtype)
        assert rate is not None
        return micro("tensor", share * rate, path=path, dtype=dtype)

    copied = 2 / (1 / given["hbm.read"] + 1 / given["hbm.write"])
    start_s = given["sm.cta_start"]
    native, mma_sync = given["tensor.native"], given["tensor.mma_sync"]
    return [
        micro("hbm_read", given["hbm.read"] * hw.hbm.bandwidth),
        micro("hbm_copy", copied * hw.hbm.bandwidth),
        micro("latency", given["l2.latency"], working_set_bytes=hw.l2.capacity / 8),
        micro("latency", given["hbm.latency"], working_set_bytes=hw.l2.capacity * 4),
        *(l2_read(hw.l2.capacity * 2 ** (quarter / 4)) for quarter in range(-16, 9)),
        *(tensor("native", dtype, native * by) for dtype, by in (("bf16", 1.0), ("fp16", 0.9))),
        *(tensor("mma_sync", dtype, mma_sync * by) for dtype, by in (("bf16", 0.9), ("fp16", 1.0))),
        micro("vector", given["sm.vector"] * hw.vector_ops_per_s),
        micro("exp", given["sm.exp"] * hw.exps_per_s),
        micro("sram", given["sm.sram"] * hw.sram_bytes_per_s),
        micro("cta_start", start_s),
        micro("launch_plain", given["launch.latency"] + start_s),
        micro("launch_graph", given["launch.gap"] + start_s),
    ]


@given(st.fixed_dictionaries({name: st.floats(*ends) for name, ends in PARAMETERS.items()}))
def test_parameters_are_read_back_from_the_micro_benchmarks_made_from_them(parameters):
    read = readings(made_from(parameters, H100), H100)
    assert {name: r.value for name, r in read.items()} == pytest.approx(parameters, rel=1e-9)


def test_a_share_is_at_most_one():
    read = readings(made_from(dict.fromkeys(GIVEN, 1.5), H100), H100)
    shares = [name for name, (_, high) in PARAMETERS.items() if high == 1.0]
    assert [read[name].value for name in shares] == [1.0] * len(shares)


@pytest.mark.parametrize(
    ("name", "lost"),
    [
        ("hbm_read", {"hbm.read"}),
        ("hbm_copy", {"hbm.write"}),
        ("latency", {"hbm.latency", "l2.latency"}),
        ("l2_read", {"l2.sustained", "l2.effective_capacity"}),
        ("tensor", {"tensor.native", "tensor.mma_sync"}),
        ("vector", {"sm.vector"}),
        ("cta_start", {"sm.cta_start", "launch.latency", "launch.gap"}),
        ("launch_plain", {"launch.latency"}),
        ("launch_graph", {"launch.gap"}),
    ],
)
def test_without_a_micro_benchmark_its_parameters_are_absent(name, lost):
    kept = [one for one in made_from(GIVEN, H100) if one.name != name]
    assert set(readings(kept, H100)) == set(PARAMETERS) - lost


def test_a_device_whose_own_matmul_is_mma_sync_has_one_reading_for_both():
    hw = load_profile("a100-sxm-80gb")
    kept = [one for one in made_from(GIVEN, hw) if one.settings.get("path") != "native"]
    read = readings(kept, hw)
    assert read["tensor.native"] == read["tensor.mma_sync"]


def test_the_spread_is_half_of_where_the_middle_three_fifths_lie():
    samples = list(np.linspace(1e-6, 2e-6, 11))
    read = readings([Micro(name="cta_start", unit="s", samples=samples)], H100)["sm.cta_start"]
    assert (read.value, read.spread) == pytest.approx((1.5e-6, 0.3e-6))
    assert read.micro == "cta_start"


def main() -> None:
    """Compile all cases for sm_90."""
    from tests.support.compile_for_gpu import compiled as compile_for
    from tests.support.compile_for_gpu import described
    from validate.kernels.launch import Launch

    found = {}
    for name, (entry, arguments, warps) in cases().items():
        kernel = compile_for(Launch(name, entry, 1, {**arguments, "num_warps": warps}), 90)
        found[name] = described(name, kernel) | {"ptx": kernel.asm["ptx"]}
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()

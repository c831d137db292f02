"""One's own kernel in a schedule: its trip is the machine code's, all else the schedule's."""

import json
import shutil
from pathlib import Path

import pytest

from sim import simulate
from sim.inputs.files import InputError
from sim.inputs.hardware import NATIVE_MATMUL, load_profile
from sim.inputs.workload import WorkloadTable
from sim.machine import ISSUE, service_times_s
from sim.machine_code.counts import FlashLoop, flash_loop_of
from sim.machine_code.kernel import CompiledKernel
from sim.report.machine_code import read_machine_code
from sim.runs.address import address
from sim.runs.results_file import load, save
from sim.runs.scenario import make_scenario, read_scenario
from sim.runs.store import Store
from sim.runs.sweep import sweep_points
from sim.runs.workers import processes
from sim.schedules import make_schedule
from sim.schedules.base import Tile
from sim.schedules.parts.own_kernel import Asked, own_trip
from sim.tile_program import Compute, Kernel
from tests.support.commands import assert_one_line, called, printed_by, scenario
from tests.support.cubins import compiled_into, flash
from tests.support.fat_library import entry, fatbin, library

# By architecture: tile.q, tile.kv, warps, head_dim.
TILES = {"sm80": (128, 64, 4, 64), "sm90": (128, 128, 8, 128), "sm80 wide": (64, 64, 4, 64)}
ON = {"sm80": "a100-sxm-80gb", "sm90": "h100-sxm", "sm80 wide": "a100-sxm-80gb"}
NATIVE = ("sm80", "sm90")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with sm80.cubin and the like."""
    made = tmp_path_factory.mktemp("own")
    compiled_into(made, [flash(*tile, int(arch[2:4]), False) for arch, tile in TILES.items()])
    for number, arch in enumerate(TILES):
        for kind in ("cubin", "json"):
            (made / f"{number}-0.{kind}").rename(made / f"{arch}.{kind}")
    return made


def workload(arch: str, **changes):
    head_dim = TILES[arch][3]
    return {"heads": 8, "head_dim": head_dim, "seq_len": 2048, "dtype": "bf16", **changes}


def own(folder: Path, arch: str, **options):
    q, kv, *_ = TILES[arch]
    code = str(folder / f"{arch}.cubin")
    asked = {"name": "flash2", "implementation": "triton", "machine_code": code}
    return {**asked, "tile": {"q": q, "kv": kv}, **options}


def lowered(table, w, device) -> Kernel:
    schedule = make_schedule(table, "a test")
    kernel, *_ = schedule.program(WorkloadTable.model_validate(w).workload(), load_profile(device))
    return kernel.work


def trip_of(kernel: Kernel) -> list[Compute]:
    """The computes of the loop over key blocks."""
    return [op for op in kernel.loops[1].ops if isinstance(op, Compute)]


def refused(table, w, device) -> str:
    with pytest.raises(InputError) as error:
        lowered(table, w, device)
    assert "\n" not in str(error.value)
    return str(error.value)


# The trip


@pytest.mark.parametrize("arch", TILES)
def test_a_trip_has_the_codes_flops_lanes_exponentials_and_issue_slots(arch, folder):
    q, kv, warps, head_dim = TILES[arch]
    kernel = lowered(own(folder, arch), workload(arch), ON[arch])
    (apart,) = read_machine_code(folder / f"{arch}.cubin").apart
    body = apart.main.loop.body
    trip = trip_of(kernel)

    def total(amount):
        return sum(getattr(compute, amount) for compute in trip)

    assert total("mma_flops") == 4 * q * kv * head_dim == warps * apart.main.loop.mma_flops
    assert total("exp_count") == 32 * warps * apart.main.loop.mix["mufu"]
    assert total("vector_ops") == warps * sum(one.fp32_lanes for one in body)
    assert total("sram_bytes") == warps * sum(one.sram_bytes for one in body)
    issued = (total("vector_ops") + total("exp_count") + total("other_ops")) / 32
    if arch != "sm90":  # a warp's matmul has its operands read by instructions of the warp
        issued += total("sram_bytes") / 512
    assert issued == pytest.approx(warps * (len(body) - apart.main.loop.mix["mma"]), abs=1)


@pytest.mark.parametrize("arch", TILES)
def test_a_cta_has_the_codes_registers_shared_memory_and_threads(arch, folder):
    kernel = lowered(own(folder, arch), workload(arch), ON[arch])
    (apart,) = read_machine_code(folder / f"{arch}.cubin").apart
    footprint = kernel.footprint
    assert footprint.registers_per_thread == apart.kernel.registers
    assert footprint.sram_bytes == apart.kernel.sram_bytes
    assert footprint.threads == apart.kernel.threads
    assert footprint.producer_threads == 0


@pytest.mark.parametrize("arch", NATIVE)
def test_the_houses_kernel_takes_as_long_by_its_machine_code_as_by_the_rule(arch, folder):
    by_code = own(folder, arch, stages=2)
    by_rule = {key: value for key, value in by_code.items() if key != "machine_code"}
    w = workload(arch, heads=32, seq_len=4096)
    tables = [by_code, {**by_rule, "warps": TILES[arch][2], "label": "rule"}]
    code, rule = simulate(workload=w, hardware=ON[arch], schedule=tables)
    assert code.time_s == pytest.approx(rule.time_s, rel=0.1)
    assert code.flops == rule.flops
    assert code.hbm_write_bytes == rule.hbm_write_bytes


def test_bytes_are_the_schedules_whatever_the_code(folder):
    no_l2 = {"profile": "a100-sxm-80gb", "l2": {"capacity": "0 B"}}
    by_code = own(folder, "sm80")
    by_rule = {key: value for key, value in by_code.items() if key != "machine_code"}
    tables = [by_code, {**by_rule, "label": "rule"}]
    code, rule = simulate(workload=workload("sm80"), hardware=no_l2, schedule=tables)
    assert code.hbm_bytes == rule.hbm_bytes
    assert code.l2_bytes == rule.l2_bytes


@pytest.mark.parametrize(
    ("name", "w", "options"),
    [
        ("flash2", {"causal": True, "window": 700}, {}),
        ("block_sparse", {"causal": True}, {"keep_window": 256, "sinks": 4}),
        ("longformer", {}, {}),
        ("decode", {"phase": "decode", "batch": 2}, {}),
        ("flash_decoding", {"phase": "decode", "kv_heads": 2}, {}),
        ("paged", {"phase": "decode"}, {"page_size": 32}),
        ("ring", {"causal": True}, {"gpus": 2}),
        ("flash2", {}, {"rope": "fused"}),
    ],
)
def test_schedules_on_the_loop_take_it_and_engines_agree(name, w, options, folder):
    table = own(folder, "sm80 wide", name=name, **options)
    asked = {"workload": workload("sm80 wide", seq_len=1024, **w), "hardware": "a100-sxm-80gb"}
    (replay,) = simulate(**asked, schedule=[table])
    (reference,) = simulate(**asked, schedule=[table], engine="reference")
    assert replay.hbm_bytes == reference.hbm_bytes
    assert replay.time_s == pytest.approx(reference.time_s, rel=1e-9)
    assert any(kernel.compiled_from for kernel in replay.kernels)


@pytest.mark.parametrize(
    ("name", "w"),
    [
        ("flash2", {"seq_q": [700, 100, 1024], "seq_kv": [700, 100, 1024]}),
        ("flash_decoding", {"phase": "decode", "seq_kv": [700, 100, 1024]}),
        ("paged", {"phase": "decode", "seq_kv": [700, 100, 1024]}),
    ],
)
def test_of_lists_of_lengths_a_trip_is_the_codes_as_of_one_length(name, w, folder):
    table = own(folder, "sm80 wide", name=name)
    of_one = {"phase": w["phase"]} if "phase" in w else {}
    kernel = lowered(table, workload("sm80 wide", seq_len=1024, **of_one), "a100-sxm-80gb")
    lists = {key: value for key, value in workload("sm80 wide").items() if key != "seq_len"} | w
    ragged = lowered(table, lists, "a100-sxm-80gb")
    amounts = [
        [
            (op.mma_flops, op.vector_ops, op.other_ops, op.exp_count, op.sram_bytes)
            for op in trip_of(one)
        ]
        for one in (kernel, ragged)
    ]
    assert amounts[0] == amounts[1]
    assert ragged.footprint == kernel.footprint
    assert ragged.compiled_from == kernel.compiled_from
    engines = ("replay", "reference")
    asked = {"workload": lists, "hardware": "a100-sxm-80gb", "schedule": [table]}
    replay, reference = (simulate(**asked, engine=engine)[0] for engine in engines)
    assert replay.hbm_bytes == reference.hbm_bytes
    assert replay.time_s == pytest.approx(reference.time_s, rel=1e-9)


# The tile


def test_a_tile_of_other_flops_is_refused_with_those_that_fit(folder):
    said = refused(own(folder, "sm90", tile={"q": 128, "kv": 64}), workload("sm90"), "h100-sxm")
    assert "8.39 MFLOP" in said
    assert "tile = 128 x 64 of head_dim 128 4.19 MFLOP" in said
    assert "tile = { q = 128, kv = 128 } or { q = 256, kv = 64 }" in said


def test_another_head_dim_than_the_codes_is_refused(folder):
    assert "head_dim 96" in refused(
        own(folder, "sm90", implementation="cuda"), workload("sm90", head_dim=96), "h100-sxm"
    )


def test_without_a_tile_the_implementations_is_checked(folder):
    table = own(folder, "sm90")
    del table["tile"]
    lowered(table, workload("sm90"), "h100-sxm")  # 128 x 128, as Triton's default
    said = refused({**table, "implementation": "cuda"}, workload("sm90"), "h100-sxm")
    assert "tile = 128 x 64" in said


# Kernels that are not compiled here


def counted(**changes) -> FlashLoop:
    """The loop of a kernel of three warp groups, of which some may only load."""
    kernel = CompiledKernel("mine", "sm90", 168, 0, threads=384, dynamic_sram_bytes=100 * 1024)
    figures = {
        "matmul": "wgmma", "matmul_dtype": "bf16", "mma_flops": 4 * 128 * 128 * 128 / 8,
        "instructions": 500, "fp32_lanes": 200 * 32, "mufu": 60, "sram_bytes": 30_000,
        "copies": False, "barriers": 2, "deals_registers": True,
    }  # fmt: skip
    return FlashLoop(file="a", kernel=kernel, sha256="b", **{**figures, **changes})


def trip(loop: FlashLoop, stated: bool = True):
    w = WorkloadTable.model_validate(workload("sm90")).workload()
    return own_trip(loop, Asked(Tile(q=128, kv=128), stated, None, None), w, load_profile("b200"))


def test_of_a_warp_specialised_kernel_those_that_the_flops_leave_over_only_load(monkeypatch):
    monkeypatch.setitem(NATIVE_MATMUL, "sm100", "wgmma")
    made = trip(counted())
    assert (made.footprint.threads, made.footprint.producer_threads) == (384, 128)
    assert made.exp_count == 8 * 32 * 60
    with pytest.raises(InputError, match="in 12 warps"):
        trip(counted(deals_registers=False))


def test_keys_that_tma_brings_are_written_to_shared_memory_once(monkeypatch):
    monkeypatch.setitem(NATIVE_MATMUL, "sm100", "wgmma")
    by_tma, by_copies = (trip(counted(copies=copies)) for copies in (False, True))
    assert by_tma.sram_bytes - by_copies.sram_bytes == 2 * 128 * 128 * 2  # K and V


def test_of_tcgen05_the_tile_has_to_be_stated_and_operands_are_read_once():
    blackwell = counted(matmul="tcgen05", mma_flops=None, copies=True)
    assert trip(blackwell).mma_flops == 4 * 128 * 128 * 128
    assert trip(blackwell).sram_bytes == 12 * 30_000 + 3 * 128 * 128 * 2
    with pytest.raises(InputError, match="give tile"):
        trip(blackwell, stated=False)


# Devices


def test_code_of_an_older_architecture_runs_by_mma_sync(folder):
    kernel = lowered(own(folder, "sm80"), workload("sm80"), "h100-sxm")
    assert kernel.tensor_path == "mma_sync"
    assert (kernel.compiled_from.arch, kernel.compiled_from.device_arch) == ("sm80", "sm90")


def test_matmuls_that_a_device_has_not_are_refused(folder):
    w = workload("sm90")
    assert "are wgmma, a100-sxm-80gb (sm80) has mma.sync" in refused(
        own(folder, "sm90"), w, "a100-sxm-80gb"
    )
    assert "are mma.sync, mi300x (gfx942) has mfma" in refused(
        own(folder, "sm80"), workload("sm80"), "mi300x"
    )
    assert 'bf16, workload.dtype = "fp8"' in refused(
        own(folder, "sm90"), {**w, "dtype": "fp8"}, "h100-sxm"
    )


def test_issue_slots_do_not_depend_on_the_tensor_rate(folder):
    softmax = trip_of(lowered(own(folder, "sm90"), workload("sm90"), "h100-sxm"))[1]
    kernel = lowered(own(folder, "sm90"), workload("sm90"), "h100-sxm")
    hw = load_profile("h100-sxm")
    twice = hw.with_figures({"tensor.bf16": 2 * hw.tensor.bf16})
    one, two = (service_times_s(softmax, kernel, of, "bf16")[ISSUE] for of in (hw, twice))
    assert one == two > 0


def test_of_a_librarys_builds_a_device_gets_its_own(folder, tmp_path):
    codes = [(folder / f"{arch}.cubin").read_bytes() for arch in NATIVE]
    path = tmp_path / "kernels.so"
    path.write_bytes(library(fatbin(*(entry(c, n) for c, n in zip(codes, (80, 90), strict=True)))))
    builds = {
        arch: flash_loop_of(path, "flash", arch).kernel.arch for arch in ("sm80", "sm89", "sm90")
    }
    assert builds == {"sm80": "sm80", "sm89": "sm80", "sm90": "sm90"}


# What only the launch knows


def test_shared_memory_that_the_launch_decides_has_to_be_told(folder, tmp_path):
    alone = tmp_path / "alone.cubin"
    shutil.copy(folder / "sm90.cubin", alone)
    table, w = own(folder, "sm90", machine_code=str(alone)), workload("sm90")
    assert "give dynamic_sram" in refused(table, w, "h100-sxm")
    kernel = lowered({**table, "dynamic_sram": "160 KiB"}, w, "h100-sxm")
    assert kernel.footprint.sram_bytes == 160 * 1024
    assert "needs 400 KiB of SRAM" in refused({**table, "dynamic_sram": "400 KiB"}, w, "h100-sxm")


def test_what_contradicts_the_code_is_refused(folder):
    w = workload("sm90")
    assert "warps = 4: it has 8" in refused(own(folder, "sm90", warps=4), w, "h100-sxm")
    assert "holds 2 buffers" in refused(own(folder, "sm90", stages=3), w, "h100-sxm")
    assert "no kernel named 'gemm'" in refused(own(folder, "sm90", function="gemm"), w, "h100-sxm")
    assert "forward kernel" in refused(own(folder, "sm90"), {**w, "phase": "training"}, "h100-sxm")
    with pytest.raises(InputError, match="are of a kernel in machine_code"):
        make_schedule({"name": "flash2", "function": "mine"}, "a test")


# Scenarios


def question(folder: Path, **changes) -> Path:
    q, kv, *_ = TILES["sm90"]
    asked = 'name = "flash2"\nimplementation = "triton"\nmachine_code = "sm90.cubin"'
    return scenario(
        folder,
        workload='heads = 2\nhead_dim = 128\nseq_len = 512\ndtype = "bf16"',
        schedule=f"{asked}\ntile = {{ q = {q}, kv = {kv} }}",
        **changes,
    )


@pytest.fixture
def mine(folder, tmp_path) -> Path:
    """A folder of one's own with a cubin, its description and another cubin."""
    for name in ("sm90.cubin", "sm90.json", "sm80 wide.cubin", "sm80 wide.json"):
        shutil.copy(folder / name, tmp_path)
    return tmp_path


def test_a_scenario_finds_it_beside_itself_and_says_which_it_was(mine):
    printed = printed_by("run", question(mine), "--out", mine / "out")
    (record,) = load(mine / "out/results.json")
    (kernel,) = record.kernels
    code = kernel.compiled_from
    assert record.options["machine_code"] == str(mine / "sm90.cubin")
    assert (code["function"], code["arch"], code["matmul"]) == ("flash_kernel", "sm90", "wgmma")
    assert (
        f"a trip of sm90.cubin, flash_kernel (sm90, wgmma; sha256 {code['sha256'][:12]}" in printed
    )
    save([record], mine / "again.json")
    assert load(mine / "again.json") == [record]


def test_set_finds_it_where_one_stands_too(mine, tmp_path_factory, monkeypatch):
    asked = question(tmp_path_factory.mktemp("elsewhere"))
    monkeypatch.chdir(mine)
    printed_by("run", asked, "--set", "schedule.flash2.machine_code=sm90.cubin")


def test_an_older_architectures_code_is_said_to_be_slower(mine):
    tile = ("--set", "schedule.flash2.tile={ q = 64, kv = 64 }", "--set", "workload.head_dim=64")
    code = ("--set", "schedule.flash2.machine_code=sm80 wide.cubin")
    printed = printed_by("run", question(mine), *code, *tile)
    assert "sm90 runs mma.sync slower than its own wgmma" in printed


def test_bad_files_are_one_line(mine):
    asked = question(mine)
    bad = {"none.cubin": "no such", "mine.toml": "no ELF", "/": "read", "/proc/self/mem": "/mem: "}
    for code, part in bad.items():
        done = called("run", asked, "--set", f"schedule.flash2.machine_code={code}")
        assert_one_line(done, part, "schedule flash2: machine_code")


def address_of(path: Path) -> str:
    asked = read_scenario(str(path)).scenario()
    (point,) = asked.points
    return address(point, point.schedules[0], "replay", asked.limits)


def test_an_address_knows_the_code_and_its_description_by_what_is_in_them(mine):
    asked = question(mine)
    before = address_of(asked)
    described = json.loads((mine / "sm90.json").read_text())
    (mine / "sm90.json").write_text(json.dumps(described | {"shared": described["shared"] + 1024}))
    other_memory = address_of(asked)
    shutil.copy(mine / "sm80 wide.cubin", mine / "sm90.cubin")
    assert len({before, other_memory, address_of(asked)}) == 3


def test_a_sweep_over_cubins_runs_in_worker_processes_and_a_changed_one_again(mine):
    shutil.copy(mine / "sm90.cubin", mine / "other.cubin")
    shutil.copy(mine / "sm90.json", mine / "other.json")
    sweep = '"schedule.flash2.machine_code" = ["sm90.cubin", "other.cubin"]'
    text, store = read_scenario(str(question(mine, sweep=sweep))), Store()
    with processes(1) as workers:
        first = sweep_points(text, store, workers)
        described = json.loads((mine / "other.json").read_text())
        more = described | {"shared": described["shared"] + 1024}
        (mine / "other.json").write_text(json.dumps(more))
        again = sweep_points(text, store, workers)
    assert first.replayed == 1  # a copy is the same
    assert again.replayed == 1
    assert [record.status for record in again.records] == ["ok", "ok"]


def test_a_points_files_are_found_from_tables_too(mine):
    tables = {"workload": workload("sm90"), "hardware": {"profile": "h100-sxm"}}
    table = own(mine, "sm90", machine_code="sm90.cubin")
    made = make_scenario({**tables, "schedule": [table]}, "x", "x", mine)
    assert made.points[0].schedules[0].machine_code == mine / "sm90.cubin"

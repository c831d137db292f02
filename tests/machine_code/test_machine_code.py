"""Kernels read from machine code: against the compiler, and against what their tiles need."""

import json
import sys
from collections import namedtuple
from functools import cache
from importlib import metadata, util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sim.inputs.hardware import load_profile
from sim.machine import ctas_per_sm
from sim.machine_code import sass
from sim.machine_code.kernel import CompiledKernel, kernel_of_triton, kernels_of_file
from sim.machine_code.loops import loops_of, main_loop
from sim.machine_code.sass import CLASSES, Instruction
from sim.machine_code.trip import PIPES, trip_cycles
from sim.report.machine_code import TakenApart, read_machine_code, take_apart
from sim.tile_program import Footprint
from tests.support.commands import assert_one_line, called, printed_by
from tests.support.cubins import HEADS, Case, compiled_into, flash
from tests.support.fat_library import PTX, entry, fatbin, library

# By case: schedule and workload, compute capability.
TILES = {"sm80": (128, 64, 4, 64), "sm89": (64, 64, 4, 64), "sm90": (128, 128, 8, 128)}
CASES: list[Case] = [
    *(flash(*tile, int(arch[2:])) for arch, tile in TILES.items()),
    ({"name": "naive", "mask": False}, {**HEADS, "head_dim": 64, "seq_len": 4096}, 80),
]
FLASH = {arch: f"{number}-0" for number, arch in enumerate(TILES)}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory) -> tuple[Path, list[list[dict[str, Any]]]]:
    """A folder of cubins, and what compiler and cuobjdump say of each case's kernels."""
    folder = tmp_path_factory.mktemp("cubins")
    return folder, compiled_into(folder, CASES)


@pytest.fixture(scope="module")
def folder(compiled) -> Path:
    return compiled[0]


def read(folder: Path, name: str) -> CompiledKernel:
    (kernel,) = kernels_of_file(folder / f"{name}.cubin")
    return kernel


@cache
def taken_apart(folder: Path, name: str) -> TakenApart:
    return take_apart(read(folder, name))


def code_of(*lines: str) -> list[Instruction]:
    """Instructions of a text such as "@P0 BRA 0x10"."""
    parts = [line.split() if line[0] == "@" else ["", *line.split()] for line in lines]
    return [Instruction(predicate, opcode, "".join(rest)) for predicate, opcode, *rest in parts]


# Against the compiler


@pytest.mark.parametrize("arch", TILES)
def test_footprints_are_those_that_the_compiler_states(arch, compiled):
    folder, stated = compiled
    (told,) = stated[list(TILES).index(arch)]
    kernel = read(folder, FLASH[arch])
    assert kernel.arch == arch
    assert kernel.registers == told["registers"]
    assert kernel.sram_bytes == told["sram_bytes"]
    assert kernel.threads == told["threads"]


def test_dynamic_shared_memory_is_not_known_without_tritons_description(folder, tmp_path):
    alone = tmp_path / "alone.cubin"
    alone.write_bytes((folder / f"{FLASH['sm90']}.cubin").read_bytes())
    (kernel,) = kernels_of_file(alone)
    assert kernel.dynamic_sram_bytes is None
    assert kernel.static_sram_bytes == 0  # what the system reserves is not the kernel's


def test_what_triton_returns_is_read_as_what_it_leaves_in_its_cache(folder):
    path = folder / f"{FLASH['sm90']}.cubin"
    described = json.loads(path.with_suffix(".json").read_text())
    metadata_of = namedtuple("metadata_of", described)(**described)
    returned = SimpleNamespace(asm={"cubin": path.read_bytes()}, metadata=metadata_of)
    assert kernel_of_triton(returned) == read(folder, FLASH["sm90"])


# Against the tiles


@pytest.mark.parametrize("arch", TILES)
def test_matmuls_of_a_trip_do_the_flops_of_its_tile(arch, folder):
    q, kv, warps, head_dim = TILES[arch]
    main = taken_apart(folder, FLASH[arch]).main
    assert main.loop.mma_flops * warps == 4 * q * kv * head_dim  # Q K^T and P V


@pytest.mark.parametrize("arch", TILES)
def test_each_score_of_a_warp_has_its_exponential_multiply_add_and_maximum(arch, folder):
    q, kv, warps, _ = TILES[arch]
    mix = taken_apart(folder, FLASH[arch]).main.loop.mix
    a_warp = q * kv // warps // 32
    assert a_warp <= mix["mufu"] <= 1.25 * a_warp
    assert a_warp <= mix["minmax"] <= 1.25 * a_warp
    assert mix["fp32"] >= 2 * a_warp
    assert mix["convert"] >= a_warp // 2  # two scores to bf16 at once


def test_tritons_warp_groups_meet_three_times_a_trip_on_hopper(folder):
    loop = taken_apart(folder, FLASH["sm90"]).main.loop
    assert loop.barriers == 3
    assert loop.mix["mma"] == 16


@pytest.mark.parametrize("arch", TILES)
def test_the_main_loop_is_the_one_without_a_mask(arch, folder):
    """Triton's kernel has two: trips that a mask cuts, and whole ones."""
    apart = taken_apart(folder, FLASH[arch])
    flash = [one for one in apart.loops if one.mix["mma"] and one.exponentials]
    assert len(flash) == 2
    assert len(apart.main.loop.body) < max(len(one.body) for one in flash)
    assert "smallest" in apart.main.why


def test_without_exponentials_the_main_loop_has_the_most_matmuls_or_is_the_largest(folder):
    output = taken_apart(folder, "3-2")
    assert output.main.loop.mix["mma"]
    assert "most matmuls" in output.main.why
    copies = code_of("FADD R1", "FMUL R1", "@P0 BRA 0x10", "@P1 BRA 0x0", "EXIT")
    assert "largest" in main_loop(loops_of(copies)).why


# Loops


def test_a_loop_is_a_branch_back_that_is_reached_again():
    code = code_of("MOV R1", "FADD R2", "@P0 BRA 0x50", "@P1 BRA 0x10", "EXIT", "NOP", "BRA 0x30")
    (loop,) = loops_of(code)  # 0x50 waits at the end of the kernel and jumps back into it
    assert (loop.first, loop.last) == (1, 3)
    assert sum(loop.mix.values()) == 3


def test_inner_loops_are_found_too_and_a_kernel_without_one_has_no_main_loop():
    code = code_of("FADD R1", "FMUL R1", "@P0 BRA 0x10", "@P1 BRA 0x0", "EXIT", "BRA 0x50")
    assert [(one.first, one.last) for one in loops_of(code)] == [(1, 2), (0, 3)]
    assert main_loop(loops_of(code)).loop.first == 0
    assert main_loop([]) is None


# Instructions


@pytest.mark.parametrize(
    ("line", "of"),
    [
        ("HMMA.16816.F32.BF16 R4,R8,R12,R4", "mma"),
        ("HFMA2.MMA R4,-RZ,RZ,0,0", "alu"),
        ("UTCHMMA gdesc[UR4],gdesc[UR6],tmem[UR18]", "mma"),
        ("FFMA.FTZ R4,R5,R6,R7", "fp32"),
        ("MUFU.EX2 R4,R5", "mufu"),
        ("LDGSTS.E.BYPASS.128 [R1],[R2.64]", "global"),
        ("UTMALDG.4D [UR8],[UR4]", "global"),
        ("UIADD3 UR4,UR5,UR6,URZ", "uniform"),
        ("VOTEU.ALL UP0,P1", "uniform"),
        ("LDL.64 R4,[R1]", "lds_sts"),
        ("DEPBAR.LE SB0,0x2", "control"),
    ],
)
def test_classes(line, of):
    (one,) = code_of(line)
    assert one.of == of


@pytest.mark.parametrize(
    ("line", "m", "n", "k", "share"),
    [
        ("HMMA.16816.F32.BF16 R4,R8,R12,R4", 16, 8, 16, 1),
        ("HMMA.1688.F32 R4,R8,R12,R4", 16, 8, 8, 1),
        ("QMMA.16832.F32.E4M3.E4M3 R4,R8,R12,R4", 16, 8, 32, 1),
        ("IMMA.8816.S8.S8 R4,R8,R12,R4", 8, 8, 16, 1),
        ("HGMMA.64x176x16.F32.BF16 R4,gdesc[UR4],R4", 64, 176, 16, 4),
        ("QGMMA.64x128x32.F32.E4M3.E4M3 R4,gdesc[UR4],R4", 64, 128, 32, 4),
    ],
)
def test_flops_are_a_warps_part_of_the_shape(line, m, n, k, share):
    (one,) = code_of(line)
    assert one.flops == 2 * m * n * k / share


@pytest.mark.parametrize(
    ("line", "moved_bytes"),
    [
        ("LDSM.16.M88.4 R8,[R4]", 512),
        ("LDSM.16.MT88.2 R8,[R4]", 256),
        ("LDSM.16.M88 R8,[R4]", 128),
        ("LDS R8,[R4]", 128),
        ("STS.128 [R4],R8", 512),
        ("LDS.U16 R8,[R4]", 64),
        ("LDGSTS.E.BYPASS.128 [R1],[R2.64]", 512),
        ("HGMMA.64x64x16.F32.BF16 R56,gdesc[UR36],R56", (64 + 64) * 16 * 2 / 4),
        ("HGMMA.64x64x16.F32.BF16 R56,R4,gdesc[UR36],R56", 64 * 16 * 2 / 4),
        ("FADD R1,R2,R3", 0),
    ],
)
def test_shared_memory_bytes(line, moved_bytes):
    (one,) = code_of(line)
    assert one.sram_bytes == moved_bytes


def test_barriers_of_some_warps_are_not_the_ctas():
    whole, part = code_of("BAR.SYNC.DEFER_BLOCKING 0x0", "BAR.SYNC.DEFER_BLOCKING 0x1,0x100")
    assert whole.waits_for_all
    assert not part.waits_for_all


# Devices


@pytest.mark.parametrize("arch", TILES)
def test_cycles_are_counts_over_the_profiles_rates(arch, folder):
    loop = taken_apart(folder, FLASH[arch]).main.loop
    hw = load_profile({"sm80": "a100-sxm-80gb", "sm89": "rtx-4090", "sm90": "h100-sxm"}[arch])
    cycles = trip_cycles(loop, hw)
    flops_per_clock = hw.tensor.bf16 / 4
    assert cycles["tensor"] == pytest.approx(loop.mma_flops / flops_per_clock)
    assert cycles["issue"] == sum(loop.mix.values())
    assert cycles["exp"] == loop.mix["mufu"] * 8  # 16 a clock and SM: 4 a sub-partition
    assert cycles["vector"] == loop.mix["fp32"] * 128 / hw.sm.fp32_lanes
    ldsm_bytes = loop.mix["ldsm"] * 512
    assert cycles["sram"] >= 4 * ldsm_bytes / hw.sram.bytes_per_clock


def test_half_the_tensor_rate_is_twice_the_tensor_cycles_and_nothing_else(folder):
    loop = taken_apart(folder, FLASH["sm90"]).main.loop
    hw = load_profile("h100-sxm")
    whole = trip_cycles(loop, hw)
    half = trip_cycles(loop, hw.with_figures({"tensor.bf16": hw.tensor.bf16 / 2}))
    assert half == {**whole, "tensor": pytest.approx(2 * whole["tensor"])}


def test_ctas_are_those_of_the_occupancy_rule(folder):
    kernel, hw = read(folder, FLASH["sm80"]), load_profile("a100-sxm-80gb")
    (device,) = take_apart(kernel, [hw]).devices
    footprint = Footprint(kernel.sram_bytes, kernel.threads, kernel.registers)
    assert device.ctas == ctas_per_sm(footprint, hw)
    assert device.compiled_for_it
    assert device.binds in PIPES


# Libraries


def test_a_library_is_read_to_the_same_as_its_cubins(folder, tmp_path):
    codes = {arch: (folder / f"{name}.cubin").read_bytes() for arch, name in FLASH.items()}
    entries = {arch: entry(code, int(arch[2:])) for arch, code in codes.items()}
    path = tmp_path / "kernels.so"
    both = fatbin(entry(b".version 8.7", 90, PTX), entries["sm80"], entries["sm90"])
    path.write_bytes(library(both, fatbin(entries["sm89"])))
    found = {kernel.arch: take_apart(kernel) for kernel in kernels_of_file(path)}
    assert set(found) == set(TILES)
    for arch, apart in found.items():
        alone = taken_apart(folder, FLASH[arch])
        assert apart.kernel.registers == alone.kernel.registers
        assert [loop.mix for loop in apart.loops] == [loop.mix for loop in alone.loops]
    assert [k.arch for k in kernels_of_file(path, arch="sm89")] == ["sm89"]


def test_many_kernels_are_listed_and_not_taken_apart(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("sim.report.machine_code.MOST_TAKEN_APART", 0)
    answer = read_machine_code(folder / f"{FLASH['sm80']}.cubin")
    assert answer.kernels
    assert not answer.apart
    assert "--function" in printed_by("kernel", folder / f"{FLASH['sm80']}.cubin")


# The command


def test_the_command_prints_the_mix_and_what_binds(folder, monkeypatch):
    file = folder / f"{FLASH['sm90']}.cubin"
    printed = printed_by("kernel", file, "--profile", "h100-sxm", "--profile", "a100-sxm-80gb")
    mix = taken_apart(folder, FLASH["sm90"]).main.loop.mix
    rows = [line.split() for line in printed.splitlines()]
    assert [str(mix[of]) for of in CLASSES] in rows
    assert "3 CTA-wide barriers" in printed
    assert any(row[:1] == ["h100-sxm"] for row in rows)
    assert "otherwise for a100-sxm-80gb" in printed


def test_the_command_gives_json(folder):
    printed = json.loads(printed_by("kernel", folder / f"{FLASH['sm80']}.cubin", "--json"))
    (kernel,) = printed["kernels"]
    assert kernel["arch"] == "sm80"
    assert kernel["threads"] == 128
    (main,) = [loop for loop in kernel["loops"] if loop["main"]]
    assert set(main["mix"]) == set(CLASSES)
    assert {device["profile"] for device in kernel["devices"]} >= {"a100-sxm-80gb"}


def test_what_only_the_launch_knows_can_be_told(folder, tmp_path):
    alone = tmp_path / "alone.cubin"
    alone.write_bytes((folder / f"{FLASH['sm90']}.cubin").read_bytes())
    assert "tell it by --sram" in printed_by("kernel", alone)
    told = json.loads(printed_by("kernel", alone, "--sram", "500 KiB", "--json"))["kernels"][0]
    assert told["dynamic_sram_bytes"] == 500 * 1024
    assert {device["ctas"] for device in told["devices"]} == {0}


def test_bad_input_is_one_line(folder, tmp_path):
    good, text, host = folder / f"{FLASH['sm80']}.cubin", tmp_path / "a.txt", tmp_path / "b.so"
    text.write_text("no ELF at all")
    host.write_bytes(library(b"", section=".text"))
    assert_one_line(called("kernel", text), str(text), "no ELF file")
    assert_one_line(called("kernel", tmp_path / "none"), "no such file")
    assert_one_line(called("kernel", host), ".nv_fatbin")
    assert_one_line(called("kernel", good, "--function", "gemm"), "no kernel", "flash_kernel")
    assert_one_line(called("kernel", good, "--arch", "sm90"), "no kernel for sm90", "sm80")
    assert_one_line(called("kernel", good, "--function", "("), "not a regular expression")
    assert_one_line(called("kernel", good, "--sram", "much"), "--sram much")
    assert_one_line(called("kernel", good, "--profile", "h100-smx"), "did you mean 'h100-sxm'?")


def test_broken_cubins_and_libraries_are_one_line(folder, tmp_path):
    good, broken = (folder / f"{FLASH['sm80']}.cubin").read_bytes(), tmp_path / "broken"
    for content, words in (
        (b"", "empty"),
        (good[:3000], "broken"),
        (library(fatbin(entry(b".version 8.7", 90, PTX))), "only PTX"),
        (library(fatbin(entry(good, 80, compressed_bytes=100))), "compressed"),
        (library(fatbin(entry(b"\x7fELF", 80))), "broken"),
        (fatbin(entry(good, 80)).replace(b"\x10\0", b"\0\0", 1), "a header of 0 bytes"),
        (fatbin(entry(good, 80)).replace(b"\x40\0", b"\0\0", 1), "a header of 0 bytes"),
        (fatbin(entry(good, 80))[:8], "broken"),
    ):
        broken.write_bytes(content)
        assert_one_line(called("kernel", broken), str(broken), words)


def test_a_missing_extra_is_one_line(folder, monkeypatch):
    file = folder / f"{FLASH['sm80']}.cubin"

    def not_there(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(sass.metadata, "files", not_there)
    monkeypatch.setattr(util, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", "")
    assert_one_line(called("kernel", file), "nvdisasm", "pip install 'attnsim[machine-code]'")
    monkeypatch.setitem(sys.modules, "elftools", None)
    assert_one_line(called("kernel", file), "pyelftools", "pip install 'attnsim[machine-code]'")

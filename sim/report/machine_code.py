"""`attnsim kernel`: what a file's kernels are made of, as an answer that is shown or JSON."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sim.inputs.hardware import HardwareProfile
from sim.inputs.units import show, show_binary
from sim.machine_code.kernel import CompiledKernel, kernels_of_file
from sim.machine_code.loops import Loop, MainLoop, loops_of, main_loop
from sim.machine_code.played import plays_through, trip_played
from sim.machine_code.sass import CLASSES, WARP_LANES, instructions_of
from sim.machine_code.trip import PIPES, TripOnDevice, on_device, profiles_of
from sim.report import present
from sim.report.notes import CAUSES_IN_WORDS
from sim.report.table import new_table, show_table

MOST_TAKEN_APART = 8  # kernels; of more only the footprints are told


@dataclass(frozen=True, eq=False)
class TakenApart:
    """A kernel with its loops, the main one, and what a trip of that takes of devices."""

    kernel: CompiledKernel
    instructions: int
    loops: list[Loop]
    main: MainLoop | None
    devices: list[TripOnDevice]
    played: tuple[float, float] | None  # cycles of a trip, of a CTA alone and beside another


@dataclass(frozen=True, eq=False)
class MachineCode:
    """The kernels of a file that were asked for; taken apart unless they are many."""

    file: str
    kernels: list[CompiledKernel]
    apart: list[TakenApart]

    def json(self) -> str:
        """All of it but the code itself, which ends with a newline."""
        told = {one.kernel: _loops_as_data(one) for one in self.apart}
        kernels = [_as_data(kernel) | told.get(kernel, {}) for kernel in self.kernels]
        return json.dumps({"file": self.file, "kernels": kernels}, indent=2) + "\n"


def read_machine_code(
    path: Path,
    pattern: str = "",
    arch: str | None = None,
    profiles: Sequence[HardwareProfile] = (),
    launched: tuple[int | None, int | None] = (None, None),
) -> MachineCode:
    """Read a file's kernels whose name holds the regular expression `pattern`.

    `profiles` are those of their architecture unless given; `launched` are the threads of a CTA
    and its dynamic shared memory [bytes], where the launch has them and not the code. Raises
    InputError.
    """
    threads, dynamic_sram_bytes = launched
    kernels = [
        replace(
            kernel,
            threads=kernel.threads if threads is None else threads,
            dynamic_sram_bytes=kernel.dynamic_sram_bytes
            if dynamic_sram_bytes is None
            else dynamic_sram_bytes,
        )
        for kernel in kernels_of_file(path, pattern, arch)
    ]
    few = len(kernels) <= MOST_TAKEN_APART
    apart = [take_apart(kernel, profiles) for kernel in kernels] if few else []
    return MachineCode(str(path), kernels, apart)


def take_apart(kernel: CompiledKernel, profiles: Sequence[HardwareProfile] = ()) -> TakenApart:
    """A kernel's loops, and what a trip of the main one takes of each device."""
    code = instructions_of(kernel)
    loops = loops_of(code)
    main = main_loop(loops)
    hardware = profiles or profiles_of(kernel.arch)
    devices = [on_device(kernel, main.loop, hw) for hw in hardware] if main else []
    plays = main is not None and kernel.threads is not None and plays_through(main.loop)
    warps = (kernel.threads or 0) // WARP_LANES
    played = (
        (trip_played(main.loop, warps, 1), trip_played(main.loop, warps, 2))
        if main and plays
        else None
    )
    return TakenApart(kernel, len(code), loops, main, devices, played)


def _as_data(kernel: CompiledKernel) -> dict[str, Any]:
    hidden = ("cubin", "symbol", "code")
    return {key: value for key, value in asdict(kernel).items() if key not in hidden}


def _loops_as_data(one: TakenApart) -> dict[str, Any]:
    return {
        "instructions": one.instructions,
        "loops": [
            {
                "first": loop.first,
                "last": loop.last,
                "mix": loop.mix,
                "mma_flops": loop.mma_flops,
                "barriers": loop.barriers,
                "main": one.main is not None and loop is one.main.loop,
            }
            for loop in one.loops
        ],
        "why_main": one.main.why if one.main else None,
        "played_cycles": one.played,
        "devices": [asdict(device) for device in one.devices],
    }


@present.show.register
def show_machine_code(answer: MachineCode) -> None:
    """Each kernel's footprint, the mix of its main loop and what binds it; or a row a kernel."""
    if not answer.apart:
        _show_many(answer)
    for one in answer.apart:
        _show_one(one)


def _show_many(answer: MachineCode) -> None:
    table = new_table(answer.file, "arch", "registers", "static SRAM", "threads", "kernel")
    table.columns[-1].justify = "left"
    table.columns[-1].no_wrap, table.columns[-1].overflow = False, "fold"
    for kernel in answer.kernels:
        threads = "" if kernel.threads is None else str(kernel.threads)
        sram = show_binary(kernel.static_sram_bytes)
        table.add_row(kernel.arch, str(kernel.registers), sram, threads, kernel.name)
    show_table(table)
    print(
        f"{len(answer.kernels)} kernels; with --function (and --arch) of {MOST_TAKEN_APART} or "
        "fewer, their loops are told"
    )


def _show_one(one: TakenApart) -> None:
    print(f"{one.kernel.name} ({one.kernel.arch})")
    print(f"  {_footprint(one.kernel)}; {one.instructions:,} instructions; loops: {len(one.loops)}")
    if one.main is None:
        print("  No loop: nothing to tell of a trip.")
        return
    loop = one.main.loop
    print(f"  Main loop: instructions {loop.first} to {loop.last}, {one.main.why}.")
    flops = f" ({show(loop.mma_flops, 'FLOP')})" if loop.mma_flops else ""
    meets = {0: "no CTA-wide barrier", 1: "1 CTA-wide barrier"}
    barriers = meets.get(loop.barriers, f"{loop.barriers} CTA-wide barriers")
    matmuls = f"{loop.mix['mma']} of them matmuls{flops}"
    print(f"  A warp's trip: {len(loop.body)} instructions, {matmuls}; {barriers}")
    if one.played:
        alone, beside = one.played
        print(f"  Played through: {alone:,.0f} cycles of a CTA alone, {beside:,.0f} beside another")
    table = new_table("Instructions of a warp's trip", *CLASSES, numeric_from=0)
    table.add_row(*(str(loop.mix[of]) for of in CLASSES))
    show_table(table)
    _show_devices(one)


def _show_devices(one: TakenApart) -> None:
    if not one.devices:
        print(f"  No shipped profile is of {one.kernel.arch}: name some with --profile.")
        return
    title = "Cycles of a sub-partition for a warp's trip, at datasheet rates"
    words = [CAUSES_IN_WORDS[pipe] for pipe in PIPES]
    table = new_table(title, "device", "CTAs an SM", *words, "bound by")
    table.columns[-1].justify = "left"
    for device in one.devices:
        cycles = [device.cycles[pipe] for pipe in PIPES]
        shown = ["?" if taken is None else f"{taken:,.0f}" for taken in cycles]
        ctas = "?" if device.ctas is None else str(device.ctas)
        most = "at most " if device.ctas and one.kernel.dynamic_sram_bytes is None else ""
        bound = CAUSES_IN_WORDS[device.binds]
        if device.cycles["tensor"] is None:
            bound += ", unless tensor cores"
        table.add_row(device.profile, most + ctas, *shown, bound)
    show_table(table)
    for note in _notes(one):
        print(f"  {note}")


def _notes(one: TakenApart) -> list[str]:
    """What the table cannot know."""
    others = [device.profile for device in one.devices if not device.compiled_for_it]
    notes = []
    if others:
        arch = one.kernel.arch
        notes.append(
            f"Compiled for {arch}: a compiler may choose otherwise for {', '.join(others)}."
        )
    if one.kernel.dynamic_sram_bytes is None:
        notes.append("Dynamic shared memory is set by the launch: tell it by --sram.")
    if one.kernel.threads is None:
        notes.append("Threads are set by the launch: tell them by --threads.")
    if any(device.cycles["tensor"] is None for device in one.devices):
        notes.append(
            "Tensor cores ?: a matmul's shape is not in its opcode (tcgen05), or the profile has "
            "no rate of its dtype."
        )
    return notes


def _footprint(kernel: CompiledKernel) -> str:
    threads = "threads as launched"
    if kernel.threads is not None:
        threads = f"{kernel.threads} threads"
    sram = f"{show_binary(kernel.static_sram_bytes)} of static shared memory"
    if kernel.dynamic_sram_bytes is not None:
        sram = f"{show_binary(kernel.sram_bytes)} of shared memory"
    return f"{kernel.registers} registers a thread, {threads}, {sram}"

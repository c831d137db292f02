"""What a compiled kernel's main loop executes a trip, as whoever simulates the kernel needs it.

A file, or a library of many kernels, is narrowed to one: whose name holds a regular expression and,
of its builds for several architectures, the one that a device would be given.
"""

import os
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Literal

from sim.inputs.files import InputError
from sim.machine_code.kernel import CompiledKernel, kernels_of_file, tritons_description
from sim.machine_code.loops import Loop, loops_of, main_loop
from sim.machine_code.sass import Instruction, instructions_of

Matmul = Literal["mma.sync", "wgmma", "tcgen05"]
LISTED = 3  # kernels that an error names


@dataclass(frozen=True, eq=False)
class FlashLoop:
    """A flash kernel's main loop: what a warp of those that run it executes a trip.

    `instructions` are all but matmuls. `mma_flops` is None where a matmul does not tell its shape
    (tcgen05), whose operands `sram_bytes` then lacks too. `copies` is whether the loop copies keys
    to shared memory in a way that counts there (cp.async, or through registers).
    `barriers` is how often all warps of the CTA meet.
    `deals_registers` is whether warps differ (setmaxnreg): some of them may only load.
    `sha256` is of the file.
    """

    file: str
    kernel: CompiledKernel
    sha256: str
    matmul: Matmul
    matmul_dtype: str | None
    mma_flops: float | None
    instructions: int
    fp32_lanes: int
    mufu: int
    sram_bytes: float
    copies: bool
    barriers: int
    deals_registers: bool


def flash_loop_of(path: Path, pattern: str, arch: str) -> FlashLoop:
    """The main loop of a file's kernel for a device of that architecture.

    Raises InputError where the file cannot be read, where several kernels' names hold the regular
    expression `pattern` or none, and where the kernel has no loop of matmuls and exponentials.
    """
    return _flash_loop_of(path, pattern, arch, tuple(map(_digest, files_read(path))))


def files_read(path: Path) -> tuple[Path, ...]:
    """What a kernel in `path` is read from: that file and, if there, Triton's description."""
    return (path, path.with_suffix(".json")) if tritons_description(path) else (path,)


def _digest(path: Path) -> str:
    """Empty of what cannot be read, which whoever reads the kernel in it tells."""
    try:
        return sha256(path.read_bytes()).hexdigest() if os.path.isfile(path) else ""
    except OSError:
        return ""


@lru_cache(64)  # a sweep asks for the same at every point
def _flash_loop_of(path: Path, pattern: str, arch: str, digests: tuple[str, ...]) -> FlashLoop:
    kernel = _built_for(arch, kernels_of_file(path, pattern), path)
    return _flash_loop(kernel, path, digests[0])


def _built_for(arch: str, kernels: list[CompiledKernel], path: Path) -> CompiledKernel:
    """The newest build that is not newer than the device, as its driver would choose."""
    names = sorted({kernel.name for kernel in kernels})
    if len(names) > 1:
        more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
        raise InputError(
            f"{path}: {len(names)} kernels: one was expected (function = a part of its name): "
            f"{', '.join(names[:LISTED])}{more}"
        )

    def number(of: str) -> int:
        return int(of.removeprefix("sm")) if of.startswith("sm") else 0

    ordered = sorted(kernels, key=lambda kernel: number(kernel.arch))
    fitting = [kernel for kernel in ordered if number(kernel.arch) <= number(arch)]
    return fitting[-1] if fitting else ordered[0]


def _flash_loop(kernel: CompiledKernel, path: Path, of_file: str) -> FlashLoop:
    whole = instructions_of(kernel)
    main = main_loop(loops_of(whole))
    if main is None or not (main.loop.mix["mma"] and main.loop.exponentials):
        raise InputError(
            f"{path}: {kernel.name} ({kernel.arch}): no loop of it holds both a matmul and an "
            "exponential, as that of a flash kernel does"
        )
    loop = main.loop
    matmuls = [one for one in loop.body if one.of == "mma"]
    return FlashLoop(
        file=str(path),
        kernel=kernel,
        sha256=of_file,
        matmul=_path(matmuls[0]),
        matmul_dtype=matmuls[0].dtype,
        mma_flops=loop.mma_flops,
        instructions=len(loop.body) - len(matmuls),
        fp32_lanes=sum(one.fp32_lanes for one in loop.body),
        mufu=loop.mix["mufu"],
        sram_bytes=sum(one.sram_bytes for one in loop.body),
        copies=_copies(loop),
        barriers=loop.barriers,
        deals_registers=any(one.root == "USETMAXREG" for one in whole),
    )


def _path(matmul: Instruction) -> Matmul:
    if matmul.root.startswith("UTC"):
        return "tcgen05"
    return "wgmma" if matmul.by_warp_group else "mma.sync"


def _copies(loop: Loop) -> bool:
    """A TMA copy does not tell its bytes; LDG comes with the STS that stores what it loaded."""
    return any(one.root in ("LDGSTS", "LDG") for one in loop.body)

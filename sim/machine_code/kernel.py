"""The kernels of a cubin: their names and what one CTA of each takes of an SM."""

import io
import json
import os
import re
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sim.inputs.files import InputError
from sim.machine_code.fatbin import cubins_of, whole

EXTRA = "pip install 'attnsim[machine-code]'"
# Of a kernel's attributes (.nv.info): names and numbers of cuobjdump -elf, layout as in
# CuAsm/CuNVInfo.py of cloudcores/CuAssembler.
MAX_THREADS, REQUIRED_THREADS, REGISTERS = 0x05, 0x10, 0x2F
SIZED = 4  # the format of attributes that have a length and bytes
# From sm_90 on a kernel's shared memory includes what the system reserves (Hopper Tuning Guide,
# section "Unified Shared Memory/L1/Texture Cache": 1 KB a block).
RESERVED_IN_SECTION_BYTES = 1024
ELF_ABI_V1 = 7


@dataclass(frozen=True)
class CompiledKernel:
    """A kernel as compiled for an architecture ("sm90"), and the footprint of one of its CTAs.

    `threads` are those that it was compiled for, or at most; None where the code leaves that to
    the launch. So it does with `dynamic_sram_bytes`, unless Triton's description tells.
    """

    name: str
    arch: str
    registers: int
    static_sram_bytes: int
    threads: int | None
    dynamic_sram_bytes: int | None = None
    stages: int | None = None  # of the loops that are not told otherwise; only Triton tells
    cubin: bytes = field(repr=False, compare=False, default=b"")
    symbol: int = 0  # by which nvdisasm finds it in the cubin
    code: bytes = field(repr=False, compare=False, default=b"")  # its instructions, encoded

    @property
    def sram_bytes(self) -> int:
        """Shared memory of a CTA, as far as it is known, without what the system reserves."""
        return self.static_sram_bytes + (self.dynamic_sram_bytes or 0)


def kernels_of_file(path: Path, pattern: str = "", arch: str | None = None) -> list[CompiledKernel]:
    """The kernels of a file whose name holds the regular expression `pattern`, by name.

    Triton's description that stands beside a cubin in its cache (FILE.json) tells its dynamic
    shared memory. Raises InputError where the file cannot be read or has no such kernel.
    """
    _need_pyelftools()
    try:
        wanted = re.compile(pattern)
    except re.error as error:
        raise InputError(f"function {pattern!r}: not a regular expression: {error}") from None
    every = [kernel for cubin in cubins_of(path) for kernel in kernels_of_cubin(cubin, str(path))]
    described = tritons_description(path)
    if described and len(every) == 1:
        every = [with_description(every[0], described)]
    found = [k for k in every if wanted.search(k.name) and arch in (None, k.arch)]
    if not found:
        compiled_for = ", ".join(sorted({kernel.arch for kernel in every}))
        such = " ".join(filter(None, [pattern and f"named {pattern!r}", arch and f"for {arch}"]))
        raise InputError(
            f"{path}: no kernel {such}; it has {len(every)} for {compiled_for}"
            + (f", such as {every[0].name}" if every else "")
        )
    return sorted(found, key=lambda kernel: (kernel.name, kernel.arch))


def kernel_of_triton(compiled: Any) -> CompiledKernel:
    """The kernel that `triton.compile` returned, or a launch."""
    _need_pyelftools()
    (kernel,) = kernels_of_cubin(compiled.asm["cubin"], compiled.metadata.name)
    return with_description(kernel, compiled.metadata._asdict())


def with_description(kernel: CompiledKernel, described: dict[str, Any]) -> CompiledKernel:
    """The kernel with what Triton's description says: dynamic shared memory and, of threads, all.

    Source: `CompiledKernel` in python/triton/compiler/compiler.py of triton-lang/triton.
    """
    threads = kernel.threads or described["num_warps"] * described["warp_size"]
    stages = described.get("num_stages")
    return replace(
        kernel,
        dynamic_sram_bytes=described["shared"],
        threads=threads,
        stages=stages if isinstance(stages, int) else None,
    )


def kernels_of_cubin(cubin: bytes, where: str) -> list[CompiledKernel]:
    """The kernels of a cubin; raises InputError, naming `where`, for one that is broken."""
    with whole(f"{where}: a broken cubin"):
        return list(_kernels_in(cubin))


def _kernels_in(cubin: bytes) -> Iterator[CompiledKernel]:
    from elftools.elf.elffile import ELFFile

    elf = ELFFile(io.BytesIO(cubin))
    sections: dict[str, Any] = {section.name: section for section in elf.iter_sections()}

    def attributes(name: str) -> Iterator[tuple[int, bytes]]:
        if name not in sections:  # of a cubin without kernels
            return iter(())
        start, size = sections[name]["sh_offset"], sections[name]["sh_size"]
        return _attributes(cubin[start : start + size])

    symbols = enumerate(sections[".symtab"].iter_symbols())
    number = {symbol.name: index for index, symbol in symbols}
    registers = dict(
        struct.unpack_from("<II", value)
        for attribute, value in attributes(".nv.info")
        if attribute == REGISTERS
    )
    arch = _arch(cubin, elf["e_flags"])
    for name, symbol in number.items():
        if not name or f".nv.constant0.{name}" not in sections:  # where a kernel's parameters are
            continue
        sram = sections.get(f".nv.shared.{name}")
        sram_bytes = sram["sh_size"] if sram is not None else 0
        if int(arch[2:]) >= 90:
            sram_bytes = max(0, sram_bytes - RESERVED_IN_SECTION_BYTES)
        info = dict(attributes(f".nv.info.{name}"))
        threads = info.get(REQUIRED_THREADS, info.get(MAX_THREADS))
        yield CompiledKernel(
            name=name,
            arch=arch,
            registers=registers[symbol],
            static_sram_bytes=sram_bytes,
            threads=_product(struct.unpack("<III", threads)) if threads else None,
            cubin=cubin,
            symbol=symbol,
            code=sections[f".text.{name}"].data(),
        )


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(attribute, value) of a section .nv.info: a format, an attribute, two bytes or a length."""
    at = 0
    while at + 4 <= len(data):
        form, attribute, length = struct.unpack_from("<BBH", data, at)
        at += 4
        if form == SIZED:
            yield attribute, data[at : at + length]
            at += length


def _arch(cubin: bytes, flags: int) -> str:
    """Such as "sm90".

    Source: EF_CUDA_SM and EF_CUDA_SM_MASK in llvm/include/llvm/BinaryFormat/ELF.h of llvm-project:
    the second byte of the flags, before ABI version 8 the first.
    """
    return f"sm{flags & 0xFF if cubin[8] <= ELF_ABI_V1 else flags >> 8 & 0xFF}"


def _product(sizes: Iterable[int]) -> int:
    x, y, z = sizes
    return x * y * z


def tritons_description(path: Path) -> dict[str, Any] | None:
    """What stands beside a cubin in Triton's cache (FILE.json), if it does."""
    if path.suffix != ".cubin" or not os.path.exists(beside := path.with_suffix(".json")):
        return None
    try:
        described = json.loads(beside.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    keys = ("shared", "num_warps", "warp_size")
    if not isinstance(described, dict):
        return None
    return described if all(isinstance(described.get(key), int) for key in keys) else None


def _need_pyelftools() -> None:
    try:
        import elftools  # noqa: F401
    except ImportError:
        raise InputError(
            f"reading machine code needs pyelftools, which is not installed: {EXTRA}"
        ) from None

"""The cubins in a file: a cubin itself, a fatbin, or a library that has fatbins in it.

A fatbin is a header and entries one after the other, each for an architecture: a cubin (an ELF) or
PTX. A library holds any number of them in its section .nv_fatbin. Layout: `fat_elf_header` and
`fat_text_header` in cpu/cpu-elf2.c of RWTH-ACS/cricket.
"""

import mmap
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from sim.inputs.files import InputError

ELF_MAGIC = b"\x7fELF"
FATBIN_MAGIC = struct.pack("<I", 0xBA55ED50)
HEADER = struct.Struct("<4sHHQ")  # magic, version, bytes of this header, bytes of all entries
# kind, -, bytes of this header, bytes of what follows, of these compressed, -, minor, major, arch
ENTRY = struct.Struct("<HHIQIIHHI")
CUBIN_KIND = 2
SECTION = ".nv_fatbin"


def cubins_of(path: Path) -> list[bytes]:
    """The cubins in a file, in its order.

    Raises InputError where it cannot be read, holds no machine code, or only what is compressed.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _cubins_in(data, path)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError:  # of mmap
        raise InputError(f"{path}: is empty") from None


def _cubins_in(data: mmap.mmap, path: Path) -> list[bytes]:
    start, end = 0, len(data)
    if data[:4] == ELF_MAGIC:
        found = _section(data, path)
        if found is None:
            return [data[:]]
        start, end = found
    elif data[:4] != FATBIN_MAGIC:
        raise InputError(f"{path}: a cubin, a fatbin or a library was expected (it is no ELF file)")
    cubins = list(_unpacked(data, start, end, path))
    if not cubins:
        raise InputError(f"{path}: there is no cubin in it, only PTX")
    return cubins


@contextmanager
def whole(what: str) -> Iterator[None]:
    """Within, what reading a damaged file raises is an InputError which says so."""
    from elftools.common.exceptions import ELFError

    # pyelftools follows offsets, links and names as they stand in the file.
    damaged = (ELFError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
    try:
        yield
    except (*damaged, struct.error, MemoryError) as error:
        raise InputError(f"{what}: {type(error).__name__}: {error}") from None


def _section(data: mmap.mmap, path: Path) -> tuple[int, int] | None:
    """From where to where a library has its fatbins; None where the file is itself a cubin."""
    from elftools.elf.elffile import ELFFile

    with whole(f"{path}: a broken ELF file"):
        elf = ELFFile(cast(BinaryIO, data))
        if elf["e_machine"] == "EM_CUDA":
            return None
        section = elf.get_section_by_name(SECTION)
    if section is None:
        raise InputError(f"{path}: a library without CUDA code (it has no section {SECTION})")
    return section["sh_offset"], section["sh_offset"] + section["sh_size"]


def _unpacked(data: mmap.mmap, start: int, end: int, path: Path) -> Iterator[bytes]:
    while (start := data.find(FATBIN_MAGIC, start, end)) >= 0:
        with whole(f"{path}: a broken fatbin"):
            _, _, header_bytes, entries_bytes = HEADER.unpack_from(data, start)
        _check(header_bytes, HEADER, path)
        at = start + header_bytes
        start = at + entries_bytes
        while at + ENTRY.size <= min(start, end):
            kind, _, header_bytes, payload_bytes, compressed, *_ = ENTRY.unpack_from(data, at)
            if kind == CUBIN_KIND and compressed:
                raise InputError(
                    f"{path}: its cubins are compressed, which is not read here; "
                    f"cuobjdump -xelf all {path.name} leaves them as files"
                )
            _check(header_bytes, ENTRY, path)
            at += header_bytes
            if kind == CUBIN_KIND:
                yield data[at : at + payload_bytes]
            at += payload_bytes


def _check(header_bytes: int, header: struct.Struct, path: Path) -> None:
    """Raises InputError for a header shorter than itself, which leads nowhere."""
    if header_bytes < header.size:
        raise InputError(f"{path}: a broken fatbin: a header of {header_bytes} bytes")

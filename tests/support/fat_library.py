"""A shared library with fatbins in it, made of cubins: just what holds them, no code."""

import struct

FATBIN_MAGIC = 0xBA55ED50
PTX, CUBIN = 1, 2


def entry(payload: bytes, arch: int, kind: int = CUBIN, compressed_bytes: int = 0) -> bytes:
    """An entry of a fatbin: what follows is a cubin or PTX, padded to 8 bytes."""
    payload += bytes(-len(payload) % 8)
    header = struct.pack(
        "<HHIQIIHHI", kind, 0x101, 64, len(payload), compressed_bytes, 0, 0, 0, arch
    )
    return header.ljust(64, b"\0") + payload


def fatbin(*entries: bytes) -> bytes:
    """A fatbin of entries."""
    body = b"".join(entries)
    return struct.pack("<IHHQ", FATBIN_MAGIC, 1, 16, len(body)) + body


def library(*fatbins: bytes, section: str = ".nv_fatbin") -> bytes:
    """An ELF library of x86 whose one section holds the fatbins, one behind the other."""
    padded = [one + bytes(-len(one) % 16 + 16) for one in fatbins]  # linkers leave gaps
    names, data = b"\0.shstrtab\0" + section.encode() + b"\0", b"".join(padded)
    names_at = 64
    data_at = names_at + len(names) + -len(names) % 16
    sections_at = data_at + len(data)
    header = b"\x7fELF" + bytes([2, 1, 1]) + bytes(9)
    shared, x86 = 3, 62
    header += struct.pack(
        "<HHIQQQIHHHHHH", shared, x86, 1, 0, 0, sections_at, 0, 64, 0, 0, 64, 3, 1
    )

    def section_header(name: int, kind: int, at: int, size: int) -> bytes:
        return struct.pack("<IIQQQQIIQQ", name, kind, 0, 0, at, size, 0, 0, 1, 0)

    sections = section_header(0, 0, 0, 0) + section_header(1, 3, names_at, len(names))
    sections += section_header(11, 1, data_at, len(data))
    return (header + names).ljust(data_at, b"\0") + data + sections

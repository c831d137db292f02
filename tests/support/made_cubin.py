"""A cubin by hand: what tells a kernel's footprint, and no code that could run."""

import struct

CUDA, EXECUTABLE = 190, 2  # of the ELF header
SYMBOLS, TEXT, NOTE = 2, 3, 1  # kinds of sections: symbols, strings, others


def cubin(name: str = "flash_kernel", sm: int = 90) -> bytes:
    """A cubin with one kernel, of 168 registers and 384 threads."""
    symbols = bytes(24) + struct.pack("<IBBHQQ", 1, 0x12, 0, 5, 0, 128)
    registers = struct.pack("<BBHII", 4, 0x2F, 8, 1, 168)
    threads = struct.pack("<BBHIII", 4, 0x05, 12, 384, 1, 1)
    return _elf(
        [
            (".strtab", TEXT, b"\0" + name.encode() + b"\0", 0),
            (".symtab", SYMBOLS, symbols, 24),
            (".nv.info", NOTE, registers, 0),
            (f".nv.info.{name}", NOTE, threads, 0),
            (f".text.{name}", NOTE, bytes(128), 0),
            (f".nv.constant0.{name}", NOTE, bytes(16), 0),
            (f".nv.shared.{name}", NOTE, bytes(2048), 0),
        ],
        sm,
    )


def _elf(sections: list[tuple[str, int, bytes, int]], sm: int) -> bytes:
    """An ELF file of sections: name, kind, bytes, bytes of an entry. The first has the strings."""
    names = b"\0" + b"\0".join(name.encode() for name, *_ in sections) + b"\0.shstrtab\0"
    body, headers = b"", bytes(64)
    for name, kind, data, entry in [*sections, (".shstrtab", TEXT, names, 0)]:
        at = names.index(b"\0" + name.encode() + b"\0") + 1
        link = 1 if kind == SYMBOLS else 0
        place = 64 + len(body)
        headers += struct.pack("<IIQQQQIIQQ", at, kind, 0, 0, place, len(data), link, 1, 8, entry)
        body += data + bytes(-len(data) % 8)
    identity = b"\x7fELF" + bytes([2, 1, 1, 0x33, 7]) + bytes(7)
    header = struct.pack(
        "<HHIQQQIHHHHHH",
        *(EXECUTABLE, CUDA, 1, 0, 0, 64 + len(body), sm, 64, 0, 0, 64),
        *(len(sections) + 2, len(sections) + 1),
    )
    return identity + header + body + headers

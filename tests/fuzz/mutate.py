"""Mutations of a file: of its bytes, of its values, and where it ends."""

import random
import re

# Numbers, quantities and texts that files may hold by mistake or malice.
VALUES = (
    "0", "-1", "1e308", "1e-320", "1e999", "nan", "inf", "true", "9" * 400, "9" * 6000,
    "0x7fffffff",
    '""', '"1 TB/s"', '"-5 GB"', '"9**9**9 B"', '"\\u0000"', '"µ½𝔘"', '"../../etc/passwd"',
    "[]", "[1, 2]", "{}", "[" * 3000, "1_000_000", "1000000000000", "null",
)  # fmt: skip
_VALUE = re.compile(rb'"[^"\n]*"|-?\d[\d._e+-]*')
_DIGIT = re.compile(rb"\d")
_KEY = re.compile(rb"[A-Za-z_]{2,}")


def mutated(data: bytes, rng: random.Random) -> bytes:
    """The file with one to three things changed."""
    for _ in range(rng.randint(1, 3)):
        data = rng.choice((_value, _value, _digit, _digit, _key, _byte, _cut, _line))(data, rng)
    return data


def _value(data: bytes, rng: random.Random) -> bytes:
    return _replaced(data, _VALUE, rng.choice(VALUES).encode(), rng)


def _digit(data: bytes, rng: random.Random) -> bytes:
    return _replaced(data, _DIGIT, b"%d" % rng.randrange(10), rng)


def _key(data: bytes, rng: random.Random) -> bytes:
    return _replaced(data, _KEY, rng.choice((b"x", b"a.b.c", b"a." * 3000 + b"a", b"name")), rng)


def _replaced(data: bytes, what: re.Pattern[bytes], by: bytes, rng: random.Random) -> bytes:
    found = list(what.finditer(data))
    if not found:
        return by
    place = rng.choice(found)
    return data[: place.start()] + by + data[place.end() :]


def _byte(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        if changed:
            changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def _cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _line(data: bytes, rng: random.Random) -> bytes:
    lines = data.split(b"\n")
    lines.insert(rng.randrange(len(lines) + 1), rng.choice(lines))
    return b"\n".join(lines)

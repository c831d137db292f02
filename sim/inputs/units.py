"""Quantities and counts as people write them in files ("3.35 TB/s"), to SI floats in code."""

import math
import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, NonNegativeInt, PositiveInt

from sim.inputs.quantities import in_base_units, symbol_of

_ROUNDED_BYTES = re.compile(r"\d\s*KB?\b")  # of which the field means one thing or another, too

# The same for an editor, which knows no groups of thousands.
_WRITTEN = r"^\s*[-+]?(\d[\d,_]*\.?\d*|\.\d+)([eE][-+]?\d+)?\s*[A-Za-zµ][A-Za-zµ/ ]*$"


def parse_quantity(value: Any, unit: str, meaning: str, example: str) -> float:
    """`value` in `unit`.

    Raises ValueError unless it is a string with a unit of that kind, finite and not negative.
    """
    expected = f"{meaning} was expected, such as {example}"
    if isinstance(value, float | int) and not isinstance(value, bool):
        raise ValueError(f"it has no unit; {expected}")
    if not isinstance(value, str):
        raise ValueError(expected)
    try:
        amount, found = in_base_units(value)
        if found != in_base_units(f"1 {unit}")[1]:
            raise ValueError(found)
    except Exception:  # pint raises tokenizer, syntax and attribute errors of many types
        which = "kB (1,000 B) or KiB (1,024 B)? " if _ROUNDED_BYTES.search(value) else ""
        raise ValueError(which + expected) from None
    if not math.isfinite(amount):
        raise ValueError(f"it must be finite; {expected}")
    if amount < 0:
        raise ValueError(f"it must not be negative; {expected}")
    return amount


def _between(
    least: float, most: float, unit: str, meaning: str, example: str, *, or_zero: bool = False
) -> BeforeValidator:
    """A quantity within bounds far beyond any device's, so that what comes of it stays finite."""

    def parse(value: Any) -> float:
        amount = parse_quantity(value, unit, meaning, example)
        if not least <= amount <= most and not (or_zero and amount == 0):
            symbol = symbol_of(unit)
            low = "0" if or_zero else show(least, symbol)
            raise ValueError(
                f"it must be between {low} and {show(most, symbol)}; {meaning} was expected, "
                f"such as {example}"
            )
        return amount

    written = Field(pattern=_WRITTEN, description=f"{meaning}, such as {example}")
    return BeforeValidator(parse, json_schema_input_type=Annotated[str, written])


_GROUPED = re.compile(r"\d{1,3}(,\d{3})+")
# Of which the field now means one thing, now another; "Ki" is one of them, and no count's either.
_ROUNDED = re.compile(r"(\d+(?:\.\d+)?)\s*([kKmM])i?")
_POWER = {"k": 1, "m": 2}


def spelt_count(text: str) -> int | None:
    """A whole number as people group it: spelt_count("12,288") == 12288; None of other texts.

    Raises ValueError for "128k", which says what it may mean.
    """
    if _GROUPED.fullmatch(text):
        return int(text.replace(",", ""))
    if rounded := _ROUNDED.fullmatch(text):
        number, power = float(rounded[1]), _POWER[rounded[2].lower()]
        raise ValueError(f"{number * 1024**power:.0f} or {number * 1000**power:.0f}?")
    return None


def _as_count(value: Any) -> Any:
    """What may be a count; raises ValueError for true and false, which Python takes for 1 and 0."""
    expected = "a whole number was expected"
    if isinstance(value, bool):
        raise ValueError(expected)
    try:
        spelt = spelt_count(value.strip()) if isinstance(value, str) else None
    except ValueError as error:
        raise ValueError(f"{error} {expected}") from None
    return value if spelt is None else spelt


# A count as a text, for an editor: "12,288", "12_288" or plain digits.
_COUNT = r"^\s*(\d{1,3}(,\d{3})+|\d[\d_]*)\s*$"


MOST = 10**12  # of anything that is counted: products of four stay far below a float's largest


def whole(least: int, most: int = MOST, multiple_of: int | None = None) -> BeforeValidator:
    """What may be a count between these; in a file a number, or one as people group it.

    It refuses what is no whole number; the bounds are for editors, and a `Field` checks them.
    """
    number = Annotated[int, Field(ge=least, le=most, multiple_of=multiple_of)]
    text = Annotated[str, Field(pattern=_COUNT)]
    return BeforeValidator(_as_count, json_schema_input_type=number | text)


Count = Annotated[PositiveInt, Field(le=MOST), whole(1, MOST)]
CountOrNone = Annotated[NonNegativeInt, Field(le=MOST), whole(0, MOST)]
LONGEST = 10**8  # tokens of a sequence: ten times the longest context of any model
Length = Annotated[PositiveInt, Field(le=LONGEST), whole(1, LONGEST)]
# The largest wafer has some 10**6 cores.
CountOfDevice = Annotated[PositiveInt, Field(le=10**6), whole(1, 10**6)]
# A share below a thousandth is a device of another kind, and no calibration of this one.
Fraction = Annotated[float, Field(ge=1e-3, le=1, allow_inf_nan=False)]
FractionOrNone = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Cycles = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
FractionBelowOne = Annotated[float, Field(ge=0, lt=1)]
_BYTES = (1.0, 1e18, "byte", "a number of bytes", '"50 MB" or "48 MiB"')  # a data centre's
Bytes = Annotated[float, _between(*_BYTES)]
BytesOrNone = Annotated[float, _between(*_BYTES, or_zero=True)]
# From a floppy disk's to that of all of a wafer's SRAM a thousand times over.
BytesPerSecond = Annotated[float, _between(1e4, 1e18, "byte/second", "a bandwidth", '"3.35 TB/s"')]
FlopsPerClock = Annotated[
    float,
    _between(
        1.0,
        1e9,
        "flop/clock",
        "an SM's FLOPs a clock, or the device's a second",
        '"4096 FLOP/clock" or "989 TFLOP/s"',
    ),
]
Hertz = Annotated[float, _between(1e6, 1e12, "hertz", "a clock rate", '"1830 MHz"')]
# Latencies and fixed costs: a second is a spinning disk's start.
Seconds = Annotated[float, _between(1e-15, 1.0, "second", "a time", '"560 ns"', or_zero=True)]
Watts = Annotated[float, _between(1e-3, 1e6, "watt", "a power", '"700 W"')]
# From below what thermal noise allows at room temperature to a joule each.
_ENERGY = (1e-21, 1.0)
Joules = Annotated[float, _between(*_ENERGY, "joule", "an energy", '"12 pJ"')]
JoulesPerByte = Annotated[float, _between(*_ENERGY, "joule/byte", "an energy a byte", '"31 pJ/B"')]
JoulesPerFlop = Annotated[
    float, _between(*_ENERGY, "joule/flop", "an energy a FLOP", '"0.5 pJ/FLOP"')
]

_SHOWN_PREFIXES = (
    (1e15, "P"),
    (1e12, "T"),
    (1e9, "G"),
    (1e6, "M"),
    (1e3, "k"),
    (1.0, ""),
)
_SMALL_PREFIXES = ((1.0, ""), (1e-3, "m"), (1e-6, "µ"), (1e-9, "n"), (1e-12, "p"))


def show(value: float, unit: str, digits: int = 3) -> str:
    """`value` with so many digits and a decimal prefix: show(3.35e12, "B/s") == "3.35 TB/s".

    What is done in a clock has none: show(4096, "FLOP/clock") == "4096 FLOP/clock".
    """
    if value == 0:
        return f"0 {unit}"
    if unit.endswith("/clock"):
        return f"{value:.6g} {unit}"
    prefixes = _SHOWN_PREFIXES if abs(value) >= 1 else _SMALL_PREFIXES
    for scale, prefix in prefixes:
        if abs(value) >= scale * 0.9995:
            return f"{value / scale:.{digits}g} {prefix}{unit}"
    return f"{value / scale:.{digits}g} {prefix}{unit}"  # below the least of them


def show_binary(value_bytes: float, digits: int = 4) -> str:
    """A capacity with a binary prefix: show_binary(233472) == "228 KiB"."""
    for scale, prefix in ((2**40, "Ti"), (2**30, "Gi"), (2**20, "Mi"), (2**10, "Ki")):
        if value_bytes >= scale:
            return f"{value_bytes / scale:.{digits}g} {prefix}B"
    return f"{value_bytes:.0f} B"


def amount(value: Any) -> tuple[float, str] | None:
    """A quantity's number in SI and its unit: amount("25 MiB") == (26214400.0, "B"); else None."""
    if not isinstance(value, str):
        return None
    try:
        number, unit = in_base_units(value)
    except Exception:  # as above
        return None
    return (number, unit.replace("1/s", "Hz")) if unit else None

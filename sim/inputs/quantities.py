"""A number and a unit, as people write them, in base units: by pint.

To load pint takes a fifth of a second. So what texts came to is kept from one process to the next,
and pint is loaded where a text is new.
"""

import atexit
import re
from functools import cache, lru_cache
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from sim.inputs.kept import KeptTable, folder_beside

if TYPE_CHECKING:
    import pint

# A registry of its own: in pint's default one bytes and bits are dimensionless, so that "50" would
# pass for "50 B", and K would be a kelvin.
_DEFINITIONS = """
kilo- = 1e3 = k-
mega- = 1e6 = M-
giga- = 1e9 = G-
tera- = 1e12 = T-
peta- = 1e15 = P-
kibi- = 1024 = Ki-
mebi- = 1048576 = Mi-
gibi- = 1073741824 = Gi-
tebi- = 1099511627776 = Ti-
milli- = 1e-3 = m-
micro- = 1e-6 = u- = µ-
nano- = 1e-9 = n-
pico- = 1e-12 = p-
second = [time] = s
hertz = 1 / second = Hz
clock = [cycle]
byte = [information] = B
flop = [operation] = FLOP
flop_rate = flop / second = FLOPS
joule = [energy] = J
watt = joule / second = W
"""

# A number and a unit: no more of what pint understands, as it would work out "9**9**9 B".
_WHOLE = r"inf|nan|\d{1,3}(?:,\d{3})+|[\d_]*"  # "12,288" and "12_288", but not "1,5"
_QUANTITY = re.compile(
    rf"\s*([-+]?(?:{_WHOLE})(?:\.\d*)?(?:[eE][-+]?\d+)?)\s*([A-Za-zµ][A-Za-zµ/ ]*)"
)

LONGEST_QUANTITY = 80  # characters: pint takes a unit of thousands of letters apart for hours
MOST_KEPT = 1000  # texts: all shipped profiles have some hundreds


@cache
def _registry() -> "pint.UnitRegistry[float]":
    import pint

    registry: pint.UnitRegistry[float] = pint.UnitRegistry(None, cache_folder=None)
    registry.load_definitions(_DEFINITIONS.strip().splitlines())
    return registry


@cache
def _kept() -> KeptTable[tuple[float, str]]:
    """What texts came to, by these definitions and this pint; written when the process ends."""
    folder = folder_beside(Path(__file__))
    by = sha256(repr((_DEFINITIONS, version("pint"))).encode()).hexdigest()[:16]
    table = KeptTable(folder and folder / f"quantities.{by}.json", MOST_KEPT, _as_kept)
    atexit.register(table.keep)
    return table


def _as_kept(value: list[float | str]) -> tuple[float, str]:
    number, unit = value
    return float(number), str(unit)


@lru_cache(4096)  # a sweep reads the same figures again for every point
def in_base_units(text: str) -> tuple[float, str]:
    """The number and its unit: in_base_units("25 MiB") == (26214400.0, "B").

    Raises ValueError, or one of pint's many errors.
    """
    found = _QUANTITY.fullmatch(text) if len(text) <= LONGEST_QUANTITY else None
    if found is None:
        raise ValueError("not a number and a unit")
    known = _kept().get(text)
    if known is None:
        number = float(found[1].replace(",", ""))
        quantity = _registry().Quantity(number, found[2].strip()).to_base_units()
        known = float(quantity.magnitude), f"{quantity.units:~}".replace(" ", "")
        _kept().add(text, known)
    return known


def symbol_of(unit: str) -> str:
    """How a unit is written for short: symbol_of("byte/second") == "B/s"."""
    return f"{_registry().Unit(unit):~}".replace(" ", "")

"""Quantities mean what pint, a library of units, takes them for: to the last bit."""

import pint
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.inputs.units import amount, parse_quantity

# In pint's own registry bytes have no dimension, and K is a kelvin.
DEFINITIONS = """
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
FLOPS = flop / second
joule = [energy] = J
watt = joule / second = W
"""
PREFIXES = [
    *("", "k", "M", "G", "T", "P", "Ki", "Mi", "Gi", "Ti", "m", "u", "µ", "n", "p"),
    *("kilo", "mega", "giga", "tera", "peta", "kibi", "mebi", "gibi", "tebi"),
    *("milli", "micro", "nano", "pico"),
]
NAMES = [
    *("second", "s", "hertz", "Hz", "clock", "byte", "B", "flop", "FLOP", "FLOPS", "joule", "J"),
    *("watt", "W", "bytes", "seconds", "joules", "FLOPs", "clocks", "cycle", "b", "K", "m", ""),
]
ASKED = ["byte", "byte/second", "flop/clock", "hertz", "second", "watt", "joule", "joule/byte"]
ASKED += ["joule/flop", "flop/second"]
UNITS = st.builds("{}{}".format, st.sampled_from(PREFIXES), st.sampled_from(NAMES))
WRITTEN = st.builds(
    "{:g} {}{}".format,
    st.floats(1e-3, 1e4),
    UNITS,
    st.one_of(
        st.just(""),
        st.builds("{}{}".format, st.sampled_from(["/", " / ", " per "]), UNITS),
    ),
)


@pytest.fixture(scope="module")
def registry() -> pint.UnitRegistry:
    found = pint.UnitRegistry(None, cache_folder=None)
    found.load_definitions(DEFINITIONS.strip().splitlines())
    return found


def has_two_prefixes(written: str) -> bool:
    """Pint may round such as "GB/ns" once more or once less."""
    _, divided, below = written.replace(" per ", "/").partition("/")
    return bool(divided) and below.strip() not in NAMES


@given(WRITTEN, st.sampled_from(ASKED))
def test_a_quantity_is_what_pint_takes_it_for(registry, written, unit):
    number, _, of = written.partition(" ")
    try:
        meant = float(registry.Quantity(float(number), of).to(unit).magnitude)
    except Exception:
        with pytest.raises(ValueError, match="expected"):
            parse_quantity(written, unit, "a size", "1 B")
    else:
        rounded = pytest.approx(meant, rel=4e-16) if has_two_prefixes(written) else meant
        assert parse_quantity(written, unit, "a size", "1 B") == rounded


@pytest.mark.parametrize(
    ("written", "is_in_si"),
    [
        ("25 MiB", (26214400.0, "B")),
        ("3 TB/s", (3e12, "B/s")),
        ("3 TB per second", (3e12, "B/s")),
        ("5 W", (5.0, "J/s")),
        ("1830 MHz", (1.83e9, "Hz")),
        ("989 TFLOPS", (9.89e14, "FLOP/s")),
        ("4096 FLOP/clock", (4096.0, "FLOP/clock")),
        ("3 B/B", None),
        ("3", None),
        ("3 apples", None),
        (3, None),
    ],
)
def test_an_amount_is_in_si(written, is_in_si):
    assert amount(written) == is_in_si

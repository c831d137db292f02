"""A figure as a file: its format and, for a paper, its size."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sim.inputs.files import InputError, whole_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Format = Literal["png", "svg", "pdf"]
INCHES = {"in": 1.0, "cm": 1 / 2.54, "mm": 1 / 25.4}
LEAST, MOST = 1.5, 40.0  # inches of a side
PNG_DOTS_PER_INCH = 300  # of a given size, which is printed; else figures' own
_SIZE = re.compile(r"\s*(\d+\.?\d*|\.\d+)\s*x\s*(\d+\.?\d*|\.\d+)\s*(in|cm|mm)?\s*")


@dataclass(frozen=True)
class Sheet:
    """What figures are saved as: a format and, of one panel, width and height [inches].

    Without a size they are as they were drawn. With one they are as wide, and as much taller as
    they have more panels or rows.
    """

    format: Format = "png"
    size: tuple[float, float] | None = None

    @classmethod
    def of(cls, format: Format | None, size: str | None) -> "Sheet":
        """That of the options --format and --size; raises InputError."""
        if size is None:
            return cls(format or "png")
        found = _SIZE.fullmatch(size)
        sides = [float(n) * INCHES[found[3] or "in"] for n in found.groups()[:2]] if found else []
        if not sides or not all(LEAST <= side <= MOST for side in sides):
            raise InputError(
                f"--size {size}: WIDTHxHEIGHT of {LEAST:g} to {MOST:g} inches was expected, such "
                "as 3.3x2.4in or 8.4x6cm"
            )
        return cls(format or "png", (sides[0], sides[1]))


AS_DRAWN = Sheet()


@contextmanager
def in_plain_style() -> Iterator[None]:
    """Within, figures look alike everywhere: no matplotlibrc, as of the current folder, counts.

    Raises InputError where Matplotlib cannot read one that it comes upon.
    """
    try:
        import matplotlib
    except UnicodeDecodeError:
        raise InputError("matplotlibrc: not a text file, and Matplotlib reads it") from None
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        # A legend goes above its panel: where it hides least, among 100,000 points, takes seconds.
        matplotlib.rcParams["legend.loc"] = "upper right"
        yield


def save_figure(figure: "Figure", out: Path, name: str, sheet: Sheet = AS_DRAWN) -> None:
    """Draw the figure into a file of the folder `out`; raises InputError where that cannot be.

    The same figure gives the same bytes. Titles and labels are people's own words: $ is a dollar.
    """
    from matplotlib import rc_context
    from matplotlib.text import Text

    from sim.report.figure import sized, uncrowd  # they take their time to load

    for text in figure.findobj(Text):
        text.set_parse_math(False)
    undated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(sheet.format)
    dots = "figure" if sheet.size is None else PNG_DOTS_PER_INCH
    # A PDF's text can be searched, and publishers take it (42: TrueType).
    with (
        rc_context({"svg.hashsalt": name, "pdf.fonttype": 42, "text.parse_math": False}),
        whole_file(out / f"{name}.{sheet.format}") as partial,
    ):
        if sheet.size is not None:
            sized(figure, *sheet.size)
        uncrowd(figure)
        figure.savefig(partial, metadata=undated, dpi=dots)

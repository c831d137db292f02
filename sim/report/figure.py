"""What all figures share: their colours, size, margins and legends, and logarithmic axes.

Colours are Okabe and Ito's, which people with colour-blindness can tell apart; each schedule also
has its own marker.
"""

import math
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from sim.inputs.units import show
from sim.report.axes import log_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from matplotlib.legend import Legend
    from matplotlib.text import Text

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX*"  # one more than colours, so that what shares a colour differs in its marker
GREY = "#999999"

WIDTH, ABOVE, BELOW, BETWEEN = 7.5, 0.75, 0.65, 0.65  # inches
PANEL = 3.0  # inches of one panel's height


def new_figure(title: str, panels: int = 1, panel: float = PANEL) -> "tuple[Figure, list[Axes]]":
    """Panels below one another. Margins are fixed: working them out takes longer than drawing."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to load, and few runs draw
    from matplotlib.figure import Figure

    height = ABOVE + panel * panels + BETWEEN * (panels - 1) + BELOW
    figure = Figure(figsize=(WIDTH, height), dpi=100)
    FigureCanvasAgg(figure)
    axes = [figure.add_subplot(panels, 1, number + 1) for number in range(panels)]
    figure.subplots_adjust(0.125, BELOW / height, 0.97, 1 - ABOVE / height, hspace=BETWEEN / panel)
    figure.suptitle(title.rstrip(), fontsize=11, y=1 - 0.12 / height, va="top", wrap=True)
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(axis="y", color="#dddddd", linewidth=0.6)
        ax.set_axisbelow(True)
    return figure, axes


LONGEST_NAME = 36  # letters
BESIDE, LETTER, LABELS = 0.5, 0.07, 2.9  # inches left of rows: with none, a letter's, the most
UNDER = 1.05  # inches below the rows, for the axis and a legend of the whole figure


def on_a_line(name: str) -> str:
    """A name without breaks, and cut where it would leave no room for what is drawn."""
    name = name.replace("\n", " ")
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"


def row_figure(
    title: str, labels: list[str], row_inches: float, under: float = UNDER
) -> "tuple[Figure, Axes]":
    """A panel with a line of its own for each label, the first on top; inches `under` it."""
    figure, (ax,) = new_figure(title)
    height = ABOVE + row_inches * len(labels) + under
    figure.set_size_inches(WIDTH, height)
    beside = min(LABELS, BESIDE + LETTER * max(map(len, labels), default=0))
    figure.subplots_adjust(beside / WIDTH, under / height, 0.95, 1 - ABOVE / height)
    ax.grid(axis="y", visible=False)
    ax.grid(axis="x", color="#dddddd", linewidth=0.6)
    ax.set_yticks(range(len(labels)), [*map(on_a_line, labels)], fontsize=8)
    ax.set_ylim(len(labels) - 0.5, -0.5)
    return figure, ax


LEAST_SCALE, SMALLEST_TEXT = 0.75, 6.5  # of texts, lines and markers in a column; points


def sized(figure: "Figure", width: float, height: float) -> None:
    """Fit a figure onto a page: `width` inches wide, of one panel `height` inches high.

    One of more panels or rows is as much taller as it was. Its title goes, as a caption says it;
    texts, lines and markers get smaller, but stay legible; legends stand beside what is drawn.
    """
    from matplotlib.lines import Line2D
    from matplotlib.text import Text

    scale = min(1.0, max(LEAST_SCALE, width / WIDTH))
    figure.set_size_inches(width, height * figure.get_figheight() / (ABOVE + PANEL + BELOW))
    figure.suptitle("")
    for text in figure.findobj(Text):
        text.set_fontsize(max(SMALLEST_TEXT, scale * _points(text)))
    for line in figure.findobj(Line2D):
        line.set_markersize(scale * float(line.get_markersize()))
        line.set_linewidth(scale * float(line.get_linewidth()))
    for legend in figure.legends:
        _in_columns(legend, figure, figure.bbox.width, loc="outside lower center")
    _work_out_margins(figure)


def _put_legend_above(ax: "Axes") -> float:
    """Move a panel's legend above it, where it hides nothing; its inches beyond the first line."""
    from matplotlib.text import Text

    legend = ax.get_legend()
    if legend is None:
        return 0.0
    name = ax.get_title(loc="left")
    beside = [text for text in ax.findobj(Text) if name and text.get_text() == name]
    room = ax.bbox.x1 - max((text.get_window_extent().x1 for text in beside), default=0.0)
    line = legend.get_texts()[0].get_window_extent().height
    height = _in_columns(legend, ax, room, loc="lower right", bbox_to_anchor=(1.0, 1.0))
    if beside and height > 2 * line:  # several lines stand above the name, not beside it
        above = (1.0, 1.0 + 3 * line / ax.bbox.height)
        ax.get_legend().set_bbox_to_anchor(above, ax.transAxes)  # type: ignore[union-attr]
    return (height - 2 * line) / ax.figure.dpi if height > 2 * line else 0.0


def _in_columns(legend: "Legend", of: "Figure | Axes", room: float, **where: Any) -> float:
    """Replace a legend by one of as many columns as have `room` [dots]; its height [dots]."""
    handles = [handle for handle in legend.legend_handles if handle is not None]
    names = [on_a_line(text.get_text()) for text in legend.get_texts()]
    size = _points(legend.get_texts()[0])
    legend.remove()
    for columns in range(len(names), 0, -1):
        fits = of.legend(
            handles, names, ncols=columns, fontsize=size, frameon=False, handlelength=1.6,
            columnspacing=1.2, borderaxespad=0.2, **where,
        )  # fmt: skip
        box = fits.get_window_extent()
        if box.width < room or columns == 1:
            break
        fits.remove()
    return float(box.height)


def _work_out_margins(figure: "Figure") -> None:
    """Have margins as labels and legends need them."""
    figure.suptitle(figure.get_suptitle(), fontsize=11, wrap=True)  # no longer where it was put
    figure.set_layout_engine("constrained", w_pad=0.03, h_pad=0.03)


TURNED = 30.0  # degrees, at least


def uncrowd(figure: "Figure") -> None:
    """Legends stand above what is drawn; names that run into each other are turned, or raised.

    A figure whose margins are as they were drawn grows by what its legends are more than a line.
    """
    figure.draw_without_rendering()
    grows = figure.get_layout_engine() is None
    lines = sum(_put_legend_above(ax) for ax in figure.axes)
    if lines:
        if grows:
            figure.set_figheight(figure.get_figheight() + lines)
        _work_out_margins(figure)
    figure.draw_without_rendering()
    for ax in figure.axes:
        _hide_crowded(ax)
        _raise_overlapping(ax)
        named = [label for label in ax.get_xticklabels() if label.get_text()]
        boxes = sorted((label.get_window_extent() for label in named), key=lambda box: box.x0)
        line = _points(named[0]) * figure.dpi / 72 if named else 0.0
        if all(box.x1 + line / 3 < after.x0 for box, after in pairwise(boxes)):
            continue
        apart = min(after.x1 - box.x1 + after.x0 - box.x0 for box, after in pairwise(boxes)) / 2
        texts = [label.get_text() for label in named]
        if any("\n" in text or len(text) > LONGEST_NAME for text in texts):
            ax.set_xticks(ax.get_xticks(), [on_a_line(text) for text in texts])
        angle = max(TURNED, math.degrees(math.asin(min(1.0, 1.2 * line / max(apart, 1.0)))))
        for label in ax.get_xticklabels():
            label.set(rotation=angle, ha="right", rotation_mode="anchor")
        _work_out_margins(figure)


def _hide_crowded(ax: "Axes") -> None:
    """Figures of a heat map's cells go where they run into each other: colours tell them too."""
    from matplotlib.text import Annotation

    in_cells = [text for text in ax.texts if not isinstance(text, Annotation)]
    boxes = sorted(
        (text.get_window_extent() for text in in_cells), key=lambda box: (box.y0, box.x0)
    )
    if any(box.overlaps(after) for box, after in pairwise(boxes)):
        for text in in_cells:
            text.remove()


def _raise_overlapping(ax: "Axes") -> None:
    """A name that stands on one before it goes up a line and, where that does not help, goes."""
    from matplotlib.text import Annotation

    names = [text for text in ax.texts if isinstance(text, Annotation)]
    boxes: list[Any] = []
    for name in sorted(names, key=lambda text: text.get_window_extent().x0):
        x, y = name.xyann
        for lines in (0.0, 1.3):
            name.xyann = x, y + lines * _points(name)
            box = name.get_window_extent()
            if not any(box.overlaps(other) for other in boxes):
                boxes.append(box)
                break
        else:
            name.remove()


def _points(text: "Text") -> float:
    """The size of a text's letters."""
    return float(text.get_fontsize())


def si_axis(axis: "Axis", label: str, unit: str) -> None:
    """Label an axis whose ticks have decimal prefixes: 20 µs, 1 ms."""
    from matplotlib.ticker import FuncFormatter

    axis.set_label_text(label)
    axis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value, unit)))


def _tick(value: float, unit: str) -> str:
    return show(value, unit) if unit else f"{value:,.12g}"


def log_axis(axis: "Axis", label: str, unit: str = "") -> None:
    """Make an axis logarithmic, which its label says; its few ticks are plain numbers.

    Of a `unit` they have decimal prefixes: 20 µs, 1 ms.
    """
    from matplotlib.ticker import FuncFormatter, Locator, NullLocator

    class Ticks(Locator):
        def __call__(self) -> list[float]:
            return self.tick_values(*sorted(axis.get_view_interval()))

        def tick_values(self, vmin: float, vmax: float) -> list[float]:
            return log_ticks(vmin, vmax)

    ax = axis.axes
    (ax.set_xscale if axis is ax.xaxis else ax.set_yscale)("log")
    axis.set_label_text(f"{label}, log scale")
    axis.set_major_locator(Ticks())
    axis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value, unit)))
    axis.set_minor_locator(NullLocator())

"""Tables of measured figures beside their predictions as one HTML page that opens offline."""

from importlib.metadata import version
from itertools import cycle
from pathlib import Path

from plotly.offline import get_plotlyjs

from sim.inputs.files import save_text
from sim.report.chart import CONFIG, SYMBOLS, Chart, chart, log_axis
from sim.report.figure import COLOURS, GREY
from sim.report.page import script, template
from validate.stick import DRAM, L2, TIME, Judged, Stick
from validate.stick_report import (
    COLUMNS,
    ROW_COLUMNS,
    SPLITS,
    cells,
    chosen_scores,
    in_short,
    left_lines,
    pairs_lines,
    row_cells,
)


def save_stick_page(stick: Stick, title: str, path: Path) -> None:
    """Write the page whole or not at all."""
    save_text(stick_page(stick, title), path)


def stick_page(stick: Stick, title: str) -> str:
    """The page as HTML: the figures as charts and row by row, then families, devices and splits."""
    charts = {}
    for quantity, unit in ((TIME, "s"), (DRAM, "B"), (L2, "B")):
        judged = [one for one in stick.judged if one.quantity == quantity and one.predicted > 0]
        if judged:
            charts[quantity.replace(" ", "_").lower()] = scatter(judged, quantity, unit)
    scored = [
        (split, score)
        for split in SPLITS
        for host in (False, True)
        for score in chosen_scores(stick.scores, split, host)
    ]
    return template("stick_page.html", "validate").render(
        title=title,
        answer=in_short(stick),
        charts=script(charts),
        drawn=list(charts),
        config=script(CONFIG),
        row_columns=ROW_COLUMNS,
        rows=[row_cells(one) for one in stick.judged],
        score_columns=(*COLUMNS[:3], "split", *COLUMNS[3:]),
        scores=[(*cells(score)[:3], split, *cells(score)[3:]) for split, score in scored],
        lines=[*pairs_lines(stick.pairs), *left_lines(stick.left)],
        version=version("attnsim"),
        plotly=get_plotlyjs(),
    )


def scatter(judged: list[Judged], quantity: str, unit: str) -> Chart:
    """Predicted over measured against measured, a trace a family, and the roofline's in grey."""
    families = sorted({one.measured.family for one in judged})
    theirs = [one for one in judged if one.roofline]
    traces = [
        {
            "type": "scatter",
            "mode": "markers",
            "name": "a roofline of the datasheet",
            "x": [one.value for one in theirs],
            "y": [(one.roofline or 0.0) / one.value for one in theirs],
            "marker": {"color": GREY, "size": 5},
            "hoverinfo": "skip",
        }
    ]
    for family, colour, symbol in zip(families, cycle(COLOURS), cycle(SYMBOLS), strict=False):
        own = [one for one in judged if one.measured.family == family]
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": family,
                "x": [one.value for one in own],
                "y": [one.predicted / one.value for one in own],
                "text": ["<br>".join(row_cells(one)) for one in own],
                "hovertemplate": "%{text}<extra></extra>",
                "marker": {"color": colour, "symbol": symbol, "size": 8},
            }
        )
    shares = [one.predicted / one.value for one in judged]
    shares += [(one.roofline or 0.0) / one.value for one in theirs]
    line = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": 1, "y1": 1}
    over = log_axis("predicted over measured", [*shares, 1.0])
    over["ticktext"] = [f"{tick:g}" for tick in over["tickvals"]]
    return chart(
        quantity,
        traces,
        460,
        xaxis=log_axis("measured", [one.value for one in judged], unit),
        yaxis=over,
        shapes=[line],
    )

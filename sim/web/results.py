"""What the page shows of an answer: a sentence, a table, charts."""

from dataclasses import replace
from typing import Any

from dash import dcc, html

from sim.engine.watched import Watched
from sim.inputs.units import show
from sim.report import charts, one_sm, tile_walk
from sim.report.answer import answer as sentence
from sim.report.chart import CONFIG, EMPTY, Chart
from sim.report.notes import notes, rough
from sim.runs.record import Record
from sim.web.desk import Answer, Row

CHARTS = ("time", "traffic", "timeline", "roofline", "memory")


def said(found: Answer) -> str:
    """The answer in a sentence."""
    if not found.rows:
        return "Choose a schedule."
    if not found.ran:
        return "None of these schedules runs here."
    return " ".join([sentence(found.ran), *_against(found)])


def _against(found: Answer) -> list[str]:
    """How long each schedule takes on one device, of what it takes on the other."""
    shares = [
        f"{row.title} {(row.changed.time_s or 0) / row.beside.time_s:.3g}"
        for row in found.rows
        if isinstance(row.changed, Record) and isinstance(row.beside, Record) and row.beside.time_s
    ]
    other = found.names[1]
    told = f"In units of the time on {other}: {', '.join(shares)}."
    return [told] if found.differs and shares else []


def table(found: Answer) -> html.Table:
    """A row a schedule: its figures, and what the changes did to them."""
    of_changes = ["change"] if found.differs else []
    heads = ["schedule", "time", *of_changes, "HBM bytes", *of_changes, "energy", *of_changes]
    rows = [html.Tr([html.Th(head) for head in [*heads, "held back by"]])]
    return html.Table([html.Thead(rows), html.Tbody([_row(r, found.differs) for r in found.rows])])


def beneath(found: Answer) -> list[html.P]:
    """What the changes are beside, and what is to be said of the figures."""
    other = found.names[1]
    lines = [f"Changes are beside {other} as it is."] if found.differs else []
    lines += [
        f"{row.title}, {other}: {row.beside}"
        for row in found.rows
        if isinstance(row.beside, str) and isinstance(row.changed, Record)
    ]
    lines += [*rough(found.ran), *notes(found.ran)]
    return [html.P(line, className="hint") for line in lines]


def _row(row: Row, differs: bool) -> html.Tr:
    if isinstance(row.changed, str):
        return html.Tr([html.Td(row.title), html.Td(row.changed, colSpan=7)], className="failed")
    cells = [row.title]
    beside = row.beside if isinstance(row.beside, Record) else None
    for figure, unit in (("time_s", "s"), ("hbm_bytes", "B"), ("energy_j", "J")):
        value = getattr(row.changed, figure)
        cells.append("" if value is None else show(value, unit))
        if differs:
            cells.append(_change(value, getattr(beside, figure, None)))
    cause, share = next(iter(row.changed.bottleneck_shares.items()))
    return html.Tr([html.Td(cell) for cell in [*cells, f"{cause} {share:.0%}"]])


def _change(value: float | None, before: float | None) -> str:
    if not value or not before:
        return ""
    change = value / before - 1
    return "same" if abs(change) < 5e-4 else f"{change:+.1%}".replace("-", "−")


def drawn(found: Answer) -> list[Chart]:
    """The charts: of both devices where they differ."""
    if not found.ran:
        return [EMPTY] * len(CHARTS)
    own, other = found.names
    records: list[Record] = []
    for row in found.rows:
        sides = [(row.beside, f", {other}"), (row.changed, f", {own}")]
        for record, where in sides if found.differs else [(row.changed, "")]:
            if isinstance(record, Record):
                records.append(replace(record, schedule=row.title + where))
    devices = [found.beside, found.hardware] if found.differs else [found.hardware]
    return [
        charts.time_by_cause(records),
        charts.hbm_traffic(records),
        charts.timeline(records),
        charts.roofline(records, *devices),
        charts.memory(records, *devices),
    ]


def inside(seen: Watched | str) -> list[Any]:
    """What was watched of one SM: in words, over time, and the walk of its loads."""
    if isinstance(seen, str):
        return [html.P(seen)]
    walks = tile_walk.tile_walk(seen)
    return [
        html.P(one_sm.said(seen)),
        _graph("sm", one_sm.one_sm(seen)),
        *([html.P(tile_walk.said(seen))] if walks else []),
        html.Div([_graph(*walk) for walk in walks.items()], className="charts"),
    ]


def _graph(name: str, figure: Chart) -> dcc.Graph:
    height = {"height": figure["layout"]["height"]}
    return dcc.Graph(id=name, figure=figure, config=CONFIG, className="chart", style=height)

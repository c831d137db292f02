"""What the page shows of an answer: a sentence, a table, charts."""

from dataclasses import replace
from typing import Any

from dash import dcc, html

from sim.engine.watched import Watched
from sim.inputs.units import show
from sim.report import charts, one_sm, tile_walk
from sim.report.answer import answer as sentence
from sim.report.notes import notes, rough
from sim.runs.record import Record
from sim.web.desk import Answer, Row

PLOT: Any = {"displaylogo": False, "responsive": True}
CHARTS = ("time", "traffic", "timeline", "roofline", "memory")


def said(found: Answer) -> str:
    """The answer in a sentence."""
    if not found.rows:
        return "Choose a schedule."
    if not found.ran:
        return "None of these schedules runs here."
    return sentence(found.ran)


def table(found: Answer) -> html.Table:
    """A row a schedule: its figures, and what the changes did to them."""
    of_changes = ["change"] if found.differs else []
    heads = ["schedule", "time", *of_changes, "HBM bytes", *of_changes, "energy", *of_changes]
    rows = [html.Tr([html.Th(head) for head in [*heads, "held back by"]])]
    return html.Table([html.Thead(rows), html.Tbody([_row(r, found.differs) for r in found.rows])])


def beneath(found: Answer, profile: str) -> list[html.P]:
    """What the changes are beside, and what is to be said of the figures."""
    lines = [f"Changes are beside {profile} as it is."] if found.differs else []
    lines += [*rough(found.ran), *notes(found.ran)]
    return [html.P(line, className="hint") for line in lines]


def _row(row: Row, differs: bool) -> html.Tr:
    if isinstance(row.changed, str):
        return html.Tr([html.Td(row.title), html.Td(row.changed, colSpan=7)], className="failed")
    cells = [row.title]
    shipped = row.shipped if isinstance(row.shipped, Record) else None
    for figure, unit in (("time_s", "s"), ("hbm_bytes", "B"), ("energy_j", "J")):
        value = getattr(row.changed, figure)
        cells.append("" if value is None else show(value, unit))
        if differs:
            cells.append(_change(value, getattr(shipped, figure, None)))
    cause, share = next(iter(row.changed.bottleneck_shares.items()))
    return html.Tr([html.Td(cell) for cell in [*cells, f"{cause} {share:.0%}"]])


def _change(value: float | None, before: float | None) -> str:
    if not value or not before:
        return ""
    change = value / before - 1
    return "same" if abs(change) < 5e-4 else f"{change:+.1%}".replace("-", "−")


def drawn(found: Answer, profile: str) -> list[charts.Chart]:
    """The charts: bars of both devices where they differ, the rest of the changed one."""
    beside: list[Record] = []
    for row in found.rows:
        sides = [(row.shipped, f", {profile}"), (row.changed, ", changed")]
        for record, where in sides if found.differs else [(row.changed, "")]:
            if isinstance(record, Record):
                beside.append(replace(record, schedule=row.title + where))
    if not found.ran:
        return [charts.EMPTY] * len(CHARTS)
    return [
        charts.time_by_cause(beside),
        charts.hbm_traffic(beside),
        charts.timeline(found.ran),
        charts.roofline(found.ran, found.hardware),
        charts.memory(found.ran, found.hardware),
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


def _graph(name: str, figure: charts.Chart) -> dcc.Graph:
    height = {"height": figure["layout"]["height"]}
    return dcc.Graph(id=name, figure=figure, config=PLOT, className="chart", style=height)

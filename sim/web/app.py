"""The explorer's page: sliders on the left, what comes of them on the right.

Dash, because its pages are the same Plotly charts as the report's, its callbacks hold no state, and
every control is an element that a browser test can find; it brings Flask and little else.
"""

import logging
import socket
import uuid
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from dash import ALL, Dash, Input, Output, State, dcc, html, no_update
from flask import abort, request
from werkzeug.serving import make_server

from sim.inputs.files import InputError, shipped_names
from sim.inputs.hardware import HardwareProfile
from sim.inputs.shapes import MODELS
from sim.inputs.units import show
from sim.report import charts
from sim.report.answer import answer as sentence
from sim.report.table import figure_text
from sim.runs.record import Record
from sim.runs.scenario import ScenarioText, make_scenario
from sim.schedules import SCHEDULES
from sim.web.controls import (
    FIGURES,
    SPAN,
    STEP,
    Controls,
    Figure,
    changes,
    schedule_tables,
    write_files,
)
from sim.web.desk import Answer, Desk, Row

HOST = "127.0.0.1"
WORKLOAD = ("model", "seq_len", "batch", "phase", "causal", "dtype")
CHARTS = ("time", "traffic", "timeline", "roofline", "memory")
LENGTHS = [2**n for n in range(7, 21)]  # tokens
BATCHES = [2**n for n in range(9)]
OWN_SHAPE = "as in the scenario"


class Explorer:
    """A scenario's page: what it starts from, and where it writes files."""

    def __init__(self, text: ScenarioText, out: Path) -> None:
        """Raises InputError for a scenario of several points, or one that cannot be."""
        scenario = make_scenario(text.data, text.name, text.where, text.folder)
        if len(scenario.points) != 1:
            raise InputError(
                f"{text.where}: sweep: the explorer starts from one point, and here are "
                f"{len(scenario.points)}: --set sweep={{}} takes the sweep away, another --set "
                "chooses the point"
            )
        (self.point,) = scenario.points
        self.text, self.title, self.out = text, scenario.title, out
        self.desk = Desk(text)
        self.own_profile = str(text.data["hardware"]["profile"])
        w = self.point.workload
        self.lengths = sorted({*LENGTHS, w.seq_kv})
        self.batches = sorted({*BATCHES, w.batch})
        self.titles = [schedule.title for schedule in self.point.schedules]

    def start(self) -> Controls:
        """Everything as the scenario has it."""
        return Controls(self.own_profile, {}, {}, tuple(self.titles))

    def controls(
        self,
        profile: str,
        positions: list[float],
        workload: dict[str, Any],
        schedules: list[str] | None,
    ) -> Controls:
        """What the page's controls say; `positions` are those of FIGURES."""
        hw = self.desk.profile(profile)
        figures = {
            figure.key: position
            for figure, position in zip(FIGURES, positions, strict=True)
            if position != figure.start(hw)
        }
        return Controls(profile, figures, self._differs(workload), tuple(schedules or ()))

    def workload(
        self, model: str, seq_len: int, batch: int, phase: str, causal: list[str], dtype: str
    ) -> dict[str, Any]:
        """What the workload's controls say, as keys of a scenario."""
        return {
            "model": model,
            "seq_len": self.lengths[seq_len],
            "batch": self.batches[batch],
            "phase": phase,
            "causal": bool(causal),
            "dtype": dtype,
        }

    def _differs(self, controls: dict[str, Any]) -> dict[str, Any]:
        """Of those the keys that are not as in the scenario."""
        w = self.point.workload
        own = {**asdict(w), "model": OWN_SHAPE, "seq_len": w.seq_kv}
        told = self.workload(**controls)
        differs = {key: value for key, value in told.items() if value != own[key]}
        if {"model", "phase"} & differs.keys():  # so that lengths and mask are what is shown
            differs |= {"seq_len": told["seq_len"], "causal": told["causal"]}
        return differs

    def page(self) -> html.Div:
        """The page as it is when it is opened."""
        return html.Div(
            [
                dcc.Store(id="page", data=uuid.uuid4().hex),
                html.Div(self._sidebar(), id="controls"),
                html.Div(self._results(), id="results"),
            ],
            id="explorer",
        )

    def _sidebar(self) -> list[Any]:
        hw = self.point.hardware
        w = self.point.workload
        profiles = list(dict.fromkeys([self.own_profile, *shipped_names("hw_profiles")]))
        device = [figure for figure in FIGURES if not figure.key.startswith("calibration")]
        sustained = [figure for figure in FIGURES if figure.key.startswith("calibration")]
        dtypes = ["fp16", "bf16", "fp8", "fp32"]
        return [
            html.H2("Device"),
            _dropdown("profile", profiles, self.own_profile),
            *(_slider(figure, hw) for figure in device),
            html.P("The tensor rate follows SMs and clock.", className="hint"),
            html.Details(
                [html.Summary("What kernels reach"), *(_slider(one, hw) for one in sustained)]
            ),
            html.Button("Back to the profile", id="reset"),
            html.H2("Workload"),
            _dropdown("model", [OWN_SHAPE, *MODELS], OWN_SHAPE),
            _choice("seq_len", "tokens", self.lengths, w.seq_kv),
            _choice("batch", "batch", self.batches, w.batch),
            dcc.RadioItems(["prefill", "decode", "training"], w.phase, id="phase", inline=True),
            dcc.Checklist(["causal"], ["causal"] if w.causal else [], id="causal"),
            _dropdown("dtype", dtypes, w.dtype),
            html.H2("Schedules"),
            _dropdown("schedules", self.schedules(w.phase, self.titles), self.titles, multi=True),
        ]

    def _results(self) -> list[Any]:
        plot: Any = {"displaylogo": False, "responsive": True}
        return [
            html.Div(
                [
                    html.H1(f"Explored from: {self.title}"),
                    html.Span(id="wrote"),
                    html.Button("Write profile and scenario", id="write"),
                ],
                id="head",
            ),
            html.P(id="answer"),
            html.Div(id="table"),
            html.Div(
                [dcc.Graph(id=name, config=plot, className="chart") for name in CHARTS],
                id="charts",
            ),
        ]

    def show(self, page: str, controls: Controls) -> dict[str, Any]:
        """What the page shows of these controls, or nothing new where it has moved on meanwhile."""
        shown: dict[str, Any] = dict.fromkeys(("answer", "table", *CHARTS), no_update)
        shown["heights"] = [no_update] * len(CHARTS)
        try:
            found = self.desk.ask(page, controls)
        except InputError as error:
            return shown | {"answer": str(error), "table": ""}
        if found is None:
            return shown
        figures = drawn(found, controls.profile)
        return {
            "answer": said(found),
            "heights": [{"height": figure["layout"].get("height", 300)} for figure in figures],
            "table": [table(found), *beneath(found, controls.profile)],
            **dict(zip(CHARTS, figures, strict=True)),
        }

    def schedules(self, phase: str, chosen: list[str] | None) -> list[str]:
        """The titles that may be chosen: of schedules that take the phase, and what is chosen."""
        return [
            title
            for title, table in schedule_tables(self.text.data).items()
            if phase in SCHEDULES[table["name"]].phases or title in (chosen or ())
        ]

    def texts(self, controls: Controls) -> list[str | html.Mark]:
        """What stands beside the sliders of the device's figures."""
        hw = self.desk.profile(controls.profile)
        changed = changes(hw, controls.figures)
        return [_figure_text(figure, hw, changed) for figure in FIGURES]

    def write(self, controls: Controls) -> str:
        """Write the files, and say where they are."""
        try:
            found = self.desk.answer(controls)
            ran = tuple(row.title for row in found.rows if isinstance(row.changed, Record))
            if not ran:
                raise InputError("nothing runs: choose another schedule first")
            hw = self.desk.profile(controls.profile)
            controls = replace(controls, schedules=ran)
            made = write_files(self.text.data, self.text.folder, hw, controls, self.out)
        except InputError as error:
            return str(error)
        return f"attnsim run {made / 'scenario.toml'}"


def _dropdown(name: str, options: list[str], value: Any, multi: bool = False) -> dcc.Dropdown:
    return dcc.Dropdown(options, value, id=name, clearable=False, multi=multi)


def _slider(figure: Figure, hw: HardwareProfile) -> html.Div:
    low, high, step = (0.01, 1.0, 0.01) if figure.share else (-SPAN, SPAN, STEP)
    slider = dcc.Slider(
        low,
        high,
        step,
        value=figure.start(hw),
        marks=None,
        updatemode="drag",
        allow_direct_input=False,
        id={"figure": figure.key},
    )
    text = html.Span(_figure_text(figure, hw, {}), id={"text": figure.key}, className="value")
    return html.Div([html.Label([figure.label, text]), slider], className="slider")


def _choice(name: str, label: str, values: list[int], start: int) -> html.Div:
    """A slider over the values, which stand in order."""
    slider = dcc.Slider(
        0,
        len(values) - 1,
        1,
        value=values.index(start),
        marks=None,
        updatemode="drag",
        allow_direct_input=False,
        id=name,
    )
    text = html.Span(f"{start:,}", id=f"{name}_text", className="value")
    return html.Div([html.Label([label, text]), slider], className="slider")


def _figure_text(figure: Figure, hw: HardwareProfile, changed: dict[str, float]) -> str | html.Mark:
    """A figure's value and, where it differs, marked, how many times the profile's it is."""
    key = figure.key
    if key == "tensor":
        rates = ["fp16", "bf16", "fp8"]
        key = next((f"tensor.{d}" for d in rates if getattr(hw.tensor, d) is not None), "")
        if not key:
            return "none"
    before = hw.figure(key)
    value = changed.get(key, before)
    text = figure_text(key, value)
    if value == before:
        return text
    return html.Mark(text if figure.share else f"{text} (×{value / before:.3g})")


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
    """What the changes are beside, and what fast-forward may have got wrong, where it was used."""
    told = [
        f"{record.schedule} {skipped['time_error']:.1%} of time, "
        f"{skipped['hbm_error']:.1%} of HBM bytes"
        for record in found.ran
        if (skipped := record.fast_forward)
    ]
    lines = [f"Changes are beside {profile} as it is."] if found.differs else []
    if told:
        lines.append(f"Fast-forwarded, with estimated errors: {'; '.join(told)}")
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


def app_of(explorer: Explorer) -> Dash:
    """The page's server, which answers to this computer alone."""
    app = Dash(__name__, title="attnsim explorer", update_title="", assets_folder="assets")
    app.layout = explorer.page

    @app.server.before_request
    def _from_here_only() -> None:
        """Other sites' pages may neither read nor write here, whatever name they gave this host."""
        if request.host.split(":")[0] not in (HOST, "localhost"):
            abort(403)
        origin = request.headers.get("Origin")
        if origin is not None and origin != request.host_url.rstrip("/"):
            abort(403)

    @app.callback(
        Output({"text": ALL}, "children"),
        Output("seq_len_text", "children"),
        Output("batch_text", "children"),
        inputs=_controls(Input),
    )
    def _texts(**controls: Any) -> Any:
        """The figures beside the sliders, at once."""
        told = explorer.controls(**controls)
        workload = explorer.workload(**controls["workload"])
        return explorer.texts(told), f"{workload['seq_len']:,}", f"{workload['batch']:,}"

    @app.callback(
        output={
            "answer": Output("answer", "children"),
            "table": Output("table", "children"),
            "heights": [Output(name, "style") for name in CHARTS],  # else a resize makes them none
            **{name: Output(name, "figure") for name in CHARTS},
        },
        inputs={"page": State("page", "data"), **_controls(Input)},
    )
    def _show(page: str, **controls: Any) -> Any:
        return explorer.show(page, explorer.controls(**controls))

    app.callback(
        Output("schedules", "options"), Input("phase", "value"), Input("schedules", "value")
    )(explorer.schedules)

    @app.callback(
        Output({"figure": ALL}, "value"), Input("reset", "n_clicks"), Input("profile", "value")
    )
    def _reset(_: int | None, profile: str) -> list[float]:
        """All sliders of the device to where they start for a profile."""
        hw = explorer.desk.profile(profile)
        return [figure.start(hw) for figure in FIGURES]

    @app.callback(
        Output("wrote", "children"),
        inputs={"clicks": Input("write", "n_clicks"), "controls": _controls(State)},
        prevent_initial_call=True,
    )
    def _write(clicks: int, controls: dict[str, Any]) -> str:
        return explorer.write(explorer.controls(**controls))

    return app


def _controls(of: type[Input] | type[State]) -> dict[str, Any]:
    """What the page's controls say, by the names of `Explorer.controls`."""
    return {
        "profile": of("profile", "value"),
        "positions": of({"figure": ALL}, "value"),
        "workload": {name: of(name, "value") for name in WORKLOAD},
        "schedules": of("schedules", "value"),
    }


def serve(explorer: Explorer, port: int, ready: Callable[[str], None]) -> None:
    """Serve the page on the loopback interface until interrupted; tells `ready` its address.

    Raises InputError where the port is taken.
    """
    try:
        listening = socket.create_server((HOST, port))
    except (OSError, OverflowError) as error:
        raise InputError(f"--port {port}: cannot be listened on: {error}") from None
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # else it logs every request
    explorer.desk.answer(explorer.start())  # compiles the engine, or reads it from disk
    app = app_of(explorer)
    with listening:
        address = listening.getsockname()[1]
        server = make_server(HOST, address, app.server, threaded=True, fd=listening.fileno())
        ready(f"http://{HOST}:{address}/")
        server.serve_forever()

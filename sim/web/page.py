"""The explorer's page as it is opened: its controls on the left, room for answers on the right."""

import uuid
from typing import Any

from dash import dcc, html

from sim.inputs.files import shipped_names
from sim.inputs.hardware import HardwareProfile
from sim.inputs.models import MODELS
from sim.report.table import figure_text
from sim.web.controls import FIGURES, SPAN, STEP, Controls, Figure, changes
from sim.web.explorer import HEADS, NO_LOOK, OWN_OPTION, OWN_SHAPE, STAGES, TILES, Explorer
from sim.web.results import CHARTS, PLOT


def page_of(explorer: Explorer) -> html.Div:
    """The page as it is when it is opened."""
    return html.Div(
        [
            dcc.Store(id="page", data=uuid.uuid4().hex),
            html.Div(_sidebar(explorer), id="controls"),
            html.Div(_results(explorer), id="results"),
        ],
        id="explorer",
    )


def _sidebar(explorer: Explorer) -> list[Any]:
    hw = explorer.point.hardware
    w = explorer.point.workload
    profiles = list(dict.fromkeys([explorer.own_profile, *shipped_names("hw_profiles")]))
    device = [figure for figure in FIGURES if not figure.key.startswith("calibration")]
    sustained = [figure for figure in FIGURES if figure.key.startswith("calibration")]
    dtypes = ["fp16", "bf16", "fp8", "fp32"]
    return [
        html.H2("Device"),
        _dropdown("profile", profiles, explorer.own_profile),
        *(_slider(figure, hw) for figure in device),
        html.P("The tensor rate follows SMs and clock.", className="hint"),
        html.Details(
            [html.Summary("What kernels reach"), *(_slider(one, hw) for one in sustained)]
        ),
        html.Button("Back to the profile", id="reset"),
        html.H2("Workload"),
        _dropdown("model", [OWN_SHAPE, *MODELS], OWN_SHAPE),
        _choice("seq_len", "tokens", explorer.lengths, w.seq_kv),
        _choice("batch", "batch", explorer.batches, w.batch),
        dcc.RadioItems(["prefill", "decode", "training"], w.phase, id="phase", inline=True),
        dcc.Checklist(["causal"], ["causal"] if w.causal else [], id="causal"),
        _dropdown("dtype", dtypes, w.dtype),
        _labelled("heads", _dropdown("heads", [OWN_SHAPE, *HEADS], OWN_SHAPE)),
        _labelled("KV heads", _dropdown("kv_heads", [OWN_SHAPE, *HEADS], OWN_SHAPE)),
        html.H2("Schedules"),
        _dropdown(
            "schedules", explorer.schedules(w.phase, explorer.titles), explorer.titles, multi=True
        ),
        _labelled("tile, queries × keys", _dropdown("tile", [OWN_OPTION, *TILES], OWN_OPTION)),
        _labelled("stages", _dropdown("stages", [OWN_OPTION, *STAGES], OWN_OPTION)),
    ]


def _results(explorer: Explorer) -> list[Any]:
    return [
        html.Div(
            [
                html.H1(f"Explored from: {explorer.title}"),
                html.Span(id="wrote"),
                html.Button("Write profile and scenario", id="write"),
            ],
            id="head",
        ),
        html.P(id="answer"),
        html.Div(id="table"),
        html.Div(
            [dcc.Graph(id=name, config=PLOT, className="chart") for name in CHARTS],
            id="charts",
        ),
        html.H2("Inside one SM"),
        html.Div(
            _labelled("look", _dropdown("look", [NO_LOOK, *explorer.titles], NO_LOOK)),
            className="short",
        ),
        html.Div(id="inside"),
    ]


def _labelled(label: str, control: Any) -> html.Div:
    return html.Div([html.Label(label), control], className="slider")


def _dropdown(name: str, options: list[Any], value: Any, multi: bool = False) -> dcc.Dropdown:
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


def texts_of(explorer: Explorer, controls: Controls) -> list[str | html.Mark]:
    """What stands beside the sliders of the device's figures."""
    hw = explorer.desk.profile(controls.profile)
    changed = changes(hw, controls.figures)
    return [_figure_text(figure, hw, changed) for figure in FIGURES]


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

"""The explorer's server: what the page's controls ask is answered, to this computer alone.

Dash, because its pages are the same Plotly charts as the report's, its callbacks hold no state, and
every control is an element that a browser test can find; it brings Flask and little else.
"""

import logging
import socket
from collections.abc import Callable
from typing import Any

from dash import ALL, Dash, Input, Output, State, html, no_update
from dash.exceptions import DependencyException
from flask import Flask, Response, abort, request
from werkzeug.serving import make_server

from sim.inputs.files import InputError
from sim.web.controls import FIGURES, Controls, schedule_tables
from sim.web.explorer import NO_LOOK, Explorer
from sim.web.link import now, query_of
from sim.web.page import opening, page_of, texts_of
from sim.web.requests import MOST_BYTES, Requests
from sim.web.results import CHARTS, beneath, drawn, inside, said, table

HOST = "127.0.0.1"
WORKLOAD = ("model", "seq_len", "batch", "phase", "causal", "dtype", "heads", "kv_heads")


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


def app_of(explorer: Explorer) -> Dash:
    """The page and what its controls do."""
    app = Dash(
        __name__,
        title="attnsim explorer",
        update_title="",
        assets_folder="assets",
        suppress_callback_exceptions=True,  # the page is made by a callback
    )
    app.layout = opening()
    _refuse_others(app.server)
    _open(app, explorer)
    _answer(app, explorer)
    _keep_together(app, explorer)
    _refuse_what_no_page_asks(app, explorer)
    return app


def _open(app: Dash, explorer: Explorer) -> None:
    """The page by its address's query, and the address by what the page's controls say."""
    app.clientside_callback("() => location.search", Output("query", "data"), Input("whole", "id"))

    @app.callback(Output("whole", "children"), Input("query", "data"), prevent_initial_call=True)
    def _page(query: str) -> Any:
        return page_of(explorer, query)

    @app.callback(
        Output("link", "data"),
        inputs={"look": Input("look", "value"), "controls": _controls(Input)},
        prevent_initial_call=True,
    )
    def _link(look: str, controls: dict[str, Any]) -> str:
        return query_of(explorer, now(explorer, controls, look))

    app.clientside_callback(
        "query => { history.replaceState(null, '', location.pathname + query); }",
        Input("link", "data"),
        prevent_initial_call=True,
    )


def _refuse_others(server: Flask) -> None:
    """Other sites' pages may neither read nor write here, whatever name they gave this host."""

    @server.before_request
    def _from_here_only() -> None:
        if request.host.split(":")[0] not in (HOST, "localhost"):
            abort(403)
        origin = request.headers.get("Origin")
        if origin is not None and origin != request.host_url.rstrip("/"):
            abort(403)


def _refuse_what_no_page_asks(app: Dash, explorer: Explorer) -> None:
    """One line, and 400, as where a profile's file is gone; 404 for a script that is not there."""
    app.server.config["MAX_CONTENT_LENGTH"] = MOST_BYTES
    titles = schedule_tables(explorer.text.data)
    requests = Requests(html.Div([opening(), page_of(explorer)]), app.callback_map, titles)

    @app.server.before_request
    def _as_the_page_does() -> None:
        if request.method == "POST":
            try:
                body = request.get_json()
            except RecursionError:
                raise InputError("tables and lists nested too deep") from None
            requests.check(body)

    @app.server.errorhandler(InputError)
    def _cannot_be(error: InputError) -> Response:
        return Response(f"{error}\n", 400, mimetype="text/plain")

    @app.server.errorhandler(DependencyException)
    def _no_script(error: DependencyException) -> Response:
        return Response(f"{InputError(error)}\n", 404, mimetype="text/plain")


def _answer(app: Dash, explorer: Explorer) -> None:
    """What comes of the controls: charts as these move, files at the press of a button."""

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
        return _shown(explorer, page, explorer.controls(**controls))

    @app.callback(
        Output("inside", "children"),
        inputs={
            "page": State("page", "data"),
            "look": Input("look", "value"),
            "controls": _controls(Input),
        },
    )
    def _look(page: str, look: str, controls: dict[str, Any]) -> Any:
        told = explorer.controls(**controls)
        if look not in told.schedules:
            return []
        try:
            seen = explorer.desk.look(page, told, look)
        except InputError as error:
            return str(error)
        return no_update if seen is None else inside(seen)

    @app.callback(
        Output("wrote", "children"),
        inputs={"clicks": Input("write", "n_clicks"), "controls": _controls(State)},
        prevent_initial_call=True,
    )
    def _write(clicks: int, controls: dict[str, Any]) -> str:
        return explorer.write(explorer.controls(**controls))


def _keep_together(app: Dash, explorer: Explorer) -> None:
    """What controls do to each other and to the figures beside them."""

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
        return texts_of(explorer, told), f"{workload['seq_len']:,}", f"{workload['batch']:,}"

    app.callback(
        Output("schedules", "options"), Input("phase", "value"), Input("schedules", "value")
    )(explorer.schedules)

    @app.callback(Output("look", "options"), Input("schedules", "value"))
    def _looks(chosen: list[str] | None) -> list[str]:
        """What one may look into."""
        return [NO_LOOK, *(chosen or ())]

    @app.callback(
        Output({"figure": ALL}, "value"),
        Input("reset", "n_clicks"),
        Input("profile", "value"),
        prevent_initial_call=True,  # the page has them where its address says
    )
    def _reset(_: int | None, profile: str) -> list[float]:
        """All sliders of the device to where they start for a profile."""
        hw = explorer.desk.profile(profile)
        return [figure.start(hw) for figure in FIGURES]


def _controls(of: type[Input] | type[State]) -> dict[str, Any]:
    """What the page's controls say, by the names of `Explorer.controls`."""
    return {
        "profile": of("profile", "value"),
        "positions": of({"figure": ALL}, "value"),
        "workload": {name: of(name, "value") for name in WORKLOAD},
        "schedules": of("schedules", "value"),
        "tile": of("tile", "value"),
        "stages": of("stages", "value"),
        "beside": of("beside", "value"),
    }


def _shown(explorer: Explorer, page: str, controls: Controls) -> dict[str, Any]:
    """What the page shows of these controls, or nothing new where it has moved on meanwhile."""
    shown: dict[str, Any] = dict.fromkeys(("answer", "table", *CHARTS), no_update)
    shown["heights"] = [no_update] * len(CHARTS)
    try:
        found = explorer.desk.ask(page, controls)
    except InputError as error:
        return shown | {"answer": str(error), "table": ""}
    if found is None:
        return shown
    figures = drawn(found)
    return {
        "answer": said(found),
        "heights": [{"height": figure["layout"].get("height", 300)} for figure in figures],
        "table": [table(found), *beneath(found)],
        **dict(zip(CHARTS, figures, strict=True)),
    }

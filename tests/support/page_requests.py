"""What the explorer's page asks, as its browser sends it."""

from typing import Any

from dash import Dash, html

from sim.web.explorer import Explorer
from sim.web.page import opening, page_of
from sim.web.requests import Requests


def bodies(app: Dash, explorer: Explorer) -> list[dict[str, Any]]:
    """A request of each kind, its controls as they are when the page is opened."""
    page = html.Div([opening(), page_of(explorer)])
    requests = Requests(page, app.callback_map, ())
    says = {str(part.id): part for part in page._traverse() if hasattr(part, "id")}
    says["query"].data = ""  # of an address without one

    def sent(entry: Any, value: bool = True) -> Any:
        if isinstance(entry, list):
            return [sent(one, value) for one in entry]
        part = says[str(entry["id"])]
        return {**entry, "value": getattr(part, entry["property"], None)} if value else entry

    def body(output: str, callback: Any) -> dict[str, Any]:
        several = callback["output"] if isinstance(callback["output"], list) else None
        outputs = [requests.expanded(one.to_dict()) for one in several or [callback["output"]]]
        inputs, state = (
            [sent(requests.expanded(one)) for one in callback[key]] for key in ("inputs", "state")
        )
        first = callback["inputs"][0]
        return {
            "output": output,
            "outputs": outputs if several else outputs[0],
            "inputs": inputs,
            "changedPropIds": [f"{first['id']}.{first['property']}"],
            "state": state,
        }

    return [body(*one) for one in app.callback_map.items() if "callback" in one[1]]

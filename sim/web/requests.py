"""What a request may ask: what the page's controls can say, as the page asks it, and nothing else.

Dash looks for neither, so that whatever a program sends would reach the simulator, or break on the
way.
"""

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from dash import dcc, html
from dash.development.base_component import Component

from sim.inputs.files import InputError, shown
from sim.web.explorer import NO_LOOK

MOST_BYTES = 2**20  # of a request
_LONGEST_ID = 64  # of a page
_LONGEST_QUERY = 2**13  # of an address
MaySay = Callable[[Any], bool]
Entry = Mapping[str, Any]  # of a request: a control's id and property, and what it says


class Requests:
    """Those that a page may send, by its components and what Dash is to answer."""

    def __init__(
        self,
        page: Component,
        callbacks: Mapping[str, Mapping[str, Any]],
        titles: Collection[str],
    ) -> None:
        """`titles` are those of all schedules, of which the page shows some at a time."""
        self._callbacks = callbacks
        self._may_say: dict[str, MaySay] = {}
        for part in _parts(page):
            if hasattr(part, "id"):
                self._may_say[_name(part.id)] = _may_say(part)
        self._may_say["schedules"] = _some_of(titles)
        self._may_say["query"] = _a_text(_LONGEST_QUERY)
        self._may_say["look"] = lambda v: isinstance(v, str) and v in (NO_LOOK, *titles)

    def check(self, body: Any) -> None:
        """Raises InputError for a body that no page sends."""
        if not isinstance(body, dict) or not isinstance(body.get("output"), str):
            raise InputError("output: what the page is to show was expected")
        callback = self._callbacks.get(body["output"])
        if callback is None or "callback" not in callback:  # without, the browser answers it itself
            raise InputError(f"output = {shown(body['output'])}: the page has none such")
        for key, declared in (("inputs", callback["inputs"]), ("state", callback["state"])):
            given = body.get(key, [])
            asked = [self.expanded(entry) for entry in declared]
            if not _same(given, asked):
                raise InputError(f"{key}: the controls of the page were expected, in their order")
            for one in _flat(given):
                if not self._may_say[_name(one["id"])](one.get("value")):
                    name, value = _name(one["id"]), shown(one.get("value"))
                    raise InputError(f"{name} = {value}: the page's control cannot say so")
        output = callback["output"]
        several = output if isinstance(output, list) else [output]
        outputs = [self.expanded(one.to_dict()) for one in several]
        if not _same(body.get("outputs"), outputs if isinstance(output, list) else outputs[0]):
            raise InputError("outputs: those of the page were expected")
        changed = body.get("changedPropIds", [])
        if not isinstance(changed, list) or not all(isinstance(one, str) for one in changed):
            raise InputError("changedPropIds: names of controls were expected")

    def expanded(self, declared: Entry) -> Any:
        """What stands for it in a request: an entry, or one for each control of a kind."""
        if not declared["id"].startswith("{"):
            return dict(declared)
        (kind,) = json.loads(declared["id"])
        ids = [json.loads(name) for name in self._may_say if name.startswith("{")]
        return [{**declared, "id": one} for one in ids if kind in one]


def _parts(part: Any) -> Iterator[Component]:
    """A component and all within it."""
    if isinstance(part, list):
        for one in part:
            yield from _parts(one)
    elif isinstance(part, Component):
        yield part
        yield from _parts(getattr(part, "children", None))


def _name(of: Any) -> str:
    """An id that is a table, as text."""
    return of if isinstance(of, str) else json.dumps(of, sort_keys=True)


def _may_say(part: Component) -> MaySay:
    """Whether a control can say a value."""
    options: Any = getattr(part, "options", ())
    if isinstance(part, dcc.Slider):
        low, high, step = (getattr(part, key) for key in ("min", "max", "step"))
        kinds = (int,) if step == 1 else (int, float)  # of steps of 1: places in a list
        return lambda v: type(v) in kinds and low <= v <= high
    if isinstance(part, dcc.Checklist) or getattr(part, "multi", False):
        return _some_of(options)
    if isinstance(part, dcc.Dropdown | dcc.RadioItems):
        return lambda v: type(v) in (str, int) and v in options
    if isinstance(part, html.Button):
        return lambda v: v is None or (type(v) is int and v >= 0)
    return _a_text(_LONGEST_ID)


def _a_text(most: int) -> MaySay:
    return lambda v: isinstance(v, str) and len(v) <= most


def _some_of(options: Collection[str]) -> MaySay:
    def may_say(value: Any) -> bool:
        if value is None:
            return True
        return (
            isinstance(value, list)
            and all(isinstance(one, str) and one in options for one in value)
            and len(set(value)) == len(value)
        )

    return may_say


def _same(given: Any, asked: Any) -> bool:
    """Whether the request has the entries that it should have, whatever they say."""
    if isinstance(asked, list):
        return (
            isinstance(given, list)
            and len(given) == len(asked)
            and all(_same(*both) for both in zip(given, asked, strict=True))
        )
    return isinstance(given, dict) and {k: given.get(k) for k in asked} == asked


def _flat(entries: list[Any]) -> Iterator[Entry]:
    for one in entries:
        yield from one if isinstance(one, list) else [one]

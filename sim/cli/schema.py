"""`attnsim schema`: what a file may say, as JSON Schema, so that editors complete and check TOML.

Made from the models that check the files. A schema knows keys, types, units and names; what goes
together only the parser knows. Those of this version are shipped (schemas/), and shipped files name
theirs in a first line `#:schema`, for which Taplo and VS Code's Even Better TOML look.
"""

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from pydantic import BaseModel

Kind = Literal["scenario", "profile", "campaign"]
Schema = dict[str, Any]
DIALECT = "http://json-schema.org/draft-07/schema#"  # the one that Taplo understands
PREFIX = "#/$defs/"


def schema(kind: Annotated[Kind, typer.Argument(help="Of which files.")]) -> None:
    """Print the JSON Schema of scenarios, profiles or campaigns, for an editor."""
    print(text_of(kind), end="")


def text_of(kind: Kind) -> str:
    """The schema of a kind of files as JSON, which ends with a newline."""
    return json.dumps(schema_of(kind), indent=1, ensure_ascii=False) + "\n"


def schema_of(kind: Kind) -> Schema:
    """The schema of a kind of files, and of the tables in them."""
    defs = _defs()
    file = {"scenario": _scenario, "profile": _profile, "campaign": _campaign}[kind](defs)
    used = _used(file, defs)
    return {"$schema": DIALECT, **file, "$defs": {name: defs[name] for name in sorted(used)}}


def _models() -> "tuple[type[BaseModel], ...]":
    """What checks files and the tables in them, but for schedules."""
    from sim.explore.search import SearchTable
    from sim.inputs.axes import Range, Sample
    from sim.inputs.hardware import HardwareProfile
    from sim.inputs.workload import WorkloadTable
    from sim.runs.scenario import ScenarioFile
    from sim.whole_model.asked import PricedHardware
    from sim.whole_model.fit import FitFile, FitRow
    from sim.whole_model.model import ModelFile
    from sim.whole_model.serving import ServingFile
    from validate.campaign import CampaignFile

    whole = (ScenarioFile, FitFile, ModelFile, ServingFile, CampaignFile)
    tables = (WorkloadTable, HardwareProfile, PricedHardware, FitRow, SearchTable, Range, Sample)
    return (*whole, *tables)


def _defs() -> dict[str, Schema]:
    """Schemas of all tables, of `Schedule` (any of them) and of `Hardware` (a scenario's)."""
    from pydantic.json_schema import GenerateJsonSchema, models_json_schema

    from sim.inputs.files import shipped_names
    from sim.schedules import SCHEDULES

    class WithoutTitles(GenerateJsonSchema):
        """Without keys' names in other letters."""

        def field_title_should_be_set(self, schema: Any) -> bool:
            return False

    refs, generated = models_json_schema(
        [(model, "validation") for model in (*_models(), *SCHEDULES.values())],
        ref_template=PREFIX + "{model}",
        schema_generator=WithoutTitles,
    )
    defs: dict[str, Schema] = generated["$defs"]
    for node in _nodes(defs):
        if node.get("type") == "string" and not isinstance(node.get("default", ""), str):
            del node["default"]  # a quantity's, which has lost its unit
        for bound, limit in (("ge", "minimum"), ("le", "maximum")):
            if bound in node:  # of a count that may be a text, too: pydantic leaves it as it is
                whole = next(one for one in node["anyOf"] if one["type"] == "integer")
                whole[limit] = node.pop(bound)
    kinds = [refs[kind, "validation"] for kind in SCHEDULES.values()]
    for kind in kinds:
        defs[_name(kind)]["required"] = ["name"]
    names: Schema = {"enum": [*SCHEDULES]}
    own = {"properties": {"name": {"type": "string", "pattern": r"\.py:"}}, "required": ["name"]}
    defs["Schedule"] = {"anyOf": [*kinds, {"type": "object", **own}]}
    defs["ScheduleOrName"] = {"anyOf": [names, _ref("Schedule")]}
    defs["ProfileName"] = {"anyOf": [{"enum": shipped_names("hw_profiles")}, {"type": "string"}]}
    defs["Axis"] = {"anyOf": [{"type": "array", "minItems": 1}, _ref("Range")]}
    for name in _used(_ref("HardwareProfile"), defs):  # figures stand in parents, or elsewhere
        defs[name].pop("required", None)
    defs["Hardware"] = dict(defs["HardwareProfile"])
    defs["Hardware"]["properties"] = {
        "profile": {"anyOf": [_ref("ProfileName"), {"type": "integer"}]},  # 4090
        **defs["PricedHardware"]["properties"],
        **defs["HardwareProfile"]["properties"],
    }
    return defs


def _scenario(defs: dict[str, Schema]) -> Schema:
    """Any kind of question, told by the tables that it has."""
    of_schedules, fits = defs["ScenarioFile"]["properties"], defs["FitFile"]["properties"]
    of_schedules["workload"], of_schedules["hardware"] = _ref("WorkloadTable"), _ref("Hardware")
    of_schedules["schedule"]["items"] = _ref("Schedule")
    of_schedules["sweep"] = _swept(defs)
    of_schedules["search"] = _ref("SearchTable")
    defs["SearchTable"]["properties"]["space"]["additionalProperties"] = _ref("Axis")

    row = defs["FitRow"]
    row.pop("required")  # what `defaults` may have
    cards = {"type": "array", "items": _ref("ProfileName"), "minItems": 1}
    row["properties"]["hardware"] = {"anyOf": [_ref("ProfileName"), cards]}
    fits["defaults"], fits["fit"]["items"] = _ref("FitRow"), _ref("FitRow")
    for name in ("ModelFile", "ServingFile"):
        stated = {"required": ["profile"]}  # which nothing can sweep here
        defs[name]["properties"]["hardware"] = {"allOf": [_ref("Hardware"), stated]}
    for table, key in (
        ("FitRow", "schedule"),
        ("ModelTable", "schedule"),
        ("ServingTable", "prefill"),
        ("ServingTable", "decode"),
    ):
        defs[table]["properties"][key] = _ref("ScheduleOrName")
    files = ("ScenarioFile", "FitFile", "ModelFile", "ServingFile")
    return {"title": "A scenario of attnsim", "anyOf": [_ref(name) for name in files]}


def _profile(defs: dict[str, Schema]) -> Schema:
    """A device's, or an architecture's: figures that the file or a parent of it states."""
    profile = defs["HardwareProfile"]
    properties = {"extends": _ref("ProfileName"), **profile["properties"]}
    return {**profile, "title": "A hardware profile of attnsim", "properties": properties}


def _campaign(defs: dict[str, Schema]) -> Schema:
    """What to measure."""
    group = defs["Group"]["properties"]
    group["workload"], group["cases"]["items"] = _ref("WorkloadTable"), _ref("WorkloadTable")
    group["schedules"]["items"] = _ref("Schedule")
    return {**defs["CampaignFile"], "title": "A campaign of attnsim"}


def _swept(defs: dict[str, Schema]) -> Schema:
    """A `[sweep]` table: an axis for any key of the file, in quotation marks or not; a sample."""
    tables = {"workload": defs["WorkloadTable"], "hardware": defs["Hardware"]}
    keys = [key for name, table in tables.items() for key in _keys(name, table, defs)]
    unquoted: dict[str, Any] = {}
    for key in keys:
        *path, last = key.split(".")
        here = unquoted
        for part in path:
            here = here.setdefault(part, {})
        here[last] = _ref("Axis")
    below = {name: _axes_below(inner) for name, inner in unquoted.items()}
    below |= {name: {"type": "object", "minProperties": 1} for name in ("schedule", "limits")}
    return {
        "type": "object",
        "properties": {"sample": _ref("Sample"), **{key: _ref("Axis") for key in keys}, **below},
        "patternProperties": {r"^(schedule|limits)\..": _ref("Axis")},
        "additionalProperties": False,
    }


def _axes_below(tree: Mapping[str, Any]) -> Schema:
    """A table of axes and of such tables: what TOML makes of keys with dots."""
    if "$ref" in tree:
        return dict(tree)
    inner = {key: _axes_below(below) for key, below in tree.items()}
    return {
        "type": "object",
        "properties": inner,
        "additionalProperties": False,
        "minProperties": 1,
    }


def _keys(name: str, table: Schema, defs: dict[str, Schema]) -> Iterator[str]:
    """The dotted keys of a table's figures."""
    for key, value in table["properties"].items():
        inner = [node for node in (value, *value.get("anyOf", [])) if "$ref" in node]
        tables = [defs[_name(node)] for node in inner]
        below = [one for one in tables if "properties" in one]
        if below:
            yield from _keys(f"{name}.{key}", below[0], defs)
        elif key != "source":
            yield f"{name}.{key}"


def _ref(name: str) -> Schema:
    return {"$ref": PREFIX + name}


def _name(ref: Schema) -> str:
    return str(ref["$ref"]).removeprefix(PREFIX)


def _nodes(node: Any) -> Iterator[Schema]:
    """All objects in a schema."""
    if isinstance(node, Mapping):
        yield node if isinstance(node, dict) else dict(node)
    inner = node.values() if isinstance(node, Mapping) else node if isinstance(node, list) else ()
    for value in inner:
        yield from _nodes(value)


def _used(node: Schema, defs: dict[str, Schema]) -> set[str]:
    """The names of the tables that a schema refers to, and those that these do."""
    found: set[str] = set()
    waiting: list[Any] = [node]
    while waiting:
        names = {_name(one) for one in _nodes(waiting.pop()) if "$ref" in one} - found
        found |= names
        waiting += [defs[name] for name in names]
    return found

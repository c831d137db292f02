"""MkDocs hook: pages that are made from the code, and those that stand outside docs/.

Nothing in the reference is written by hand: commands come from Typer, schedules and keys from the
models that check files, fields from the dataclasses of results.
"""

import inspect
import re
from collections.abc import Iterable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

import sim
from sim.cli.commands import app
from sim.cli.schema import schema_of
from sim.report import plots
from sim.runs.record import Asked, InMemory, KernelResult, Record, Timeline
from sim.schedules import SCHEDULES

ROOT = Path(__file__).parents[1]
OUTSIDE = {
    "index.md": "README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages."""
    for page, source in OUTSIDE.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=text.replace("](docs/", "](")))
    for name, made in PAGES.items():
        files.append(File.generated(config, f"reference/{name}.md", content=made()))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links to what stands outside docs/ go to its page."""
    for page, source in OUTSIDE.items():
        markdown = re.sub(rf"\]\((\.\./)?{source}", f"]({page}", markdown)
    return markdown.replace("[CITATION.cff](CITATION.cff)", "`CITATION.cff`")


def table(columns: str, rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table; a row's cells in one line each."""
    lines = [columns, "|".join("---" for _ in columns.split("|"))]
    lines += [" | ".join(" ".join(c.split()).replace("|", "\\|") for c in row) for row in rows]
    return "\n" + "\n".join(f"| {line} |" for line in lines) + "\n"


def commands() -> str:
    """Every command, what it takes and what each option means."""
    return "# Commands\n" + "".join(_commands("attnsim", typer.main.get_command(app)))


def _commands(name: str, command: Any) -> Iterator[str]:
    takes = [p for p in command.params if p.name != "help"]
    if command.callback is not None and not getattr(command, "no_args_is_help", False):
        yield f"\n## {name}\n\n{inspect.cleandoc(command.help or '')}\n"
        if takes:
            yield table("option|meaning|default", map(_parameter, takes))
    for part, inner in getattr(command, "commands", {}).items():
        yield from _commands(f"{name} {part}", inner)


def _parameter(parameter: Any) -> tuple[str, str, str]:
    names = parameter.opts if parameter.param_type_name == "option" else [parameter.name.upper()]
    default = parameter.default
    plain = isinstance(default, str | int | float) and not isinstance(default, bool)
    shown = f"`{default}`" if plain else ""
    return ", ".join(f"`{name}`" for name in names), getattr(parameter, "help", "") or "", shown


def schedules() -> str:
    """Every schedule: what it is, its options, and its module's algorithm box."""
    text = "# Schedules\n\nWhat a `[[schedule]]` table of a scenario may name, and its options.\n"
    tables = schema_of("scenario")["$defs"]
    for name, kind in SCHEDULES.items():
        text += f"\n## {name}\n\n{kind.summary}\n\n- phases: {', '.join(kind.phases)}\n"
        text += f"- masks: {', '.join(kind.masks)}\n- source: {kind.source}\n"
        text += f"\n{_keys(tables[kind.__name__])}"
        box = inspect.getdoc(inspect.getmodule(kind)) or ""
        indented = "\n".join(f"    {line}".rstrip() for line in box.splitlines())
        text += f'\n??? note "The algorithm"\n\n{indented}\n'
    return text


def scenario() -> str:
    """Every table of scenario files, from the schema that editors read."""
    elsewhere = {kind.__name__ for kind in SCHEDULES.values()} | {"Hardware"}
    elsewhere |= schema_of("profile")["$defs"].keys()
    text = (
        "# Keys of a scenario\n\nAs editors know them (`attnsim schema scenario`). `[hardware]` "
        "has `profile` and any [key of a profile](profile.md), `[[schedule]]` the "
        "[options of its schedule](schedules.md).\n"
    )
    return text + _tables(schema_of("scenario"), elsewhere)


def profile() -> str:
    """Every table of profiles, from the schema that editors read."""
    text = (
        "# Keys of a profile\n\nAs editors know them (`attnsim schema profile`); `attnsim profiles "
        "show NAME` has a shipped profile's figures with their sources.\n"
    )
    schema = schema_of("profile")
    return f"{text}\n## The file\n\n{_keys(schema)}{_tables(schema, {'ProfileName'})}"


def _tables(schema: dict[str, Any], elsewhere: Iterable[str]) -> str:
    tables = {name: one for name, one in sorted(schema["$defs"].items()) if "properties" in one}
    return "".join(
        f"\n## {name}\n\n{_keys(tables[name])}" for name in tables if name not in elsewhere
    )


def _keys(schema: dict[str, Any]) -> str:
    """What a table is, and its keys."""
    needed = schema.get("required", ())
    rows = [
        (f"`{key}`", _values(value), "needed" if key in needed else _given(value))
        for key, value in schema["properties"].items()
        if key not in ("label", "name", "source")  # every schedule's, every section's
    ]
    return f"{schema.get('description', '')}\n" + (table("key|what|default", rows) if rows else "")


def _values(value: dict[str, Any]) -> str:
    """What may stand under a key."""
    for several in ("anyOf", "oneOf", "allOf"):
        if several in value:
            kinds = [_values(one) for one in value[several] if one.get("type") != "null"]
            return " or ".join(dict.fromkeys(kinds))
    if "$ref" in value:
        return value["$ref"].rsplit("/", 1)[-1]
    if "enum" in value or "const" in value:
        return ", ".join(f"`{one}`" for one in value.get("enum", [value.get("const")]))
    if value.get("type") == "array":
        return f"list of {_values(value.get('items', {})) or 'values'}"
    return value.get("description") or str(value.get("type", "table"))


def _given(value: dict[str, Any]) -> str:
    return "" if value.get("default") in (None, {}, []) else f"`{value['default']}`"


def record() -> str:
    """Every field of results, with the docstrings that explain them."""
    text = "# Fields of a record\n\nOf `results.json`, and of what `sim.simulate` returns.\n"
    for kind in (Record, KernelResult, Timeline, Asked):
        text += f"\n## {kind.__name__}\n\n{inspect.getdoc(kind)}\n"
        text += table("field|kind", ((f"`{f.name}`", f"`{_text(f.type)}`") for f in fields(kind)))
        own = [m for m in vars(kind).items() if isinstance(m[1], property)]
        text += (
            table("worked out of these|what", ((f"`{k}`", inspect.getdoc(p) or "") for k, p in own))
            if own
            else ""
        )
    text += f"\n## InMemory\n\n{inspect.getdoc(InMemory)}\n"
    return text + table(
        "field|kind", ((f"`{k}`", f"`{_text(v)}`") for k, v in InMemory.__annotations__.items())
    )


def _text(annotation: Any) -> str:
    return re.sub(r"(\w+\.)+", "", inspect.formatannotation(annotation))


def python() -> str:
    """What `sim` offers to Python."""
    text = "# Python\n\n`from sim import ...`\n"
    drawn = {
        f"plots.{name}": getattr(plots, name)
        for name in ("time", "traffic", "roofline", "utilisation", "memory")
    }
    offered = {
        name: getattr(sim, name)
        for name in ("simulate", "sweep", "Records", "load_profile", "InputError")
    }
    for name, one in (offered | drawn).items():
        text += f"\n## {name}\n\n"
        if inspect.isfunction(one):
            signature = re.sub(r"([a-z_]+[.])+", "", str(inspect.signature(one)))
            text += f"```python\n{name}{signature}\n```\n\n"
        doc = inspect.getdoc(one) or ""
        text += re.sub(r"(?m)^(>>>(?:.|\n)*)", r"```pycon\n\1\n```", doc) + "\n"
    return text


PAGES = {
    "commands": commands,
    "schedules": schedules,
    "scenario": scenario,
    "profile": profile,
    "record": record,
    "python": python,
}

"""Models by name (models.toml), or by a hub's `config.json` that a user has."""

import tomllib
from collections.abc import Mapping
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, WithJsonSchema

from sim.inputs.files import InputError, file_of, meant
from sim.inputs.hub_config import config_of, read_config
from sim.inputs.shapes import ModelShape

TABLES = "models.toml"
PUBLISHED = ("parameters", "active_parameters")  # which a table may state beside a config's keys


def _published(name: str, table: dict[str, Any]) -> ModelShape:
    """The shape that a table of models.toml tells."""
    shape = config_of(table, f"{TABLES}: {name}").shape(name, table["source"])
    stated = {key: table[key] for key in PUBLISHED if key in table}
    return replace(shape, **stated)


def _read() -> dict[str, ModelShape]:
    text = resources.files(__package__).joinpath(TABLES).read_text(encoding="utf-8")
    return {name: _published(name, table) for name, table in tomllib.loads(text).items()}


MODELS = _read()
MODELS["llama-3-405b"] = MODELS["llama-3.1-405b"]  # the name that people often use


def is_config(model: str) -> bool:
    """Whether that is the path of a config.json, and no name."""
    return model.endswith(".json")


def with_models_found(tables: Any, folder: Path | None) -> Any:
    """A file's tables, in which a path under a key `model` is looked up from `folder` first."""
    if isinstance(tables, list):
        return [with_models_found(table, folder) for table in tables]
    if not isinstance(tables, Mapping):
        return tables
    return {
        key: str(file_of(value, folder))
        if key == "model" and isinstance(value, str) and is_config(value)
        else with_models_found(value, folder)
        for key, value in tables.items()
    }


def model_of(model: str) -> ModelShape:
    """The shape of a model by its name or the path of its config.json; raises ValueError.

    A hub's name has its owner before a slash: "Qwen/Qwen3-8B".
    """
    if not is_config(model):
        return MODELS[meant(model.rpartition("/")[2], MODELS, "model")]
    try:
        return read_config(Path(model))
    except InputError as error:
        raise ValueError(str(error)) from None


def _known(model: str) -> str:
    model_of(model)
    return model


ModelName = Annotated[
    str,
    AfterValidator(_known),
    WithJsonSchema({"anyOf": [{"enum": [*MODELS]}, {"type": "string"}]}),
]  # in a file

"""Models by name (models.toml), or by a hub's `config.json` that a user has."""

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator

from sim.inputs.files import InputError, file_of, meant
from sim.inputs.shapes import ModelShape

TABLES = "models.toml"
PUBLISHED = ("parameters", "active_parameters")  # which a table may state beside a config's keys
ALSO_CALLED = {"llama-3-405b": "llama-3.1-405b"}


@cache
def _tables() -> dict[str, dict[str, Any]]:
    """Those of models.toml."""
    text = resources.files(__package__).joinpath(TABLES).read_text(encoding="utf-8")
    return tomllib.loads(text)


@cache
def _published(name: str) -> ModelShape:
    """The shape that a table of models.toml tells; raises KeyError."""
    from sim.inputs.hub_config import config_of

    table = _tables()[name]
    shape = config_of(table, f"{TABLES}: {name}").shape(name, table["source"])
    stated = {key: table[key] for key in PUBLISHED if key in table}
    return replace(shape, **stated)


class _Models(Mapping[str, ModelShape]):
    """The models of models.toml by name, and by names that people often use.

    Most commands ask for one or none: each is read when it is asked for.
    """

    def __getitem__(self, name: str) -> ModelShape:
        return _published(ALSO_CALLED.get(name, name))

    def __iter__(self) -> Iterator[str]:
        yield from (*_tables(), *ALSO_CALLED)

    def __len__(self) -> int:
        return len(_tables()) + len(ALSO_CALLED)


MODELS: Mapping[str, ModelShape] = _Models()


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
    from sim.inputs.hub_config import read_config

    try:
        return read_config(Path(model))
    except InputError as error:
        raise ValueError(str(error)) from None


def _known(model: str) -> str:
    model_of(model)
    return model


class _Names:
    """That a schema offers the names of models."""

    def __get_pydantic_json_schema__(self, *_: Any) -> dict[str, Any]:
        return {"anyOf": [{"enum": [*MODELS]}, {"type": "string"}]}


ModelName = Annotated[str, AfterValidator(_known), _Names()]  # in a file

"""The schedules: one file each, and the registry by which files name them."""

from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from sim.inputs.files import InputError, checked, nearest, shown
from sim.schedules.base import Schedule
from sim.schedules.own import clash, is_in_file, of_file, of_package, offered

# By where each is: a run loads those alone that it asks for.
_SHIPPED: dict[str, str] = {
    "naive": "sim.schedules.naive:Naive",
    "flash1": "sim.schedules.flash1:Flash1",
    "flash2": "sim.schedules.flash2:Flash2",
    "flash3": "sim.schedules.flash3:Flash3",
    "flash4": "sim.schedules.flash4:Flash4",
    "flex": "sim.schedules.flex:Flex",
    "block_sparse": "sim.schedules.block_sparse:BlockSparse",
    "bigbird": "sim.schedules.patterns:BigBird",
    "longformer": "sim.schedules.patterns:Longformer",
    "minference": "sim.schedules.minference:MInference",
    "quest": "sim.schedules.quest:Quest",
    "nsa": "sim.schedules.nsa:Nsa",
    "decode": "sim.schedules.flash_decoding:Decode",
    "flash_decoding": "sim.schedules.flash_decoding:FlashDecoding",
    "paged": "sim.schedules.paged:Paged",
    "cascade": "sim.schedules.cascade:Cascade",
    "mla": "sim.schedules.mla:Mla",
    "dsa": "sim.schedules.dsa:Dsa",
    "streaming_llm": "sim.schedules.streaming_llm:StreamingLlm",
    "h2o": "sim.schedules.h2o:H2o",
    "hip": "sim.schedules.hip:Hip",
    "infinite_hip": "sim.schedules.infinite_hip:InfiniteHip",
    "linear_attention": "sim.schedules.linear_attention:LinearAttention",
    "gated_delta_net": "sim.schedules.gated_delta_net:GatedDeltaNet",
    "mamba2": "sim.schedules.mamba2:Mamba2",
    "memorizing": "sim.schedules.memorizing:Memorizing",
    "lm2": "sim.schedules.lm2:Lm2",
    "retrieval": "sim.schedules.retrieval:Retrieval",
    "ring": "sim.schedules.ring:Ring",
    "ulysses": "sim.schedules.ulysses:Ulysses",
    "tree_decoding": "sim.schedules.tree_decoding:TreeDecoding",
    "tensor_parallel": "sim.schedules.tensor_parallel:TensorParallel",
}


@cache
def _shipped(name: str) -> type[Schedule]:
    """Raises KeyError."""
    module, _, kind = _SHIPPED[name].partition(":")
    return getattr(import_module(module), kind)  # type: ignore[no-any-return]  # of `Schedule`


def shipped() -> dict[str, type[Schedule]]:
    """attnsim's own, all loaded, by name."""
    return {name: _shipped(name) for name in _SHIPPED}


class _Registry(Mapping[str, type[Schedule]]):
    """attnsim's schedules by name, then those of installed packages; each loaded when asked for."""

    def __getitem__(self, name: str) -> type[Schedule]:
        """Raises InputError where an installed package's cannot be loaded, or its name is taken."""
        if name not in offered():
            return _shipped(name)
        if name in _SHIPPED:
            raise clash(name)
        return of_package(name)

    def __iter__(self) -> Iterator[str]:
        yield from dict.fromkeys((*_SHIPPED, *offered()))

    def __len__(self) -> int:
        return len({*_SHIPPED, *offered()})


SCHEDULES: Mapping[str, type[Schedule]] = _Registry()


def title_of(table: Mapping[str, Any]) -> str:
    """What a `[[schedule]]` table's schedule is called: its label, else its name."""
    return str(table.get("label") or table.get("name"))


def make_schedule(
    table: Mapping[str, Any], where: str, folder: Path | None = None, allow_code: bool = False
) -> Schedule:
    """The schedule that a `[[schedule]]` table of the file `where` describes; raises InputError.

    Paths in its options are looked up from `folder`, as is the file of a schedule of one's own,
    whose code runs only where `allow_code` says so.
    """
    name = table.get("name")
    if isinstance(name, str) and is_in_file(name):
        try:
            kind = of_file(name, folder, allow_code)
        except InputError as error:
            raise type(error)(f'{where}: schedule.name = "{name}": {error}') from None
    elif isinstance(name, str) and name in SCHEDULES:
        kind = SCHEDULES[name]
    else:
        wrong = f" = {shown(name)}: no such schedule" if "name" in table else ": missing"
        raise InputError(f"{where}: schedule.name{wrong}; {nearest(str(name), SCHEDULES)}")
    return checked(kind, table, where, f"schedule.{name}").relative_to(folder)

"""The schedules: one file each, and the registry by which files name them."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sim.inputs.files import InputError, checked, nearest, shown
from sim.schedules.base import Schedule
from sim.schedules.block_sparse import BlockSparse
from sim.schedules.cascade import Cascade
from sim.schedules.dsa import Dsa
from sim.schedules.flash1 import Flash1
from sim.schedules.flash2 import Flash2
from sim.schedules.flash3 import Flash3
from sim.schedules.flash4 import Flash4
from sim.schedules.flash_decoding import Decode, FlashDecoding
from sim.schedules.flex import Flex
from sim.schedules.gated_delta_net import GatedDeltaNet
from sim.schedules.h2o import H2o
from sim.schedules.hip import Hip
from sim.schedules.infinite_hip import InfiniteHip
from sim.schedules.linear_attention import LinearAttention
from sim.schedules.lm2 import Lm2
from sim.schedules.mamba2 import Mamba2
from sim.schedules.memorizing import Memorizing
from sim.schedules.minference import MInference
from sim.schedules.mla import Mla
from sim.schedules.naive import Naive
from sim.schedules.nsa import Nsa
from sim.schedules.own import clash, is_in_file, of_file, of_package, offered
from sim.schedules.paged import Paged
from sim.schedules.patterns import BigBird, Longformer
from sim.schedules.quest import Quest
from sim.schedules.retrieval import Retrieval
from sim.schedules.ring import Ring
from sim.schedules.streaming_llm import StreamingLlm
from sim.schedules.tensor_parallel import TensorParallel
from sim.schedules.tree_decoding import TreeDecoding
from sim.schedules.ulysses import Ulysses

_SHIPPED: dict[str, type[Schedule]] = {
    "naive": Naive,
    "flash1": Flash1,
    "flash2": Flash2,
    "flash3": Flash3,
    "flash4": Flash4,
    "flex": Flex,
    "block_sparse": BlockSparse,
    "bigbird": BigBird,
    "longformer": Longformer,
    "minference": MInference,
    "quest": Quest,
    "nsa": Nsa,
    "decode": Decode,
    "flash_decoding": FlashDecoding,
    "paged": Paged,
    "cascade": Cascade,
    "mla": Mla,
    "dsa": Dsa,
    "streaming_llm": StreamingLlm,
    "h2o": H2o,
    "hip": Hip,
    "infinite_hip": InfiniteHip,
    "linear_attention": LinearAttention,
    "gated_delta_net": GatedDeltaNet,
    "mamba2": Mamba2,
    "memorizing": Memorizing,
    "lm2": Lm2,
    "retrieval": Retrieval,
    "ring": Ring,
    "ulysses": Ulysses,
    "tree_decoding": TreeDecoding,
    "tensor_parallel": TensorParallel,
}


class _Registry(Mapping[str, type[Schedule]]):
    """attnsim's schedules by name, then those of installed packages, loaded when asked for."""

    def __getitem__(self, name: str) -> type[Schedule]:
        """Raises InputError where an installed package's cannot be loaded, or its name is taken."""
        if name not in offered():
            return _SHIPPED[name]
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
        raise InputError(
            f"{where}: schedule.name = {shown(name)}: no such schedule; "
            f"{nearest(str(name), SCHEDULES)}"
        )
    return checked(kind, table, where, f"schedule.{name}").relative_to(folder)

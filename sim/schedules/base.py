"""What every schedule is: options from a scenario file, and a lowering to kernels."""

import re
import sys
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, model_validator
from pydantic_core import CoreSchema

from sim.inputs.files import InputError
from sim.inputs.hardware import HardwareProfile
from sim.inputs.lengths import in_words
from sim.inputs.units import show_binary
from sim.inputs.workload import AttentionWorkload, Mask, Phase
from sim.schedules.own_program import looked_over
from sim.tile_program import Command, IntArray, Kernel, OfItem, Tensor, in_order

# fp32 lane operations of softmax per score: running maximum, scale and subtract (one FMA), sum, and
# conversion of P to the tensor cores' dtype (FlashAttention-2, csrc/flash_attn/src/softmax.h).
VECTOR_OPS_PER_SCORE = 4
STATISTICS_BYTES = 4  # l, m and log-sum-exp are fp32


_AS_SHOWN = r"\s*(\d+)\s*[xX×]\s*(\d+)\s*"


class Tile(BaseModel):
    """Query rows and keys that one step works on."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)
    q: int = Field(ge=16, multiple_of=16)
    kv: int = Field(ge=16, multiple_of=16)

    @model_validator(mode="before")
    @classmethod
    def _as_it_is_shown(cls, given: Any) -> Any:
        """A tile may be written as tables show it: "64 x 128"."""
        sides = re.fullmatch(_AS_SHOWN, given) if isinstance(given, str) else None
        return {"q": int(sides[1]), "kv": int(sides[2])} if sides else given

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {"anyOf": [handler(core), {"type": "string", "pattern": f"^{_AS_SHOWN}$"}]}

    def __str__(self) -> str:
        return f"{self.q} x {self.kv}"


MOST_ENTRIES = 2**27  # of a schedule's table of what it visits: half a GiB of int32, some seconds

Taken = Literal[
    "dropout", "kv_dtype", "latents", "append", "lengths", "query lengths", "shared prefix", "tree",
    "softcap", "alibi", "bias", "value_dim", "two sides",
]  # fmt: skip
# What a file says to have a mask.
MASK_ASKED: dict[Mask, str] = {
    "full": "causal = false",
    "causal": "causal = true",
    "window": "a window",
}
SramBytes = Callable[[Tile], int]  # what a CTA needs for tiles of that size


class Schedule(BaseModel):
    """A way to compute attention: one `[[schedule]]` table of a scenario.

    `label` names it in tables and figures where the same schedule stands there twice. The class
    says what it is (`summary`, `source`) and which workloads it takes (`phases`, `masks` and, of
    what not every schedule can do, `takes`; "latents" says that it reads a latent cache as it lies,
    "append" that several queries a sequence stand behind a cached prefix, "lengths" that sequences
    have keys of their own number, "query lengths" queries too, "shared prefix" that it reads
    the one copy of what they share, where others read a copy of each, "value_dim" that V and O may
    have other columns than Q and K, "two sides" that windows reach to both sides of a query).
    Schedules `of_other_models` are for models with other parameters, or with a memory beside the
    KV cache.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)
    name: str
    label: str | None = None

    summary: ClassVar[str]
    source: ClassVar[str]
    phases: ClassVar[tuple[Phase, ...]] = ("prefill", "decode")
    masks: ClassVar[tuple[Mask, ...]] = ("full", "causal", "window")
    takes: ClassVar[frozenset[Taken]] = frozenset()
    of_other_models: ClassVar[bool] = False
    on_several_gpus: ClassVar[bool] = False

    @property
    def title(self) -> str:
        """What tables and figures call it."""
        return self.label or self.name

    def program(self, w: AttentionWorkload, hw: HardwareProfile) -> list[Command]:
        """What runs on the device: the one door to a schedule.

        Raises InputError where the schedule does not take such a workload, or where its options,
        the workload and the device do not go together.
        """
        if w.latent_dim and not self.narrows_v(w):
            w = replace(w, value_dim=None)  # callers fill V up to the width of K
        self.check(w)
        module = type(self).__module__
        if module.startswith("sim."):
            return self.commands(w, hw)
        file = getattr(sys.modules[module], "__file__", None)
        return looked_over(lambda: self.commands(w, hw), f"schedule {self.title}", file)

    def narrows_v(self, w: AttentionWorkload) -> bool:
        """Whether V and O may have the columns that they have beside those of Q and K."""
        return w.value_dim is None or "value_dim" in self.takes

    @abstractmethod
    def lower(self, w: AttentionWorkload, hw: HardwareProfile) -> list[Kernel]:
        """The kernels of one GPU, each once, in order.

        Raises InputError where the schedule's options, the workload and the device do not go
        together.
        """

    def commands(self, w: AttentionWorkload, hw: HardwareProfile) -> list[Command]:
        """What runs: the kernels in order on one GPU, for each token that is decoded.

        Raises InputError as `lower` does.
        """
        return in_order(self.lower(w, hw) * w.tokens)

    def check(self, w: AttentionWorkload) -> None:
        """Raises InputError where the schedule does not take such a workload."""
        if w.phase not in self.phases:
            raise InputError(
                f'schedule {self.name}: workload.phase = "{w.phase}": '
                f"{' or '.join(self.phases)} was expected"
            )
        self._check_mask(w)
        if w.phase == "decode" and w.seq_q > 1 and "append" not in self.takes:
            raise InputError(
                f"schedule {self.name}: workload.seq_q = {w.seq_q}: it decodes one query (seq_q = "
                f"1); {that_take('append')} take several"
            )
        self._check_lengths(w)
        if w.tree and "tree" not in self.takes:
            raise InputError(
                f"schedule {self.name}: workload.tree = true: it has no mask of a tree; "
                f"{that_take('tree')} takes one"
            )
        if "two sides" not in self.takes:
            check_latest_keys(f"schedule {self.name}", w)
        if w.dropout and "dropout" not in self.takes:
            raise InputError(f"schedule {self.name}: workload.dropout = true: it has none")
        self._check_scores(w)
        # Of latents V is filled up where a schedule takes no other (`program`).
        if w.latent_dim is None and w.value_dim is not None and "value_dim" not in self.takes:
            raise InputError(
                f"schedule {self.name}: workload.value_dim = {w.value_dim}: V of head_dim = "
                f"{w.head_dim} was expected; {that_take('value_dim')} take another"
            )
        if w.kv_dtype is not None and "kv_dtype" not in self.takes:
            raise InputError(
                f'schedule {self.name}: workload.kv_dtype = "{w.kv_dtype}": its K and V are of '
                f'workload.dtype ("{w.dtype}")'
            )

    def _check_mask(self, w: AttentionWorkload) -> None:
        """Raises InputError for a mask that is none of the schedule's, in the words of a file."""
        if w.mask in self.masks:
            return
        given = f"window = {w.window}" if w.mask == "window" else MASK_ASKED[w.mask]
        none = "" if "window" in self.masks else ", without a window,"
        raise InputError(
            f"schedule {self.name}: workload.{given}: "
            f"{' or '.join(MASK_ASKED[mask] for mask in self.masks)}{none} was expected"
        )

    def _check_scores(self, w: AttentionWorkload) -> None:
        """Raises InputError where scores are changed as no kernel of the schedule does."""
        for key, value in changes_asked(w).items():
            where = f"schedule {self.name}: workload.{key} = {value}"
            if key not in self.takes:
                instead = ', or bias = "head", which eager code adds' if key == "alibi" else ""
                raise InputError(f"{where}: none was expected; {that_take(key)} take one{instead}")
            if w.phase == "training":
                raise InputError(
                    f'{where}: workload.phase = "training": prefill or decode was expected'
                )
            if key == "bias" and w.lengths is not None:
                raise InputError(f"{where}: sequences of one length were expected")

    def _check_lengths(self, w: AttentionWorkload) -> None:
        """Raises InputError where sequences differ in what the schedule takes of one length."""
        if w.lengths is None:
            return
        told = in_words(w.table()["seq_q"], w.table()["seq_kv"])
        needed: list[tuple[Taken, str]] = [("lengths", "sequences of one length were")]
        if w.differ_in_queries:
            needed.append(("query lengths", "as many queries of each were"))
        for taken, what in needed:
            if taken not in self.takes:
                key = "seq_q" if w.differ_in_queries else "seq_kv"
                raise InputError(
                    f"schedule {self.name}: workload.{key}: {told}: {what} expected; "
                    f"{that_take(taken)} take such lists"
                )

    def relative_to(self, folder: Path | None) -> Self:
        """The schedule with the paths in its options looked up from `folder`."""
        return self

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that it reads beside those that its options name."""
        return ()


def changes_asked(w: AttentionWorkload) -> dict[Taken, str]:
    """What the workload does to scores before the softmax, by its keys, as a file has it."""
    asked: dict[Taken, str] = {} if w.softcap is None else {"softcap": f"{w.softcap:g}"}
    if w.alibi:
        asked["alibi"] = "true"
    if w.bias:
        asked["bias"] = f'"{w.bias}"'
    return asked


def check_latest_keys(where: str, w: AttentionWorkload) -> None:
    """Raises InputError where a window reaches to both sides of a query."""
    if w.has_two_sides:
        raise InputError(
            f"{where}: workload.window = {w.window}, to both sides (causal = false): causal = true "
            f"was expected; by default {that_take('two sides')} take both sides"
        )


def that_take(what: Taken) -> str:
    """The schedules that take what not every schedule does, by name."""
    from sim.schedules import shipped  # loads them all, which only a refusal needs

    return ", ".join(sorted(name for name, kind in shipped().items() if what in kind.takes))


class TiledSchedule(Schedule):
    """A schedule that works on blocks of scores: `tile`, where it is not the usual one."""

    tile: Tile | None = None

    def fit_tile(
        self,
        default: Tile,
        sram_bytes: SramBytes,
        w: AttentionWorkload,
        hw: HardwareProfile,
        by_stages: Mapping[int, SramBytes] | None = None,
    ) -> Tile:
        """The tile asked for, else the default if it fits SRAM, else the largest that does.

        Raises InputError, which tells with which other stages it would fit: `by_stages` has what a
        CTA needs with so many.
        """
        room = hw.sram.max_per_cta
        largest = largest_tile(sram_bytes, room)
        if self.tile is None:
            return default if sram_bytes(default) <= room else self._or_none_fits(largest, w, hw)
        needed = sram_bytes(self.tile)
        if needed <= room:
            return self.tile
        most = f"the largest that fits is {largest}" if largest else "none fits"
        raise InputError(
            f"schedule {self.name}: tile = {self.tile}: needs {show_binary(needed)} of SRAM, "
            f"{hw.name} has {show_binary(room)} a CTA; {most} (q x kv)"
            + (self._stages_that_fit(self.tile, by_stages, room) if by_stages else "")
        )

    def _stages_that_fit(self, tile: Tile, by_stages: Mapping[int, SramBytes], room: float) -> str:
        fitting = [str(n) for n, needed in by_stages.items() if needed(tile) <= room]
        return (
            f"; it fits with stages = {' or '.join(fitting)}"
            if fitting
            else "; no other stages help"
        )

    def _or_none_fits(self, tile: Tile | None, w: AttentionWorkload, hw: HardwareProfile) -> Tile:
        if tile is None:
            raise InputError(
                f"schedule {self.name}: no tile of head_dim {w.head_dim} in {w.dtype} fits the "
                f"{show_binary(hw.sram.max_per_cta)} of SRAM that a CTA has on {hw.name}"
            )
        return tile


def sram_bytes_of(w: AttentionWorkload, q_matrices: int = 1, kv_matrices: int = 2) -> SramBytes:
    """SRAM of a CTA that holds so many tiles of query rows and of keys."""
    row_bytes = w.head_dim * w.dtype_bytes
    return lambda tile: row_bytes * (q_matrices * tile.q + kv_matrices * tile.kv)


def largest_tile(sram_bytes: SramBytes, room: float) -> Tile | None:
    """The tile of most scores (then most query rows) that fits, of sides 16 to 1024."""
    sides = (1024, 512, 256, 128, 64, 32, 16)
    tiles = [Tile(q=q, kv=kv) for q in sides for kv in sides]
    fitting = [tile for tile in tiles if sram_bytes(tile) <= room]
    return max(fitting, key=lambda tile: (tile.q * tile.kv, tile.q), default=None)


class QKVO(NamedTuple):
    """Q, K, V and O in HBM."""

    q: Tensor
    k: Tensor
    v: Tensor
    o: Tensor


def qkvo(w: AttentionWorkload) -> QKVO:
    """Q, K, V and O: a matrix of tokens x columns for each head of each sequence."""
    d, d_v, size = w.head_dim, w.value_columns, w.dtype_bytes
    of_q, of_kv = (w.batch * w.heads, w.seq_q), (w.batch * w.kv_heads, w.seq_kv)

    def q_sizes(cols: int) -> IntArray | None:
        return matrix_sizes(w.queries, cols, w.heads)

    def kv_sizes(cols: int) -> IntArray | None:
        return matrix_sizes(w.keys, cols, w.kv_heads)

    return QKVO(
        Tensor("Q", *of_q, d, size, "input", "query", q_sizes(d)),
        Tensor("K", *of_kv, d, size, "input", "key", kv_sizes(d)),
        Tensor("V", *of_kv, d_v, size, "input", "value", kv_sizes(d_v)),
        Tensor("O", *of_q, d_v, size, "output", "result", q_sizes(d_v)),
    )


def matrix_sizes(rows: Sequence[int], cols: int, matrices: int = 1) -> IntArray | None:
    """Sizes of matrices of so many rows, `matrices` of each in turn; None where all are alike."""
    if len(set(rows)) <= 1:
        return None
    return np.repeat(np.array([(own, cols) for own in rows], np.int64), matrices, axis=0)


def kv_matrix(w: AttentionWorkload, q_matrix: IntArray) -> IntArray:
    """The K/V matrix (batch x KV head) that goes with each query matrix (batch x head)."""
    sequence, head = q_matrix // w.heads, q_matrix % w.heads
    return sequence * w.kv_heads + head // (w.heads // w.kv_heads)


def visible_blocks(w: AttentionWorkload, tile: Tile) -> tuple[IntArray, IntArray]:
    """For each block of query rows, the first and the end of the key blocks that the mask shows.

    A block that the mask cuts counts whole. Returns two arrays of ceil(seq_q / tile.q). Where
    sequences differ they are those of one after the other; rows that one lacks are shown none.
    """
    if w.lengths is not None:
        down = blocks(w.seq_q, tile.q)
        own = dict(zip(w.lengths, w.sequences, strict=True))
        shown = {pair: visible_blocks(one, tile) for pair, one in own.items()}
        sides = np.zeros((2, len(w.lengths), down), np.int64)
        for number, pair in enumerate(w.lengths):
            sides[:, number, : len(shown[pair][0])] = shown[pair]
        return sides[0].ravel(), sides[1].ravel()
    first_rows = np.arange(0, w.seq_q, tile.q, dtype=np.int64)
    low, high = w.visible_ranges(first_rows, np.minimum(first_rows + tile.q, w.seq_q) - 1)
    return low // tile.kv, -(-high // tile.kv)


def check_table(name: str, entries: int) -> None:
    """Raises InputError where the table of what a schedule visits would be too long to be made.

    It is asked before, of a closed form: of the time and memory that the table would take.
    """
    if entries > MOST_ENTRIES:
        raise InputError(
            f"schedule {name}: the table of what it visits would be drawn from {entries:.3g} "
            f"entries, {MOST_ENTRIES:.3g} are the most: shorten workload.seq_len or tokens, or "
            "take larger blocks"
        )


def blocks(length: int, size: int) -> int:
    """How many blocks of `size` cover `length`."""
    return -(-length // size)


def of_constant(trips: int) -> OfItem:
    """The same number of trips for every item."""
    return lambda items: np.full_like(items, trips)


def check_self_attention(schedule: Schedule, w: AttentionWorkload) -> None:
    """Raises InputError unless all tokens are queries, or one is decoded."""
    if w.seq_q != (1 if w.phase == "decode" else w.seq_kv):
        raise InputError(
            f"schedule {schedule.name}: workload.seq_q = {w.seq_q}: seq_q = seq_kv = {w.seq_kv}, "
            f"or decoding of one token, was expected; {that_take('append')} take any"
        )


def check_arch(name: str, hw: HardwareProfile, arch: str) -> None:
    """Raises InputError on a device that is not of the architecture."""
    if hw.arch != arch:
        raise InputError(
            f'schedule {name}: hardware.arch = "{hw.arch}" ({hw.name}): "{arch}" was expected'
        )


def check_triton_kernel(schedule: Schedule, w: AttentionWorkload) -> None:
    """Raises InputError unless dtype and head_dim are those that the public kernels assert."""
    if w.dtype not in ("fp16", "bf16") or w.head_dim > 128:
        raise InputError(
            f'schedule {schedule.name}: workload.dtype = "{w.dtype}", head_dim = {w.head_dim}: '
            "fp16 or bf16 and a head_dim of at most 128 were expected"
        )

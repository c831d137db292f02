"""What is to be computed: the attention of one layer."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from sim.inputs.lengths import Batch, Lengths
from sim.inputs.models import ModelName, model_of
from sim.inputs.units import Count, CountOrNone

Dtype = Literal["fp32", "fp16", "bf16", "fp8"]
KvDtype = Literal["fp32", "fp16", "bf16", "fp8", "int8", "int4"]
Phase = Literal["prefill", "decode", "training"]
Mask = Literal["full", "causal", "window"]
Bias = Literal["one", "head", "sequence", "all"]
DTYPE_BYTES: dict[str, int] = {"fp32": 4, "fp16": 2, "bf16": 2, "fp8": 1}
KV_BITS: dict[str, int] = {"fp32": 32, "fp16": 16, "bf16": 16, "fp8": 8, "int8": 8, "int4": 4}
MOST_DECODED = 2**14  # tokens one after the other: each has kernels of its own in a record
# Backward takes five matmuls where forward takes two (FlashAttention's benchmarks count so:
# Dao-AILab/flash-attention, benchmarks/benchmark_flash_attention.py).
TRAINING_FLOPS = 3.5


@dataclass(frozen=True)
class AttentionWorkload:
    """Attention of one layer: shapes, dtype and mask.

    `window` is how many of the latest keys a query sees, itself included; where the mask is not
    `causal`, as many to its other side too, as FlashAttention has it with window_size = (n, n) of
    n = window - 1.
    Query i stands at position seq_kv - seq_q + i, as in decoding with a cache. `training` is a pass
    forward and one backward; `tokens` are decoded one after the other, each with a cache of seq_kv.
    `kv_dtype` is the cache's, where it is not `dtype`. A model with latent attention caches
    `latent_dim` + `rope_dim` elements a token for all heads; K made of them have `head_dim`
    elements, V and O `value_dim` where these are others: a schedule whose kernels take no narrower
    V fills it up to the width of K.
    The first `shared_prefix` tokens of all sequences are the same,
    so that one copy of their K and V would do.

    Queries that are a `tree` of drafted tokens see the cached prefix and, of each other, those that
    they follow: a mask of a bit a query and key. A chain, as `causal` has it, shows most pairs of
    all trees, and is what is counted.

    Before the softmax scores may be changed: `softcap` c makes c tanh(S / c) of them, `alibi` takes
    each head's slope times the distance off, `bias` adds a matrix of seq_q x seq_kv elements of
    `dtype`: one for all, or one for each head, each sequence, or each head of each sequence.

    Where sequences differ, `lengths` has the (queries, keys) of each, and `seq_q` and `seq_kv` are
    the most of any, by which kernels are launched; `sequences` are workloads of one sequence each.
    """

    batch: int
    heads: int
    kv_heads: int
    seq_q: int
    seq_kv: int
    head_dim: int
    dtype: Dtype
    causal: bool = False
    window: int | None = None
    phase: Phase = "prefill"
    tokens: int = 1
    dropout: bool = False
    kv_dtype: KvDtype | None = None
    latent_dim: int | None = None
    rope_dim: int = 0
    shared_prefix: int = 0
    tree: bool = False
    softcap: float | None = None
    alibi: bool = False
    bias: Bias | None = None
    lengths: tuple[tuple[int, int], ...] | None = None
    value_dim: int | None = None

    @cached_property
    def sequences(self) -> tuple["AttentionWorkload", ...]:
        """Each sequence as a workload of its own."""
        if self.lengths is None:
            return (replace(self, batch=1),) * self.batch
        return tuple(
            replace(self, batch=1, seq_q=seq_q, seq_kv=seq_kv, lengths=None)
            for seq_q, seq_kv in self.lengths
        )

    @property
    def queries(self) -> tuple[int, ...]:
        """Queries of each sequence."""
        return tuple(one.seq_q for one in self.sequences)

    @property
    def keys(self) -> tuple[int, ...]:
        """Keys of each sequence."""
        return tuple(one.seq_kv for one in self.sequences)

    @property
    def differ_in_queries(self) -> bool:
        """Whether sequences have other numbers of queries than one another."""
        return len(set(self.queries)) > 1

    def table(self) -> dict[str, Any]:
        """It in the words of a scenario; of sequences that differ, lists of lengths."""
        told = {key: value for key, value in asdict(self).items() if key != "lengths"}
        for key, side in {"seq_q": self.queries, "seq_kv": self.keys}.items():
            if len(set(side)) > 1:
                told[key] = [*side]
        return told

    @property
    def value_columns(self) -> int:
        """Columns of V and of O."""
        return self.value_dim or self.head_dim

    @property
    def dtype_bytes(self) -> int:
        """Bytes of one element of Q, K, V and O."""
        return DTYPE_BYTES[self.dtype]

    @property
    def has_two_sides(self) -> bool:
        """Whether a query sees keys within a window, later ones as well."""
        return self.window is not None and not self.causal

    @property
    def mask(self) -> Mask:
        """Which keys a query may see."""
        return "window" if self.window is not None else "causal" if self.causal else "full"

    def visible_keys(self, first_row: int, last_row: int) -> tuple[int, int]:
        """The range [low, high) of keys that any of the query rows first..last may see."""
        low, high = self.visible_ranges(np.array([first_row]), np.array([last_row]))
        return int(low[0]), int(high[0])

    def visible_ranges(
        self, first_rows: NDArray[np.int64], last_rows: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The same of many blocks of query rows: the ends of each one's range."""
        offset = self.seq_kv - self.seq_q
        behind, ahead = self._reach
        high = (offset + last_rows + ahead).clip(0, self.seq_kv)
        return (offset + first_rows + 1 - behind).clip(0, high), high

    @property
    def _reach(self) -> tuple[int, int]:
        """Keys that a query may see on each side, itself counted on both."""
        all_keys = self.seq_q + self.seq_kv
        return self.window or all_keys, 1 if self.causal else self.window or all_keys

    @property
    def visible_pairs(self) -> int:
        """(query, key) pairs that the mask lets through, of one head, all sequences together."""
        if self.lengths is not None:
            return sum(sequence.visible_pairs for sequence in self.sequences)
        return self.batch * self._pairs_of_a_sequence

    @property
    def _pairs_of_a_sequence(self) -> int:
        def up_to(position: int) -> int:  # the sum of 0, ..., position - 1, each at most seq_kv
            within = min(max(position, 0), self.seq_kv)
            return within * (within - 1) // 2 + (max(position, 0) - within) * self.seq_kv

        (behind, ahead), first = self._reach, self.seq_kv - self.seq_q
        ends, starts = first + ahead, first + 1 - behind  # of the first query's keys
        to_the_end = up_to(ends + self.seq_q) - up_to(ends)
        return to_the_end - (up_to(starts + self.seq_q) - up_to(starts))

    @property
    def useful_flops(self) -> int:
        """FLOPs of the matmuls over the visible pairs: forward 4 d a pair, as FlashAttention."""
        columns = self.head_dim + self.value_columns
        forward = 2 * columns * self.visible_pairs * self.heads * self.tokens
        return int(forward * TRAINING_FLOPS) if self.phase == "training" else forward


class WorkloadTable(BaseModel):
    """The `[workload]` table of a scenario file.

    A list of lengths has one for each sequence, and so says how many there are.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    model: ModelName | None = None
    batch: Batch | None = None
    heads: Count | None = None
    kv_heads: Count | None = None
    head_dim: Count | None = None
    seq_len: Lengths | None = None
    seq_q: Lengths | None = None
    seq_kv: Lengths | None = None
    dtype: Dtype = "fp16"
    causal: bool | None = None
    window: Count | None = None
    phase: Phase = "prefill"
    tokens: Annotated[Count, Field(le=MOST_DECODED)] = 1
    dropout: bool = False
    kv_dtype: KvDtype | None = None
    latent_dim: Count | None = None
    rope_dim: CountOrNone | None = None
    value_dim: Count | None = None
    shared_prefix: CountOrNone = 0
    tree: bool = False
    softcap: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    alibi: bool = False
    bias: Bias | None = None

    @model_validator(mode="after")
    def _complete(self) -> "WorkloadTable":
        self.workload()
        return self

    def workload(self) -> AttentionWorkload:
        """The workload that the table describes; raises ValueError where it describes none."""
        shape = model_of(self.model) if self.model else None
        heads = self.heads or (shape.heads if shape else None)
        head_dim = self.head_dim or (shape.head_dim if shape else None)
        if heads is None or head_dim is None:
            raise ValueError("give either model, or heads and head_dim")
        kv_heads = self.kv_heads or (shape.kv_heads if shape and not self.heads else heads)
        if heads % kv_heads:
            raise ValueError(f"heads = {heads} must be a multiple of kv_heads = {kv_heads}")
        lengths = self._lengths(shape.context if shape else None)
        window = self.window or (shape.window if shape else None)
        causal = self.causal if self.causal is not None else bool(shape or window or self.tree)
        if self.tokens > 1 and self.phase != "decode":
            raise ValueError(f'tokens = {self.tokens} goes with phase = "decode"')
        self._check_lengths(lengths, "causal" if causal else "window" if window else None)
        if self.tree and not (causal and self.phase == "decode" and max(lengths)[0] > 1):
            raise ValueError(
                'tree = true: drafted tokens, each of which follows others: phase = "decode", '
                "several queries (seq_q) and a causal mask were expected"
            )
        value_dim = self.value_dim or (shape.value_dim if shape and not self.head_dim else None)
        seq_q, seq_kv = (max(side) for side in zip(*lengths, strict=True))
        window = window if window is not None and window < seq_kv else None
        self._check_prefix(lengths, window)
        return AttentionWorkload(
            batch=len(lengths),
            heads=heads,
            kv_heads=kv_heads,
            seq_q=seq_q,
            seq_kv=seq_kv,
            head_dim=head_dim,
            dtype=self.dtype,
            causal=causal,
            window=window,
            phase=self.phase,
            tokens=self.tokens,
            dropout=self.dropout,
            kv_dtype=self.kv_dtype if self.kv_dtype != self.dtype else None,
            latent_dim=self.latent_dim or (shape.latent_dim if shape else None),
            rope_dim=self.rope_dim if self.rope_dim is not None else shape.rope_dim if shape else 0,
            shared_prefix=self.shared_prefix,
            tree=self.tree,
            softcap=self.softcap,
            alibi=self.alibi,
            bias=self.bias,
            lengths=lengths if len(set(lengths)) > 1 else None,
            value_dim=value_dim if value_dim != head_dim else None,
        )

    def _lengths(self, context: int | None) -> tuple[tuple[int, int], ...]:
        """Queries and keys of each sequence."""
        length = self.seq_len or context
        seq_kv = self.seq_kv or length
        seq_q = self.seq_q or (1 if self.phase == "decode" else length)
        if seq_q is None or seq_kv is None:
            raise ValueError("give seq_len, or both seq_q and seq_kv")
        if self.seq_len and self.seq_q and self.seq_kv:
            raise ValueError("give seq_len, or seq_q and seq_kv, not all three")
        given = {"seq_len": self.seq_len, "seq_q": self.seq_q, "seq_kv": self.seq_kv}
        numbers = {key: len(side) for key, side in given.items() if isinstance(side, tuple)}
        if numbers and self.batch:
            numbers["batch"] = self.batch
        if len(set(numbers.values())) > 1:
            said = ", ".join(f"{key} of {number}" for key, number in numbers.items())
            raise ValueError(f"lists of lengths have one for each sequence: {said} do not agree")
        sequences = next(iter(numbers.values()), self.batch or 1)
        return tuple(zip(_of_each(seq_q, sequences), _of_each(seq_kv, sequences), strict=True))

    def _check_lengths(self, lengths: Sequence[tuple[int, int]], mask: str | None) -> None:
        """Raises ValueError unless queries are the last of their sequence where they must be."""
        seq_q, seq_kv = next((pair for pair in lengths if pair[0] > pair[1]), (0, 0))
        if seq_q and mask:
            raise ValueError(f"{mask} needs seq_q = {seq_q} not above seq_kv = {seq_kv}")
        if seq_q and self.phase == "decode":
            raise ValueError(f"decode needs seq_q = {seq_q} not above seq_kv = {seq_kv}")
        if len(set(lengths)) > 1 and self.phase == "training":
            raise ValueError('lists of lengths go with phase = "prefill" or "decode"')

    def _check_prefix(self, lengths: Sequence[tuple[int, int]], window: int | None) -> None:
        """Raises ValueError unless all queries stand behind the prefix and see it."""
        if not self.shared_prefix:
            return
        told = f"shared_prefix = {self.shared_prefix}"
        seq_q, seq_kv = min(lengths, key=lambda pair: pair[1] - pair[0])
        if self.shared_prefix > seq_kv - seq_q:
            raise ValueError(
                f"{told} is cached, and the {seq_q} queries of a sequence (seq_q) are the last of "
                f"its {seq_kv} tokens (seq_kv): at most {max(0, seq_kv - seq_q)} was expected"
            )
        if window is not None:
            raise ValueError(f"{told} goes without a window, which would hide it")


def _of_each(length: int | tuple[int, ...], sequences: int) -> tuple[int, ...]:
    return (length,) * sequences if isinstance(length, int) else length

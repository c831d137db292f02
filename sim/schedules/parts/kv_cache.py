"""The KV cache in HBM: how wide its elements are, and where its pages lie.

A row is one token of one KV head. Of a quantised cache it holds the narrower elements and right
behind them their scale and zero point, one row of bytes:

    fp8     one scale a tensor, which is no traffic (vLLM, kv_cache_dtype = "fp8")
    int8    a scale and a zero point of 16 bits a token and head (LMDeploy, quant_policy = 8)
    int4    the same, two elements a byte (LMDeploy, quant_policy = 4)

A paged cache is a pool of pages in which each sequence's lie scattered; a table names them.

Source: vllm-project/vllm, docs/features/quantization/quantized_kvcache.md; InternLM/lmdeploy,
docs/en/quantization/kv_quant.md (asymmetric, a token and head); QServe (arXiv 2405.04532), which
has scale and zero point behind each page's elements. Elements are made ready in registers, as
FlashInfer's and LMDeploy's kernels do. Their lane operations are an estimate: a cast, or a
conversion and one FMA.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, Field

from sim.inputs.units import whole
from sim.inputs.workload import KV_BITS, AttentionWorkload
from sim.schedules.base import matrix_sizes
from sim.tile_program import IntArray, Tensor

SECTOR_BYTES = 32  # what a load of one number reads from L2
PAGE_NUMBER_BYTES = 4
PAGE_NUMBERS_A_SECTOR = SECTOR_BYTES // PAGE_NUMBER_BYTES


def _power_of_two(page_size: int) -> int:
    if page_size & (page_size - 1):
        raise ValueError("a power of two was expected, such as 16")
    return page_size


PageSize = Annotated[
    int, Field(ge=1, le=4096), whole(1, 4096), AfterValidator(_power_of_two)
]  # in tokens


@dataclass(frozen=True)
class Quantisation:
    """Bytes of scale and zero point a row, and lane operations that make an element ready."""

    parameter_bytes: int
    vector_ops: int


QUANTISATIONS = {
    "fp8": Quantisation(parameter_bytes=0, vector_ops=1),
    "int8": Quantisation(parameter_bytes=4, vector_ops=2),
    "int4": Quantisation(parameter_bytes=4, vector_ops=2),
}


def row_bytes(w: AttentionWorkload, cols: int | None = None) -> int:
    """Bytes of K, or of V, of one token of one KV head: `cols` elements, head_dim unless given."""
    cols = cols or w.head_dim
    if w.kv_dtype is None:
        return cols * w.dtype_bytes
    return -(-cols * KV_BITS[w.kv_dtype] // 8) + QUANTISATIONS[w.kv_dtype].parameter_bytes


def cache_tensors(
    w: AttentionWorkload, rows: Sequence[int], each: int, before: IntArray | None = None
) -> tuple[Tensor, Tensor]:
    """K and V: matrices of so many tokens, `each` of in turn; quantised ones of bytes.

    `before` is how many tokens of each matrix lie before those, shape (matrices,).
    """
    width = (w.head_dim, w.dtype_bytes) if w.kv_dtype is None else (row_bytes(w), 1)
    shape, sizes = (len(rows) * each, max(rows), *width), matrix_sizes(rows, width[0], each)
    return (
        Tensor("K", *shape, "input", "key", sizes, before),
        Tensor("V", *shape, "input", "value", sizes, before),
    )


def page_numbers(sequences: int, pages: int) -> Tensor:
    """A page table in HBM, a row of whole sectors for the pages of each sequence."""
    cols = -(-pages // PAGE_NUMBERS_A_SECTOR) * PAGE_NUMBERS_A_SECTOR
    return Tensor("page table", sequences, 1, cols, PAGE_NUMBER_BYTES, "input", "cache")


def ops_of_making_ready(w: AttentionWorkload, keys: int) -> int:
    """Lane operations that make so many rows ready for the matmul."""
    return keys * w.head_dim * QUANTISATIONS[w.kv_dtype].vector_ops if w.kv_dtype else 0


@dataclass(frozen=True, eq=False)
class PageTable:
    """Pages of `page_rows` tokens, scattered over a pool that they just fill.

    `table` has the pages of each sequence in order, as wide as the longest needs: shape (sequences,
    pages). The pool has so many `pages`.
    """

    page_rows: int
    table: IntArray
    pages: int

    @property
    def pool_rows(self) -> int:
        """Tokens that the pool holds."""
        return self.pages * self.page_rows

    @property
    def tensor(self) -> Tensor:
        """The table in HBM."""
        return page_numbers(*self.table.shape)

    def entries_a_load(self, tile_rows: int) -> int:
        """Numbers that are read of the table at a time: a tile's, or the sector that has them."""
        return max(PAGE_NUMBERS_A_SECTOR, tile_rows // self.page_rows)

    def sectors(self, tile_rows: int, tiles: int) -> IntArray:
        """Which load of the table has the numbers of each of a sequence's tiles."""
        return np.arange(tiles) * tile_rows // self.page_rows // self.entries_a_load(tile_rows)


def scattered(keys: Sequence[int], page_rows: int, seed: int) -> PageTable:
    """Pages of sequences of so many tokens, drawn from the pool without return."""
    own = -(-np.array(keys, np.int64) // page_rows)
    pages = int(own.sum())
    drawn: NDArray[np.int64] = np.random.default_rng(seed).permutation(pages)
    table = np.zeros((len(keys), int(own.max())), np.int64)
    table[np.arange(table.shape[1]) < own[:, None]] = drawn
    return PageTable(page_rows, table, pages)

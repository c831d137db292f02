"""Triton's interpreter, mended for bfloat16, and made to tell which bytes a kernel touches."""

import contextlib
import os
from collections import Counter
from collections.abc import Iterator

import numpy as np
import torch
import triton.language as tl

from sim.tile_program import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"


def _bfloat16_as_float32(handle):
    """The interpreter holds bfloat16 as its bits, which are the upper half of a float32's."""
    if handle.dtype.scalar != tl.bfloat16:
        return handle.data
    return (handle.data.astype(np.uint32) << 16).view(np.float32)


if INTERPRETED:
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    def _dot(self, a, b, d, input_precision, max_num_imprecise_acc):
        product = np.matmul(_bfloat16_as_float32(a), _bfloat16_as_float32(b), dtype=d.data.dtype)
        return TensorHandle(product + d.data, d.dtype.scalar)

    InterpreterBuilder.create_dot = _dot  # it multiplies a bfloat16's bits


@contextlib.contextmanager
def counted_bytes(tensors: dict[Tensor, torch.Tensor]) -> Iterator[tuple[Counter, Counter]]:
    """Bytes of each of the tensors that kernels load and store meanwhile, as they issue them."""
    loaded: Counter = Counter()
    stored: Counter = Counter()
    ranges = [(t.data_ptr(), t.data_ptr() + t.nbytes, key) for key, t in tensors.items()]

    def count(counter, pointers, mask):
        size = pointers.get_element_ty().primitive_bitwidth // 8
        touched = pointers.data[mask.data]
        for low, high, key in ranges:
            counter[key] += size * int(((touched >= low) & (touched < high)).sum())

    load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store

    def counting_load(self, pointers, mask, *rest):
        count(loaded, pointers, mask)
        return load(self, pointers, mask, *rest)

    def counting_store(self, pointers, value, mask, *rest):
        count(stored, pointers, mask)
        return store(self, pointers, value, mask, *rest)

    InterpreterBuilder.create_masked_load = counting_load
    InterpreterBuilder.create_masked_store = counting_store
    try:
        yield loaded, stored
    finally:
        InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store = load, store

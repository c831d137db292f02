"""How fast the compiled engine replays, and how many times faster than the SimPy reference.

    python benchmarks/engine.py [--json]

The work is a plain loop: a tile step loads a tile, multiplies and takes a softmax, on the 264 CTAs
that the H100's profile holds at once. Both engines replay the same kernel in the same process,
compiled code warm, and each one's best of several runs counts; one core does the work.
"""

import argparse
import json
import time
from typing import Any

from sim.engine import reference
from sim.engine.compiled import replay
from sim.engine.protocol import Engine
from sim.inputs.hardware import load_profile
from sim.schedules.base import of_constant
from sim.tile_program import (
    Compute,
    Footprint,
    Kernel,
    Load,
    Loop,
    Store,
    Stream,
    Tensor,
    chunk_tensors,
    once,
)

HW = load_profile("h100-sxm")
DTYPE, HEAD_DIM, TILE_Q, TILE_KV, TRIPS, RESIDENT_CTAS = "fp16", 128, 128, 64, 256, 264
Q_BLOCKS = 128  # of 16,384 queries a head; its CTAs read the same 16,384 keys


def plain_loop(ctas: int) -> Kernel:
    """A CTA a block of query rows: TRIPS x (load, matmul, softmax), then a store."""
    heads = -(-ctas // Q_BLOCKS)
    keys = Tensor("K", heads, TRIPS * TILE_KV, HEAD_DIM, 2)
    output = Tensor("O", heads, Q_BLOCKS * TILE_Q, HEAD_DIM, 2)
    load = Load(Stream(keys, TILE_KV, HEAD_DIM, lambda items: items // Q_BLOCKS * TRIPS, 1))
    flops = 4 * TILE_Q * TILE_KV * HEAD_DIM
    matmul = Compute("matmul", (load,), mma_flops=flops, sram_bytes=8 * TILE_KV * HEAD_DIM)
    softmax = Compute("softmax", vector_ops=4 * TILE_Q * TILE_KV, exp_count=TILE_Q * TILE_KV)
    store = Store(Stream(output, TILE_Q, HEAD_DIM, lambda items: items))
    loops = (Loop(of_constant(TRIPS), (load, matmul, softmax)), Loop(once, (store,)))
    return Kernel("plain loop", ctas, loops, Footprint(64 * 1024))


def tile_steps_per_s(engine: Engine[Any], kernel: Kernel, runs: int) -> float:
    """The best rate of so many runs of the kernel."""
    chunkings = chunk_tensors([kernel])
    best = 0.0
    for _ in range(runs):
        l2 = engine.new_l2(chunkings, HW)
        start_s = time.perf_counter()
        ran = engine.run_kernel(kernel, chunkings, HW, l2, DTYPE, lambda _: None)
        best = max(best, kernel.tile_steps / (time.perf_counter() - start_s))
        assert ran.ctas_per_sm * HW.sm.count == RESIDENT_CTAS
    return best


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    as_json = parser.parse_args().json
    small, large = plain_loop(RESIDENT_CTAS), plain_loop(16 * RESIDENT_CTAS)
    tile_steps_per_s(replay, small, 1)  # compile, or read from disk
    figures = {
        "tile_steps_per_s": tile_steps_per_s(replay, large, 7),
        "small_tile_steps_per_s": tile_steps_per_s(replay, small, 20),
        "reference_tile_steps_per_s": tile_steps_per_s(reference, small, 3),
    }
    ratio = figures["small_tile_steps_per_s"] / figures["reference_tile_steps_per_s"]
    figures["ratio_to_reference"] = ratio
    if as_json:
        print(
            json.dumps({**figures, "resident_ctas": RESIDENT_CTAS, "tile_steps": large.tile_steps})
        )
        return
    for name, kernel, figure in (
        ("replay", large, "tile_steps_per_s"),
        ("replay", small, "small_tile_steps_per_s"),
        ("reference", small, "reference_tile_steps_per_s"),
    ):
        print(f"{name:10} {kernel.tile_steps:>10,} tile steps {figures[figure] / 1e6:>8.3f} M/s")
    print(f"replay is {ratio:.0f} times as fast as the reference on the same kernel")


if __name__ == "__main__":
    main()

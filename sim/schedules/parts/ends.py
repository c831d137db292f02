"""How an item begins and ends: what is loaded once arrives; what was summed is divided, stored.

load Q_i;  wait until it is there
...
O_i = O_i / l_i;  store O_i and, where it is kept, the log-sum-exp
"""

from sim.tile_program import Compute, Load, Loop, OfItem, Store, Stream, once


def begin(
    what: str, *loads: Load, trips: OfItem = once, sram_bytes: int = 0, vector_ops: int = 0
) -> Loop:
    """The loop that brings what an item loads once; so many bytes of it are written to SRAM.

    `vector_ops` are lane operations until then: where everything lies is reckoned out.
    """
    wait = Compute(f"wait for {what}", loads, vector_ops=vector_ops, sram_bytes=sram_bytes)
    return Loop(trips, (*loads, wait))


def finish(elements: int, *results: Stream, trips: OfItem = once, sram_bytes: int = 0) -> Loop:
    """The loop that divides so many elements of O by their row's sum and stores `results`.

    O goes out through `sram_bytes` of SRAM.
    """
    divide = Compute("O / l", vector_ops=elements, sram_bytes=sram_bytes)
    return Loop(trips, (divide, *map(Store, results)))

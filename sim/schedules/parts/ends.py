"""How an item begins and ends: what is loaded once arrives; what was summed is divided, stored.

load Q_i;  wait until it is there
...
O_i = O_i / l_i;  store O_i and, where it is kept, the log-sum-exp

Results go out through SRAM, or as they lie in registers: a warp then stores sectors of eight rows
at a time, each of which takes a cycle of the SM's L1, which is its SRAM (an estimate, as in
validate/beside.py). Its port takes half as many.
"""

from sim.tile_program import Compute, Load, Loop, OfItem, Store, Stream, once

SECTOR_BYTES, SRAM_BYTES_A_CYCLE = 32, 128


def begin(what: str, *loads: Load, trips: OfItem = once, sram_bytes: int = 0) -> Loop:
    """The loop that brings what an item loads once; so many bytes of it are written to SRAM."""
    return Loop(trips, (*loads, Compute(f"wait for {what}", loads, sram_bytes=sram_bytes)))


def beyond_port_bytes(stored: Stream) -> int:
    """What storing a tile from registers takes of SRAM, less the cycles that its port takes [B]."""
    return SRAM_BYTES_A_CYCLE * (stored.tile_bytes // SECTOR_BYTES) // 2


def finish(
    elements: int,
    *results: Stream,
    trips: OfItem = once,
    sram_bytes: int = 0,
    other_ops: int = 0,
) -> Loop:
    """The loop that divides so many elements of O by their row's sum and stores `results`.

    O goes out through `sram_bytes` of SRAM, by `other_ops` beside the division.
    """
    divide = Compute("O / l", vector_ops=elements, sram_bytes=sram_bytes, other_ops=other_ops)
    return Loop(trips, (divide, *map(Store, results)))

"""The schedules: one file each, and the registry by which scenarios name them."""

from sim.schedules.base import Schedule
from sim.schedules.block_sparse import BlockSparse
from sim.schedules.flash1 import Flash1
from sim.schedules.flash2 import Flash2
from sim.schedules.flash_decoding import FlashDecoding
from sim.schedules.hip import Hip
from sim.schedules.naive import Naive

SCHEDULES: dict[str, type[Schedule]] = {
    "naive": Naive,
    "flash1": Flash1,
    "flash2": Flash2,
    "block_sparse": BlockSparse,
    "flash_decoding": FlashDecoding,
    "hip": Hip,
}

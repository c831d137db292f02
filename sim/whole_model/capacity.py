"""What must live in a GPU's HBM for a model to run at a context, and the longest that fits.

All figures are of the fullest GPU at its fullest moment: of a forward pass (inference.py), or of
forward and backward (training.py). Not counted: fragmentation of the allocator, CUDA graphs, data
parallelism.
"""

from collections.abc import Callable

from sim.whole_model.inference import inference
from sim.whole_model.moments import Memory, Use
from sim.whole_model.setting import Setting
from sim.whole_model.training import training

# Between contexts so many tokens apart the memory grows: nearer ones may be split in more or fewer
# partial results (`flash_decoding`), which are far less than so many tokens' keys and values.
SPACING = 256
MOST_TOKENS = 2**24  # beyond, a context counts as without limit


def memory(setting: Setting, use: Use, context: int) -> Memory:
    """What lives in HBM at a context of so many tokens, on the fullest GPU at its fullest moment.

    Raises InputError where the schedule does not take the use.
    """
    of_use = training if use.startswith("training") else inference
    found = [memory for share in setting.shares for memory in of_use(setting, share, use, context)]
    return max(found, key=lambda memory: memory.bytes)


def longest_context(setting: Setting, use: Use) -> int:
    """Tokens of the longest context that fits, a multiple of SPACING; 0 if none does.

    MOST_TOKENS stands for no limit. Raises InputError as `memory` does.
    """

    def fits(number: int) -> bool:
        return memory(setting, use, number * SPACING).bytes <= setting.usable_bytes

    return longest(fits, MOST_TOKENS // SPACING) * SPACING


def longest(fits: Callable[[int], bool], most: int) -> int:
    """The largest number up to `most` that fits, by bisection; 0 if none does.

    Whatever is smaller than one that fits must fit too.
    """
    low, high = 0, 1
    while high <= most and fits(high):
        low, high = high, high * 2
    high = min(high, most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        if fits(middle):
            low = middle
        else:
            high = middle
    return low

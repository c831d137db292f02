"""Cases drawn by a seed, each within limits of time and memory, and what came of them."""

import random
import tempfile
import traceback
from collections import Counter
from pathlib import Path

from sim.inputs.files import InputError
from tests.fuzz.kinds import Kind, kinds
from tests.fuzz.mutate import mutated
from tests.support.limits import memory_of_at_most, seconds_of_at_most

SECONDS = 5.0
MEMORY = 2**30
LONGEST_LINE = 2000  # characters of a message


def fuzz(cases: int, seed: int) -> tuple[Counter[tuple[str, str]], list[str]]:
    """How many of each kind were accepted and refused, and every fault in a few lines."""
    tally: Counter[tuple[str, str]] = Counter()
    faults = []
    with tempfile.TemporaryDirectory() as name:
        known = kinds(Path(name))
        for number in range(cases):
            rng = random.Random(f"{seed} {number}")
            kind = rng.choice(sorted(known))
            outcome, fault = _tried(known[kind], rng, Path(name))
            tally[kind, outcome] += 1
            if fault:
                faults.append(f"seed {seed}, case {number}, {kind}: {fault}")
    return tally, faults


def _tried(kind: Kind, rng: random.Random, folder: Path) -> tuple[str, str]:
    path = folder / f"case{kind.suffix}"
    for left in folder.glob(f"{path.name}*"):  # a store's log too
        left.unlink()
    path.write_bytes(mutated(rng.choice(kind.files), rng))
    try:
        with memory_of_at_most(MEMORY), seconds_of_at_most(SECONDS):
            kind.take(path)
    except InputError as error:
        well = "\n" not in str(error) and len(str(error)) < LONGEST_LINE
        return ("refused", "") if well else ("fault", f"no readable line: {str(error)[:300]!r}")
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return "fault", "".join(traceback.format_exception(error, limit=-2))
    return "accepted", ""

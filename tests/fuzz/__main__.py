"""`python -m tests.fuzz --cases 5000 --seed 1`: what came of each kind; exit code 1 on a fault."""

import argparse
import sys

from tests.fuzz.run import fuzz

asked = argparse.ArgumentParser(description=__doc__)
asked.add_argument("--cases", type=int, default=300)
asked.add_argument("--seed", type=int, default=0)
given = asked.parse_args()
tally, faults = fuzz(given.cases, given.seed)
for (kind, outcome), number in sorted(tally.items()):
    print(f"{kind:14} {outcome:9} {number:6,}")
for fault in faults:
    print(fault)
sys.exit(bool(faults))

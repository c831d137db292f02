"""Grids of CTAs: how many there are along each side, and where on each a CTA stands."""

from math import prod

from sim.tile_program import IntArray


class Grid:
    """A grid of CTAs, or of items; its sides are given with the one first that runs fastest.

    >>> import numpy as np
    >>> blocks_of_rows, heads = Grid(4, 2).at(np.arange(8))
    >>> blocks_of_rows.tolist(), heads.tolist()
    ([0, 1, 2, 3, 0, 1, 2, 3], [0, 0, 0, 0, 1, 1, 1, 1])
    """

    def __init__(self, *sides: int) -> None:
        self.sides = sides

    @property
    def size(self) -> int:
        """How many CTAs, or items, it has."""
        return prod(self.sides)

    def at(self, items: IntArray) -> tuple[IntArray, ...]:
        """Where along each side these items stand."""
        places = []
        for side in self.sides[:-1]:
            rest = items // side
            places.append(items - rest * side)  # quicker than a second division
            items = rest
        return (*places, items)

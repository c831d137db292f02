"""How the engine's functions are compiled.

They allocate nothing, so they do without Numba's reference counts, which would otherwise cost more
than the work (measured: 0.8 against 6.5 million tile steps a second).
"""

from typing import Any

from numba import njit

_OPTIONS: dict[str, Any] = {"_nrt": False, "error_model": "numpy"}

inlined = njit(forceinline=True, **_OPTIONS)
called = njit(**_OPTIONS)
entry = njit(cache=True, **_OPTIONS)  # what Python calls: compiled once, then read from disk

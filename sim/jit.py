"""How Numba compiles what Python calls.

Compiled functions allocate nothing, so they do without Numba's reference counts.
"""

from collections.abc import Callable
from typing import Any

from numba import njit

OPTIONS: dict[str, Any] = {"_nrt": False, "error_model": "numpy"}


def entry(function: Callable[..., Any]) -> Any:
    """What Python calls: compiled once, then read from disk; other threads run beside it.

    It lies beside the source, or in the user's cache where that cannot be written to (Numba's own
    order, NUMBA_CACHE_DIR first). Where neither can, as in a locked container, each process
    compiles it anew.
    """
    try:
        return njit(cache=True, nogil=True, **OPTIONS)(function)
    except RuntimeError:  # "cannot cache function: no locator available"
        return njit(nogil=True, **OPTIONS)(function)

"""The compiled engine (Numba)."""

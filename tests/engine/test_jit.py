"""How the engine is compiled: also where nothing can be kept."""

import numba.core.caching

from sim.jit import entry


def twice(number):
    return 2 * number


def test_where_no_folder_can_be_written_to_an_entry_is_compiled_without_a_cache(monkeypatch):
    assert entry(twice).stats.cache_path is not None
    monkeypatch.setattr(numba.core.caching.CacheImpl, "_locator_classes", [])
    uncached = entry(twice)
    assert uncached.stats.cache_path is None
    assert uncached(21) == 42

"""A disk on which no file grows beyond so many bytes: writing more fails as on a full one."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager

PAGE_BYTES = 4096  # of an SQLite file, which grows by them


@contextmanager
def files_of_at_most(size_bytes: int) -> Iterator[None]:
    """Until the end of the block; native code's writes fail too (OSError, EFBIG)."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

"""A disk on which no file grows beyond so many bytes: writing more fails as on a full one."""

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager

PAGE_BYTES = 4096  # of an SQLite file, which grows by them


@contextmanager
def files_of_at_most(size_bytes: int) -> Iterator[None]:
    """Until the end of the block; native code's writes fail too (OSError, EFBIG).

    Nor does Python keep what it compiles of modules meanwhile: it would keep the first part.
    """
    before, kept = resource.getrlimit(resource.RLIMIT_FSIZE), sys.dont_write_bytecode
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    sys.dont_write_bytecode = True
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        sys.dont_write_bytecode = kept

"""Public sets of measurements that a user can fetch, read into tables of figures.

One module a source: it says the repository, which of its files it reads, and what a row of them
means in the columns of `docs/measurements.md`. What kernels, dtypes and devices are called there
and here is one table, `names`. `run` reads a clone by one of them.
"""

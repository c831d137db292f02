"""Fast-forward: what a long kernel takes, told by a part of it.

choice    which kernels of a program are told so, and what a replay costs
plan      which part to replay, what of it to measure, and how coarse
reduced   that part as a kernel of its own, in coarser trips on a slower machine
told      what the part tells of the whole, and how far that may be off
run       the way through them
"""

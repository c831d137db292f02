"""Fast-forward: what a long kernel takes, told by a part of it.

choice    which kernels of a program are told so, and what a replay costs
plan      which part to replay, what of it to measure, how much smaller or coarser
lanes     which CTAs share what is brought, and what HBM brings at least
reduced   that part as a kernel of its own, on a smaller device or a slower machine
told      what the part tells of the whole
errors    how far that may be off, as far as such answers were: derived by a command
run       the way through them
"""

"""The schedules' kernels in Triton, walking the tiles that the simulator's kernels name."""

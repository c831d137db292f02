"""What several schedules share.

What any kernel is made of: grid, ends, elementwise, combine, registers. Of flash kernels:
flash_cta, flash_schedule (the options), flash_loop, public_tiles, masks, split_kv, combine_splits;
query_rows, dealing and flash3_cta for those of Hopper and Blackwell. Of eager frameworks: gemm,
eager, eager_softmax, softmax_sweeps, sdpa. Beside them: rope, backward, flash2_backward, kv_cache,
top_k, several_gpus. `results` is what a builder returns.
"""

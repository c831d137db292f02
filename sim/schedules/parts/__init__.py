"""What several schedules share.

What any kernel is made of: grid, ends, elementwise, combine, registers. Of flash kernels:
flash_cta, flash_schedule (the options), flash_loop, public_tiles, masks, split_kv; query_rows,
dealing and flash3_cta for those of Hopper and Blackwell. Beside them: rope, backward,
flash2_backward, eager, kv_cache, top_k, several_gpus. `results` is what a builder returns.
"""

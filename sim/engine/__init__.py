"""The engines that replay tile programs, and the device that runs a schedule's kernels."""

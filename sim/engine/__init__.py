"""The engines that replay kernels (compiled, reference), and fast-forward on either."""

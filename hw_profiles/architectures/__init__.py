"""What devices of an architecture share: an SM's resources, and what kernels sustain."""

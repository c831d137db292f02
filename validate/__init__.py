"""Schedules as real kernels: measured, calibrated by, and held against the simulator.

Needs torch and Triton (the `validate` extra) where kernels run; the rest does not.
"""

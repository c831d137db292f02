"""Tiny devices and workloads, and running them."""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "attnsim",
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("attnsim")

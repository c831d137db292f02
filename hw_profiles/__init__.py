"""Hardware profiles: one TOML a device, every figure with its source."""

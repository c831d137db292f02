"""What a person states: files, quantities, axes, model shapes, hardware profiles, workloads."""

"""What a person states: files, quantities, model shapes, hardware profiles, workloads."""

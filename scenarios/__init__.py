"""Scenarios: one TOML a question that a person would ask."""

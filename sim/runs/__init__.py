"""Scenarios run: jobs, records and their files, differences, sweeps and their store."""

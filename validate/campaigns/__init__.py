"""Campaigns: which points to measure on which kind of device."""

"""Whole models: what they need of memory, how long their passes take, how they are served."""

"""Fast-forward: what a long kernel takes, told by a part of it."""

"""Questions about devices that do not exist: which figures matter, and which to choose."""

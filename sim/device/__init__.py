"""The device (SimPy): memory, launches and links, on one GPU or several."""

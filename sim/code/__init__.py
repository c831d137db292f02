"""attnsim's own code: what results rest on, how it is compiled and kept."""

"""A fuzzer of our own: mutated files of every kind are refused well, or taken and sound."""

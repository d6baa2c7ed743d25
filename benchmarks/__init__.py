"""Benchmarks of Stagebus and of the alternatives that a user would choose. `make bench` runs all of them."""

"""Benchmarks of Stagebus beside the alternatives a user would choose. `make bench` runs all of them."""

"""What Stagebus costs, measured beside what a user would use instead. `make bench` runs all of it."""

"""A run, a model or a judge on the benchmarks of others: who is measured, how, and where it is kept."""

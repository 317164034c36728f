"""Benchmarks that others publish: of reward models and judges from files, of language models by lm-evaluation-harness."""

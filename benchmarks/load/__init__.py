"""The parts of benchmarks/load_test.py: what is sent, by whom, when, and what is told of it."""

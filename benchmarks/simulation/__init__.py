"""The parts of benchmarks/simulate.py: devices, arrivals, policies, and what bounds them all."""

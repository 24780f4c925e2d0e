"""The parts of `benchmarks.simulate`: devices, arrivals, policies, and upper bounds."""

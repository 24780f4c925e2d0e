"""Parts of the simulation `benchmarks.simulate`: devices, arrivals, policies and upper bounds."""

"""Tests of the benchmarks and of the tools they measure with."""

"""Tests with real processes, ports and signals."""

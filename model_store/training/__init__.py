"""Trains and measures neural networks, and writes model cards. Servers never import it."""

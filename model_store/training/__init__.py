"""Trains and measures networks and writes their model cards. Servers never import this package."""

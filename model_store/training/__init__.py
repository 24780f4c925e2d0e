"""Trains and measures models, and writes model cards. Servers do not import this package."""

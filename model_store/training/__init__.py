"""Trains networks, measures them and describes them. A server never imports this package."""

"""Decodes images in processes that may die, with a fair share of them for each client."""

"""Shoal for the terminal and for programs: the command `shoal`, and `shoal.client`.

Nothing is imported here, so that `shoal --help` and completion answer at once.
"""

__version__ = "0.2.0"

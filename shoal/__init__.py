"""The command `shoal` and the Python client `shoal.client`.

This module imports nothing, so that `shoal --help` and shell completion start fast.
"""

__version__ = "0.2.0"

"""Runs the command `shoal` as `python -m shoal`, without installing it."""

import sys

from shoal.command import main

if __name__ == "__main__":
    sys.exit(main())

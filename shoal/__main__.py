"""Runs the command as `python -m shoal`, where it is not installed."""

import sys

from shoal.command import main

if __name__ == "__main__":
    sys.exit(main())

"""`python -m shoal`: the command, where it is not installed."""

import sys

from shoal.command import main

if __name__ == "__main__":
    sys.exit(main())

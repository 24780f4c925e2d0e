"""Runs `shoal bench` and writes the results and a plot to benchmarks/results/.

python -m benchmarks.load_test --rate 100,200,400
"""

from __future__ import annotations

import pathlib
import sys

from shoal.command import main

RESULTS = pathlib.Path(__file__).parent / "results"

if __name__ == "__main__":
    sys.exit(main(["bench", "--out", str(RESULTS), *sys.argv[1:]]))

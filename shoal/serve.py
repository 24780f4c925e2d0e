"""Serve predictions over HTTP until SIGTERM or Ctrl-C.

    shoal serve
    shoal serve --host 0.0.0.0 --port 9000
    shoal serve --model pets --model-store ~/models --device gpu
    SHOAL_PORT=9000 shoal serve          every flag is also an environment variable; flags win

Then send an image: curl -F img=@horse.jpg http://127.0.0.1:8000/predict, or shoal predict horse.jpg
--url http://127.0.0.1:8000, or open the address in a browser. API keys are read from SHOAL_API_KEYS
or --api-keys-file. There is no flag for the keys themselves, because every user of a machine can
read its command lines.

Exit status: 0 after a clean stop, 1 if the model cannot be served, 2 if a setting is wrong, 3 if
the port is not available, 4 if the engine died, 130 after Ctrl-C twice.
"""

from __future__ import annotations

import argparse

from shoal import flags


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds a flag for each setting of the service."""
    parser.usage = "%(prog)s [--SETTING VALUE ...]"  # the full list would hide error messages
    flags.add(parser)


def run(options: argparse.Namespace) -> int:
    """Serves until it is told to stop. Returns the exit status."""
    flags.apply(options)
    from service.__main__ import main

    return main()

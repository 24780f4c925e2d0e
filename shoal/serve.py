"""Serve predictions over HTTP until SIGTERM or Ctrl-C.

    shoal serve
    shoal serve --host 0.0.0.0 --port 9000
    shoal serve --model pets --model-store ~/models --device gpu
    SHOAL_PORT=9000 shoal serve

Each flag has an environment variable. If both are given, the flag is used.

Send an image from another terminal, or open http://127.0.0.1:8000 in a browser:

    curl -F img=@horse.jpg http://127.0.0.1:8000/predict
    shoal predict horse.jpg --url http://127.0.0.1:8000

Set API keys in the environment variable SHOAL_API_KEYS or in the file of --api-keys-file. There is
no flag for keys, because all users of a machine can read the command lines of its processes.

Exit status: 0 after SIGTERM or Ctrl-C, 1 if the model cannot be served, 2 if a setting is invalid,
3 if the port is not available, 4 if the engine stopped responding, 130 after a second Ctrl-C.
"""

from __future__ import annotations

import argparse

from shoal import flags


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds a flag for each setting of the service."""
    parser.usage = "%(prog)s [--SETTING VALUE ...]"  # a list of all flags would hide error messages
    flags.add(parser)


def run(options: argparse.Namespace) -> int:
    """Serves until SIGTERM or Ctrl-C. Returns the exit status."""
    flags.apply(options)
    from service.__main__ import main

    return main()

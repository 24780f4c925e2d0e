"""Serve predictions over HTTP until SIGTERM or Ctrl-C.

    shoal serve
    shoal serve --host 0.0.0.0 --port 9000
    shoal serve --model pets --model-store ~/models --device gpu
    SHOAL_PORT=9000 shoal serve          every flag is an environment variable, too; a flag wins

Then: curl -F img=@horse.jpg http://127.0.0.1:8000/predict, or shoal predict horse.jpg --url
http://127.0.0.1:8000, or a browser. API keys are given by SHOAL_API_KEYS or by --api-keys-file, and
not by a flag: command lines can be read by every user of the machine.

Exit status: 0 after a clean stop, 1 when the model cannot be served, 2 when a setting is wrong, 3
when the port cannot be had, 4 when the engine died, 130 after Ctrl-C twice.
"""

from __future__ import annotations

import argparse

from shoal import flags


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "%(prog)s [--SETTING VALUE ...]"  # all of them, before every error, hide it
    flags.add(parser)


def run(options: argparse.Namespace) -> int:
    flags.apply(options)
    from service.__main__ import main

    return main()

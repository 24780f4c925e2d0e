"""Classify image files in this process, or with a server (--url).

    shoal predict horse.jpg photos/*.png
    shoal predict horse.jpg --url http://127.0.0.1:8000
    shoal predict photos/*.jpg --json | jq -r .class | sort | uniq -c
    curl -s https://example.org/cat.png | shoal predict -

The command prints one line for each prediction, in the order of the files. With --json, each line
is a JSON object. Errors are printed to standard error. With --json, an error is printed to standard
output as the JSON object of its file. The column MS is the time that the service took, in
milliseconds. The time includes waiting in the queue, but not the transfer of the image.

Without --url, the command first loads the model, which takes some seconds. The command then uses
the settings of `shoal serve` from the environment and the flags below. With --url, the command
reads the API key from the environment variable SHOAL_API_KEY.

Exit status: 0 if every file got a class, 1 if a file got no class or no server responds, 2 if an
argument or a setting is invalid.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager

from tqdm import tqdm

from service.settings import BadSettings, load_settings
from shoal import flags
from shoal.client import TIMEOUT, AsyncClient, parse_url
from shoal.errors import NoPrediction, NotServed, NotShoal, Unauthorized, Unreachable
from shoal.output import Result, error_line, header, json_line, row

MAX_CONCURRENT = 8
"""Maximum number of files that are classified at the same time."""
SETTINGS = ("model", "model_version", "model_store", "device", "backend")
FATAL = (Unreachable, NotShoal, NotServed, Unauthorized)
"""Errors that end the command, because all further files would fail in the same way."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `shoal predict`."""
    add = parser.add_argument
    add("files", nargs="+", metavar="FILE", help="image file, or - for standard input")
    add("--url", type=_url, help="URL of a server, such as http://127.0.0.1:8000")
    add("--json", action="store_true", help="print one JSON object per line, for programs")
    add(
        "--timeout",
        type=_seconds,
        default=TIMEOUT,
        metavar="SECONDS",
        help="maximum number of seconds for each file (default: %(default)s)",
    )
    flags.add(parser, SETTINGS)


def run(options: argparse.Namespace) -> int:
    """Classifies the files. Returns the exit status."""
    if options.url and (given := [flags.flag(n) for n in SETTINGS if n in options]):
        reason = "not allowed with --url, because the server chooses the model"
        return _print_error(f"{', '.join(given)}: {reason}", 2)
    flags.apply(options)
    try:
        return asyncio.run(_run(options))
    except BadSettings as error:
        return _print_error(str(error), 2)
    except FATAL as error:
        return _print_error(str(error), 1)


async def _run(options: argparse.Namespace) -> int:
    width = max(map(len, options.files))
    rows = failed = 0
    with tqdm(total=len(options.files), unit="image", leave=False, disable=None) as bar:
        async with (
            _client(options) as client,
            aclosing(_in_order(client, options.files)) as results,
        ):
            async for name, result in results:
                bar.update()
                failed += isinstance(result, Exception)
                if options.json:
                    bar.write(json_line(name, result))
                elif isinstance(result, Exception):
                    bar.write(f"shoal predict: {error_line(name, result)}", file=sys.stderr)
                else:
                    if not rows:
                        bar.write(header(width))
                    bar.write(row(name, result, width))
                    rows += 1
    return 1 if failed else 0


@asynccontextmanager
async def _client(options: argparse.Namespace) -> AsyncIterator[AsyncClient]:
    """Yields a client of the server at --url, or of the service in this process."""
    if options.url:
        async with AsyncClient(
            options.url, os.environ.get("SHOAL_API_KEY"), options.timeout
        ) as client:
            yield client
    else:
        from service.app import create_app
        from shoal import local

        overrides = {"api_keys": None, "api_keys_file": None, "request_timeout": options.timeout}
        settings = load_settings().model_copy(update=overrides)
        async with (
            local.running(create_app(settings)) as transport,
            AsyncClient(local.URL, timeout=options.timeout, transport=transport) as client,
        ):
            yield client


async def _in_order(
    client: AsyncClient, names: Sequence[str]
) -> AsyncGenerator[tuple[str, Result]]:
    """Yields each file and its result, in the order of `names`.

    At most `MAX_CONCURRENT` files are classified at the same time.
    """
    pending: deque[asyncio.Task[tuple[str, Result]]] = deque()
    try:
        for name in names:
            if len(pending) == MAX_CONCURRENT:
                yield await pending.popleft()
            pending.append(asyncio.create_task(_classify(client, name)))
        while pending:
            yield await pending.popleft()
    finally:
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)


async def _classify(client: AsyncClient, name: str) -> tuple[str, Result]:
    try:
        return name, await client.predict(sys.stdin.buffer if name == "-" else name)
    except FATAL:
        raise
    except (NoPrediction, OSError) as error:
        return name, error


def _print_error(text: str, status: int) -> int:
    print(f"shoal predict: {text}", file=sys.stderr)
    return status


def _url(text: str) -> str:
    try:
        parse_url(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def _seconds(text: str) -> float:
    if not 0 < (seconds := float(text)) <= 3600:
        raise argparse.ArgumentTypeError(
            f"the timeout must be more than 0 and at most 3600 seconds, not {text}"
        )
    return seconds

"""Classify image files: in this process, or by a server at --url.

    shoal predict horse.jpg photos/*.png
    shoal predict horse.jpg --url http://127.0.0.1:8000
    shoal predict photos/*.jpg --json | jq -r .class | sort | uniq -c
    curl -s https://example.org/cat.png | shoal predict -

Answers are lines on standard output, in the order of the files; with --json each is an object. Why
a file has none is told on standard error, and with --json in its place. MS is what the service
took, queue included, of which the way there and back is no part.

Without --url the model is loaded first, which takes some seconds, with the settings of `shoal
serve` from the environment and the flags below. A server's key is read from the environment
variable SHOAL_API_KEY.

Exit status: 0 where every file got a class, 1 where one did not or where nobody answers.
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
from shoal.client import TIMEOUT, AsyncClient, checked
from shoal.errors import NoPrediction, NotServed, NotShoal, Unauthorized, Unreachable
from shoal.outcomes import Outcome, heading, in_json, in_words, row

MOST_UNDER_WAY = 8
SETTINGS = ("model", "model_version", "model_store", "device")
FOR_ALL = (Unreachable, NotShoal, NotServed, Unauthorized)
"""What is so for one file is so for all that follow."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("files", nargs="+", metavar="FILE", help="an image; - is standard input")
    add("--url", type=_url, help="of a server, such as http://127.0.0.1:8000")
    add("--json", action="store_true", help="an object a line, for programs")
    add(
        "--timeout",
        type=_seconds,
        default=TIMEOUT,
        metavar="SECONDS",
        help="in which each file must be answered (%(default)s)",
    )
    flags.add(parser, SETTINGS)


def run(options: argparse.Namespace) -> int:
    if options.url and (given := [flags.flag(n) for n in SETTINGS if n in options]):
        return _complain(f"{', '.join(given)}: a server at --url has its own model", 2)
    flags.apply(options)
    try:
        return asyncio.run(_run(options))
    except BadSettings as error:
        return _complain(str(error), 2)
    except FOR_ALL as error:
        return _complain(str(error), 1)


async def _run(options: argparse.Namespace) -> int:
    width = max(map(len, options.files))
    rows = failed = 0
    with tqdm(total=len(options.files), unit="image", leave=False, disable=None) as bar:
        async with (
            _client(options) as client,
            aclosing(_in_order(client, options.files)) as outcomes,
        ):
            async for name, outcome in outcomes:
                bar.update()
                failed += isinstance(outcome, Exception)
                if options.json:
                    bar.write(in_json(name, outcome))
                elif isinstance(outcome, Exception):
                    bar.write(f"shoal predict: {in_words(name, outcome)}", file=sys.stderr)
                else:
                    if not rows:
                        bar.write(heading(width))
                    bar.write(row(name, outcome, width))
                    rows += 1
    return 1 if failed else 0


@asynccontextmanager
async def _client(options: argparse.Namespace) -> AsyncIterator[AsyncClient]:
    """Of the server at --url, or of the service in this process."""
    if options.url:
        async with AsyncClient(
            options.url, os.environ.get("SHOAL_API_KEY"), options.timeout
        ) as client:
            yield client
    else:
        from service.app import create_app
        from shoal import local

        ours = {"api_keys": None, "api_keys_file": None, "request_timeout": options.timeout}
        settings = load_settings().model_copy(update=ours)
        async with (
            local.served(create_app(settings)) as transport,
            AsyncClient(local.URL, timeout=options.timeout, transport=transport) as client,
        ):
            yield client


async def _in_order(
    client: AsyncClient, names: Sequence[str]
) -> AsyncGenerator[tuple[str, Outcome]]:
    """Every file with what came of it, some under way at any moment. Raises FOR_ALL."""
    under_way: deque[asyncio.Task[tuple[str, Outcome]]] = deque()
    try:
        for name in names:
            if len(under_way) == MOST_UNDER_WAY:
                yield await under_way.popleft()
            under_way.append(asyncio.create_task(_ask(client, name)))
        while under_way:
            yield await under_way.popleft()
    finally:
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)


async def _ask(client: AsyncClient, name: str) -> tuple[str, Outcome]:
    try:
        return name, await client.predict(sys.stdin.buffer if name == "-" else name)
    except FOR_ALL:
        raise
    except (NoPrediction, OSError) as error:
        return name, error


def _complain(text: str, status: int) -> int:
    print(f"shoal predict: {text}", file=sys.stderr)
    return status


def _url(text: str) -> str:
    try:
        checked(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def _seconds(text: str) -> float:
    if not 0 < (seconds := float(text)) <= 3600:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 3600")
    return seconds

"""Searches for inputs that cost the server the most CPU time and memory, in total and per byte.

    python -m tests.faults.cost_search --minutes 60 [--kinds gif,png] [--corpus FOLDER]

Sends one request at a time to a real server in its own process group, and measures its CPU time and
peak memory. An input that costs more than all others of its size is kept and mutated further. The
corpus is outside the repository, and the next run continues it. Prints the worst inputs of each
kind. The exit status is 1 if one exceeds a bound or ends the server.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import pathlib
import random
import select
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from tests.e2e.process import ROOT
from tests.faults import hostile
from tests.faults.attackers import INFER, MODEL
from tests.faults.mutations import IMAGES, KINDS, Mutator, size_at, sizes
from tests.faults.target import LIMIT, Target
from tests.faults.wire import post
from tests.service import synthetic

CORPUS = pathlib.Path.home() / ".cache" / "shoal-cost"
PATIENCE = 60.0
"""Maximum seconds of one request while the server computes."""
SILENCE = 10.0, 1.0
"""Seconds without an answer from an idle server until a request counts as unanswered: for the first
such requests of a kind, and for later ones."""
HEAD = 150
"""Bytes around an input that count as sent."""
SHOWN = 160
"""Inputs of at most this many bytes are printed in hexadecimal."""
STALLS = 3
"""Number of images of a kind with width or height 0 to record; later ones are skipped."""
END = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
REFUSED = 429
"""The status for a client that has sent too many costly requests."""


@dataclass(frozen=True)
class Cost:
    """The cost of one request."""

    seconds: float
    mebibytes: float
    status: int
    """HTTP status. 0: no answer."""


@dataclass(frozen=True)
class Found:
    kind: str
    data: bytes
    cost: Cost

    @property
    def sent(self) -> int:
        return len(self.data) + HEAD

    def objectives(self) -> dict[str, float]:
        return {"CPU": self.cost.seconds, "memory": self.cost.mebibytes}


class Elites:
    """The costliest inputs by kind, objective, size (to a power of two) and status.

    Within a size, what costs most costs most per byte, too.
    """

    def __init__(self) -> None:
        self._best: dict[tuple[str, str, int, int], tuple[float, Found]] = {}

    def improves(self, found: Found) -> bool:
        """Returns whether it clearly costs more than the input kept in its place."""
        return any(
            value > 1.1 * self._best.get(place, (0.0, found))[0] + self._noise(objective)
            for place, objective, value in self._places(found)
        )

    def add(self, found: Found) -> None:
        for place, _, value in self._places(found):
            if value > self._best.get(place, (0.0, found))[0]:
                self._best[place] = value, found

    def choose(self, kind: str, dice: random.Random) -> Found:
        """Chooses two inputs and returns the smaller one, which is faster to measure and has more
        room to grow."""
        kept = [found for key, (_, found) in self._best.items() if key[0] == kind]
        return min(dice.choice(kept), dice.choice(kept), key=lambda found: found.sent)

    def all(self) -> list[Found]:
        return [*dict.fromkeys(found for _, found in self._best.values())]

    def _places(self, found: Found) -> list[tuple[tuple[str, str, int, int], str, float]]:
        size, status = found.sent.bit_length(), found.cost.status
        return [
            ((found.kind, objective, size, status), objective, value)
            for objective, value in found.objectives().items()
        ]

    @staticmethod
    def _noise(objective: str) -> float:
        return 0.0005 if objective == "CPU" else 0.5


class Prober:
    """Sends one request at a time and measures it. Changes its address regularly, and after each
    costly request, because the server may reject a client that costs it much."""

    def __init__(self, target: Target, dice: random.Random) -> None:
        self._target, self._dice = target, dice
        self.unanswered: Counter[str] = Counter()
        self._line: socket.socket | None = None
        self._call: Callable[[bytes], int] | None = None

    def measure(self, kind: str, data: bytes) -> Cost:
        """Measures a request. Raises Ended if it ends the server."""
        group = self._target.group
        group.reset_peak()
        memory, cpu, killed = group.memory(), group.cpu_seconds(), group.killed()
        status = self._send(kind, data)
        self._wait_until_quiet()
        if not self._target.server.running() or group.killed() > killed:
            self.forget()
            raise Ended
        seconds = group.cpu_seconds() - cpu
        if seconds > 0.1 or status in (0, REFUSED, 503):
            self.forget()
        return Cost(seconds, max(0.0, group.peak() - memory), status)

    def forget(self) -> None:
        """Uses another address for the next request."""
        if self._line is not None:
            self._line.close()
        self._line = self._call = None

    def _send(self, kind: str, data: bytes) -> int:
        if kind == "grpc":
            return self._rpc(data)
        request = as_request(kind, data)
        for _ in range(2):  # a connection that was kept may have ended
            kept = self._line is not None
            line = self._line = self._line or self._connect()
            silence = SILENCE[self.unanswered[kind] >= 3]
            status, keeps = _exchange(
                line, request, functools.partial(self._is_idle, line, silence)
            )
            if not keeps or kind in ("head", "chunks"):
                line.close()
                self._line = None
            if status or not kept:
                break
        if not status and kind not in ("head", "chunks", *IMAGES):
            self.unanswered[kind] += 1
        return status

    def _is_idle(self, line: socket.socket, seconds: float) -> bool:
        """Returns whether the server uses no CPU and sends nothing for `seconds`."""
        before = self._target.group.cpu_seconds()
        arrived, _, _ = select.select([line], [], [], seconds)
        return not arrived and self._target.group.cpu_seconds() - before < 0.02 * seconds

    def _connect(self) -> socket.socket:
        dice = self._dice
        address = f"127.{dice.randrange(1, 255)}.{dice.randrange(256)}.{dice.randrange(1, 255)}"
        return socket.create_connection(
            ("127.0.0.1", self._target.port), PATIENCE, source_address=(address, 0)
        )

    def _rpc(self, data: bytes) -> int:
        import grpc

        if self._call is None:
            channel = grpc.insecure_channel(
                f"127.0.0.1:{self._target.grpc_port}", [("grpc.use_local_subchannel_pool", 1)]
            )
            method: Any = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")

            def call(message: bytes) -> int:
                try:
                    method(message, timeout=PATIENCE)
                except grpc.RpcError as error:
                    return int(error.code().value[0])
                return 200

            self._call = call
        return self._call(data)

    def _wait_until_quiet(self) -> None:
        """Waits until the server is idle, since work may continue after an answer."""
        end = time.monotonic() + PATIENCE
        before, pause = self._target.group.cpu_seconds(), 0.001
        while self._target.server.running() and time.monotonic() < end:
            time.sleep(pause)
            if (now := self._target.group.cpu_seconds()) - before < 0.1 * pause + 0.0001:
                return
            before, pause = now, min(0.05, 1.5 * pause)


class Ended(Exception):
    """A request ended the server or one of its processes."""


def as_request(kind: str, data: bytes) -> bytes:
    """Returns the HTTP request for an input."""
    if kind in IMAGES:
        return post("/predict", f"image/{kind}", data)
    if kind in ("form", "batch"):
        path = "/predict" if kind == "form" else "/predict/batch"
        return post(path, "multipart/form-data; boundary=b", data)
    if kind == "json":
        return post(INFER, "application/json", data)
    if kind == "chunks":
        head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n"
        return head + b"Content-Type: image/png\r\n\r\n" + data + END
    return data + END


def _exchange(line: socket.socket, request: bytes, is_idle: Callable[[], bool]) -> tuple[int, bool]:
    """Reads an answer. Returns its status and whether the connection can be used again. If more
    answers may follow, reads until the server closes the connection or is silent."""
    received, last = bytearray(), request.endswith(END)
    end = time.monotonic() + PATIENCE
    try:
        line.settimeout(PATIENCE)
        with contextlib.suppress(ConnectionError):  # refused before its end: the answer is there
            line.sendall(request)
        line.settimeout(0.1)
        while last or not _whole(received):
            try:
                piece = line.recv(2**18)
            except TimeoutError:
                if last or time.monotonic() > end or is_idle():
                    break
                continue
            if not piece:
                break
            if len(received) < 2**20:
                received += piece
    except OSError:
        pass
    status = int(received[9:12]) if received[9:12].isdigit() else 0
    return status, bool(status) and not last and b"connection: close" not in received.lower()


def _whole(received: bytearray) -> bool:
    head, end, body = received.partition(b"\r\n\r\n")
    _, _, length = head.lower().partition(b"content-length:")
    return bool(end) and len(body) >= int(length.partition(b"\r")[0] or 0)


def seeds(kind: str) -> list[bytes]:
    """Returns small valid inputs, none of them hostile."""
    dot = synthetic.encode(synthetic.flat("RGB", "red"), "PNG")
    if kind in IMAGES:
        name = {"jpeg": "JPEG", "webp": "WEBP"}.get(kind, kind.upper())
        flat = [synthetic.encode(synthetic.flat("RGB", "red"), name)]
        if kind == "webp":
            flat.append(synthetic.encode(synthetic.flat("RGB", "red"), name, lossless=True))
        served = [data for name, data in synthetic.served().items() if name.startswith(kind)]
        return flat + [data for data in served if len(data) < 20_000]
    part = b'--b\r\nContent-Disposition: form-data; name="img"; filename="a.png"\r\n\r\n'
    return {
        "form": [part + dot + b"\r\n--b--\r\n"],
        "batch": [(part + dot + b"\r\n") * 3 + b"--b--\r\n"],
        "head": [
            END.replace(b"Connection: close\r\n", b"Accept: */*\r\nX-Request-ID: 1\r\n"),
            post("/predict", "image/png", dot),
            b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n",
            b"OPTIONS /predict HTTP/1.1\r\nHost: localhost\r\nOrigin: http://a\r\n\r\n",
        ],
        "chunks": [b"5\r\nhello\r\n0\r\n\r\n", b"%x\r\n%b\r\n0\r\n\r\n" % (len(dot), dot)],
        "json": [
            hostile.inference([dot]),
            b'{"id":"a","parameters":{"timeout":9000000},"inputs":[{"name":"pixels",'
            b'"shape":[1,32,32,3],"datatype":"UINT8","data":[%b]}],"outputs":[{"name":"class"}]}'
            % b",".join([b"7"] * 3072),
        ],
        "grpc": [hostile.message(MODEL, [dot] * count) for count in (1, 3) if find_spec("grpc")],
    }[kind]


class Search:
    def __init__(self, options: argparse.Namespace, target: Target) -> None:
        self._options, self._target = options, target
        self._dice = random.Random(options.seed)
        self._prober = Prober(target, self._dice)
        self._mutator = Mutator(self._dice, options.max_bytes)
        self._seeds = {kind: self._first(kind) for kind in options.kinds}
        self.elites = Elites()
        self.tried: Counter[str] = Counter()
        self._spent = dict.fromkeys(options.kinds, 0.0)
        self.stalls: Counter[str] = Counter()
        self.enders: list[Found] = []
        self.exceeding: list[Found] = []

    @property
    def unanswered(self) -> Counter[str]:
        """Kind -> inputs that got no answer."""
        return self._prober.unanswered

    def run(self) -> None:
        for kind, inputs in self._seeds.items():
            for data in inputs:
                self._try(kind, data)
        end = time.monotonic() + 60 * self._options.minutes
        said = time.monotonic()
        while time.monotonic() < end:
            kind = min(self._options.kinds, key=self._spent.__getitem__)  # equal time for each
            began = time.monotonic()
            self._try(kind, self._mutant(kind))
            self._spent[kind] += time.monotonic() - began
            if time.monotonic() > said + 60:
                said = time.monotonic()
                print(self._progress(), file=sys.stderr, flush=True)

    def _first(self, kind: str) -> list[bytes]:
        found = [*seeds(kind)]
        if self._options.known:
            signature = {"jpeg": "JPEG", "webp": "WebP"}.get(kind, kind.upper())
            found += [
                make()
                for name, make in hostile.FILES.items()
                if signature in name.partition(",")[0]
            ]
        if self._options.seeds and kind in IMAGES:
            beginning = {b"GIF8": "gif", b"RIFF": "webp", b"\x89PNG": "png", b"\xff\xd8": "jpeg"}
            for file in sorted(self._options.seeds.rglob("*")):
                if file.is_file() and file.stat().st_size < self._options.max_bytes:
                    data = file.read_bytes()
                    kinds = [k for begin, k in beginning.items() if data.startswith(begin)]
                    found += [data] if kind in kinds else []
        folder = self._options.corpus / kind
        folder.mkdir(parents=True, exist_ok=True)
        return found + [file.read_bytes() for file in sorted(folder.iterdir())]

    def _mutant(self, kind: str) -> bytes:
        def parent() -> bytes:
            if self._dice.random() < 0.25:
                return self._dice.choice(self._seeds[kind])
            with contextlib.suppress(IndexError):
                return self.elites.choose(kind, self._dice).data
            return self._dice.choice(self._seeds[kind])

        return self._mutator.mutate(kind, parent(), parent())

    def _try(self, kind: str, data: bytes) -> None:
        if self.stalls[kind] >= STALLS and any(0 in size_at(data, at) for at in sizes(kind, data)):
            return
        self.tried[kind] += 1
        try:
            found = Found(kind, data, self._prober.measure(kind, data))
            if found.cost.status in (0, 504) and kind in IMAGES and found.cost.seconds < 1:
                self._stalled(found)
                return
            if not self._is_notable(found):
                return
            found = self._confirmed(found)
        except Ended:
            self.enders.append(Found(kind, data, Cost(0, 0, 0)))
            self._save("finds", kind, data)
            self._target.restart()
            return
        if self.elites.improves(found):
            self.elites.add(found)
            self._save(kind, kind, data)
        if self._exceeds(found.cost):
            self.exceeding.append(found)
            self._save("finds", kind, data)

    def _stalled(self, found: Found) -> None:
        """Records a request that timed out, or got no answer while the server was idle."""
        self.stalls[found.kind] += 1
        self._save("finds", found.kind, found.data)

    def _is_notable(self, found: Found) -> bool:
        return found.cost.status != REFUSED and (
            self.elites.improves(found) or self._exceeds(found.cost)
        )

    def _exceeds(self, cost: Cost) -> bool:
        options = self._options
        return bool(cost.seconds > options.max_seconds or cost.mebibytes > options.max_mib)

    def _confirmed(self, found: Found) -> Found:
        """Returns the minimum of three measurements, since other work on the machine only adds
        cost."""
        costs = [found.cost]
        for _ in range(2):
            again = self._prober.measure(found.kind, found.data)
            if again.status == found.cost.status:
                costs.append(again)
        return Found(
            found.kind,
            found.data,
            Cost(
                min(cost.seconds for cost in costs),
                min(cost.mebibytes for cost in costs[:1] + costs[-1:]),
                found.cost.status,
            ),
        )

    def _save(self, folder: str, kind: str, data: bytes) -> None:
        name = f"{kind}-{hashlib.sha256(data).hexdigest()[:12]}"
        place = self._options.corpus / folder
        place.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(data)

    def _progress(self) -> str:
        found, ended = self.elites.all(), len(self.enders)
        return (
            f"{self.tried.total():,} inputs, {len(found)} kept, {ended} ended the server; "
            f"at most {max((f.cost.seconds for f in found), default=0):.2f} s of CPU and "
            f"{max((f.cost.mebibytes for f in found), default=0):,.0f} MiB"
        )

    def report(self) -> str:
        """Prints the worst inputs of each kind as a Markdown table, small ones in hexadecimal, and
        saves them in the folder `worst` of the corpus."""
        lines = ["| kind | inputs | worst by | bytes | status | CPU, s | MiB | most |"]
        lines.append("|" + "---|" * 8)
        shown: dict[bytes, str] = {}
        for kind in self._options.kinds:
            found = [one for one in self.elites.all() if one.kind == kind]
            for title, unit, worth in WORST:
                if not found:
                    continue
                one = max(found, key=worth)
                self._save("worst", kind, one.data)
                value, sent = worth(one), 1024 / one.sent
                rate = f"{value if 'KiB' in title else value * sent:,.3g} {unit}"
                lines.append(
                    f"| {kind} | {self.tried[kind]:,} | {title} | {len(one.data):,} "
                    f"| {one.cost.status or 'none'} | {one.cost.seconds:.3f} "
                    f"| {one.cost.mebibytes:,.0f} | {rate} |"
                )
                if len(one.data) <= SHOWN:
                    shown[one.data] = (
                        f"{kind}, {one.cost.seconds:.3f} s, {one.cost.mebibytes:,.0f} MiB"
                    )
        lines += [f"\n{what}: {data.hex()}" for data, what in shown.items()]
        return "\n".join(lines)


WORST: list[tuple[str, str, Callable[[Found], float]]] = [
    ("CPU", "s", lambda found: found.cost.seconds),
    ("CPU per KiB", "s", lambda found: 1024 * found.cost.seconds / found.sent),
    ("memory", "MiB", lambda found: found.cost.mebibytes),
    ("memory per KiB", "MiB", lambda found: 1024 * found.cost.mebibytes / found.sent),
]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Search for the inputs that cost the server the most CPU time and memory."
    )
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument(
        "--kinds", default=",".join(KINDS), help="kinds of inputs, separated by commas"
    )
    parser.add_argument("--corpus", type=pathlib.Path, default=CORPUS, help="folder of the corpus")
    parser.add_argument(
        "--seeds", type=pathlib.Path, help="folder of additional images to start with"
    )
    parser.add_argument("--known", action="store_true", help="also start with the known attacks")
    parser.add_argument("--seed", type=int, default=None, help="seed of the random numbers")
    parser.add_argument(
        "--max-bytes", type=int, default=256 * 1024, help="maximum size of an input"
    )
    parser.add_argument(
        "--max-seconds", type=float, default=1.5, help="maximum CPU time of an input"
    )
    parser.add_argument("--max-mib", type=float, default=800, help="maximum memory of an input")
    parser.add_argument(
        "--mebibytes", type=int, default=LIMIT, help="memory limit of the server in MiB"
    )
    options = parser.parse_args()
    options.kinds = [kind for kind in options.kinds.split(",") if kind]
    options.corpus = options.corpus.resolve()
    if options.corpus.is_relative_to(ROOT):
        parser.error("The corpus does not belong in the repository. Name another folder.")
    if unknown := {*options.kinds} - {*KINDS}:
        parser.error(f"Unknown kinds: {', '.join(sorted(unknown))}. Known: {', '.join(KINDS)}.")
    if "grpc" in options.kinds and not find_spec("grpc"):
        options.kinds.remove("grpc")
    return options


def main() -> int:
    options = parse()
    settings = {"SHOAL_GRPC_PORT": "0"} if "grpc" in options.kinds else {}
    with Target(options.mebibytes, **settings) as target:
        print(f"Memory limit: {options.mebibytes} MiB by {target.group.name}", file=sys.stderr)
        search = Search(options, target)
        search.run()
    print(search.report())
    for found in search.enders:
        shown = found.data.hex() if len(found.data) <= SHOWN else f"{len(found.data):,} bytes"
        print(f"ENDED THE SERVER: {found.kind}: {shown}")
    for kind, count in (search.stalls + search.unanswered).items():
        print(f"UNANSWERED, or answered 504 by an idle server: {count:,} of {kind}")
    print(
        f"\n{search.tried.total():,} inputs; {len(search.exceeding)} exceeded "
        f"{options.max_seconds} s or {options.max_mib:,.0f} MiB; {len(search.enders)} ended the "
        f"server; corpus: {options.corpus}"
    )
    return 1 if search.exceeding or search.enders or search.stalls or search.unanswered else 0


if __name__ == "__main__":
    sys.exit(main())

"""Defines the servers that `make bench` compares, and how the servers are started."""

from __future__ import annotations

import contextlib
import pathlib
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks.servers import ROOT, Server, module, serving


@dataclass(frozen=True)
class Competitor:
    """A server that takes part in a comparison."""

    name: str
    command: Sequence[str]
    """Path of the program, relative to the repository, and arguments. The text `{port}` is replaced
    by the port."""
    raw: tuple[bool, ...]
    """Kinds of uploads that the server accepts. True: the image is the body of the request. False:
    the image is in a form."""
    package: str | None = None
    """Python package of the server. The report shows the version of the package. None: the report
    shows no version."""
    environment: dict[str, str] = field(default_factory=dict)
    """Additional environment variables."""

    @property
    def program(self) -> pathlib.Path:
        """Path of the program, in the virtual environment of this server."""
        return ROOT / self.command[0]

    @property
    def installed(self) -> bool:
        """Whether the program exists."""
        return self.program.exists()

    def version(self) -> str:
        """Returns the name and the version of `package`. Empty: `package` is None."""
        if self.package is None:
            return ""
        code = f"import importlib.metadata as m; print(m.version({self.package!r}))"
        python = self.program.parent / "python"
        result = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
        return f"{self.package} {result.stdout.strip()}"

    def serving(self, log: pathlib.Path) -> contextlib.AbstractContextManager[Server]:
        """Runs the server during the block (see `servers.serving`). `log` is the output file."""
        return serving([str(self.program), *self.command[1:]], log, self.environment)


FLASK = ".bench/flask/bin"
SHOAL = "Shoal"
INT8 = "Shoal in int8"
TUTORIAL = "the tutorial's Flask"
UNBATCHED = "FastAPI, no batching"
MOSEC = "Mosec"
GUNICORN = (
    f"{FLASK}/gunicorn",
    "benchmarks.baselines.flask_once:app",
    "--workers=2",
    "--worker-class=sync",
    "--bind=127.0.0.1:{port}",
    "--log-level=warning",
)
COMPETITORS = (
    Competitor(UNBATCHED, module("benchmarks.baselines.fastapi_alone"), (False,), "fastapi"),
    Competitor(
        MOSEC,
        (
            ".bench/mosec/bin/python",
            "benchmarks/rivals/mosec_server.py",
            "--port={port}",
            "--address=127.0.0.1",
            "--timeout=30000",
            "--log-level=warning",
        ),
        (True,),
        "mosec",
    ),
    *(
        Competitor(
            name,
            module("service"),
            (True, False),
            None,
            {"SHOAL_PRECISION": precision, "SHOAL_LOG_LEVEL": "warning"},
        )
        for name, precision in ((SHOAL, "fp32"), (INT8, "int8"))
    ),
    Competitor(
        TUTORIAL, (f"{FLASK}/python", "-m", "benchmarks.baselines.tutorial"), (False,), "flask"
    ),
    Competitor("Flask, gunicorn", GUNICORN, (False,), "gunicorn"),
    Competitor(
        "LitServe",
        (".bench/litserve/bin/python", "-m", "benchmarks.rivals.litserve_server"),
        (False,),
        "litserve",
    ),
    Competitor(
        "BentoML",
        (
            ".bench/bentoml/bin/bentoml",
            "serve",
            "benchmarks.rivals.bentoml_server:Classifier",
            "--port={port}",
            "--host=127.0.0.1",
        ),
        (False,),
        "bentoml",
        {
            "BENTOML_DO_NOT_TRACK": "true",
            "BENTOML_CONFIG_OPTIONS": "services.logging.access.enabled=false",
        },
    ),
)
"""All servers, in the order of the measurements. Some measurements of every server use half of the
throughput of one of the first two servers as the request rate. No server logs requests."""

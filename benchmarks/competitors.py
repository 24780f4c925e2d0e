"""The servers that `make bench` compares, and how each is started."""

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
    """Program, relative to the repository, and arguments. `{port}` is replaced by the port."""
    raw: tuple[bool, ...]
    """The uploads that it accepts. True: the image as the body. False: the image in a form."""
    package: str | None = None
    """The Python package whose version the report states. None: none."""
    environment: dict[str, str] = field(default_factory=dict)
    """Additional environment variables."""

    @property
    def program(self) -> pathlib.Path:
        """The program, in the virtual environment of this competitor."""
        return ROOT / self.command[0]

    @property
    def installed(self) -> bool:
        """Whether its virtual environment exists."""
        return self.program.exists()

    def version(self) -> str:
        """Returns the name and the version of its package; empty if it has none."""
        if self.package is None:
            return ""
        code = f"import importlib.metadata as m; print(m.version({self.package!r}))"
        python = self.program.parent / "python"
        result = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
        return f"{self.package} {result.stdout.strip()}"

    def serving(self, log: pathlib.Path) -> contextlib.AbstractContextManager[Server]:
        """Runs a fresh server for the duration of the block; see `servers.serving`."""
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
"""The first ones set the rates at which all others are measured. None of them logs requests."""

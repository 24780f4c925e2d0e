"""Every command of the documentation runs, or is listed here with the reason why it does not.

Blocks of `sh` and `console` are run in order, page by page, against a server that the tests start,
and print what the page shows. `make` prints what it would do, and checks the settings it is given.
Commands in running text, which may be incomplete, are checked to exist.
"""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.e2e.process import REAL, Server
from tests.pages import PAGES, Command, blocks, inline_commands, name_of
from tests.sources import ROOT

pytestmark = pytest.mark.slow

NOT_RUN = {
    r"git clone ": "it downloads this repository",
    r"git config ": "it changes the checkout",
    r"apt-get ": "it installs packages of the system",
    r"(\.venv/bin/)?pip ": "it is about packages that are installed",
    r"(docker|podman) ": "it needs a container engine; `make check-image` runs the image",
    r"(kind|minikube|kubectl) ": "it needs a cluster; `make manifests` checks the manifests",
    r"k8s/render ": "`make manifests` renders every combination",
    r"curl .*ADDRESS": "ADDRESS is that of the reader's cluster",
    r"python -m service ": "it serves until it is stopped; most tests in tests/e2e start it",
    r"shoal serve": "it serves until it is stopped; tests/e2e/test_command.py starts it",
    r"shoal bench": "it loads the machine; tests/e2e/test_command.py runs it",
    r".*-m model_store (train|calibrate|evaluate|card)": "it needs CIFAR-10; other tests run it",
}
"""Patterns of commands, each with the reason why the tests do not run it."""
TIMEOUT = 120.0
"""Seconds in which a command must end, on a busy machine."""

MAKE = """#!/bin/sh
env | grep -q ^SHOAL_ && ! "{python}" -c 'if True:
    import os
    from service.settings import load_settings, unknown
    load_settings()
    raise SystemExit("\\n".join(unknown(os.environ)) or None)
' && exit 2
exec {make} --dry-run -C "{root}" "$@"
"""
"""Checks the settings in the environment, and prints what make would do."""
PYTHON = '#!/bin/sh\nexec "{python}" "$@"\n'
SHOAL = '#!/bin/sh\nexec "{python}" -m shoal "$@"\n'
CURL = '#!/bin/sh\nexec {curl} --silent --fail-with-body "$@"\n'


@dataclass(frozen=True)
class Checkout:
    """A folder like a fresh clone after `make serve`, whose store may be changed, and a server.

    Args:
        folder: Its path. `.venv` and `bin` have stand-ins for the programs that pages name.
        addresses: Address in a page -> address of the server that the tests started.
    """

    folder: pathlib.Path
    addresses: dict[str, str]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a program in the folder. It and what it starts end within TIMEOUT."""
        clean = {k: v for k, v in os.environ.items() if not k.startswith("SHOAL_")}
        path = f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
        return subprocess.run(
            ("timeout", str(TIMEOUT), *arguments),
            cwd=self.folder,
            env={**clean, "PATH": path, "PYTHONPATH": str(self.folder)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def shell(self, command: str) -> subprocess.CompletedProcess[str]:
        """Run a command of a page, with the addresses of the server."""
        return self.run("bash", "-o", "pipefail", "-c", self.addressed(command))

    def addressed(self, text: str) -> str:
        """`text` with the addresses of the server in place of those in the page."""
        for documented, actual in self.addresses.items():
            text = text.replace(documented, actual)
        return text


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkout]:
    if (curl := shutil.which("curl")) is None or (make := shutil.which("make")) is None:
        pytest.skip("no curl or make: apt-get install curl make")
    folder = tmp_path_factory.mktemp("checkout")
    for path in ROOT.iterdir():
        if path.name not in (".git", ".venv", "model_store"):
            (folder / path.name).symlink_to(path)
    shutil.copytree(ROOT / "model_store", folder / "model_store")
    store = folder / "model_store/models"
    for name in "net.params", "better.params":
        shutil.copy(store / "cifar_resnet20_v1/2/net.params", folder / name)
    (folder / "labels.txt").write_text("\n".join(f"pet {number}" for number in range(10)))
    programs = {".venv/bin/python": PYTHON, "bin/python": PYTHON, "bin/shoal": SHOAL}
    programs |= {"bin/curl": CURL, "bin/make": MAKE}
    for name, text in programs.items():
        program = folder / name
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text(text.format(python=sys.executable, root=ROOT, make=make, curl=curl))
        program.chmod(0o755)
    settings = {
        "SHOAL_MODEL_STORE": str(store),
        "SHOAL_ADMIN_KEYS": "a-long-secret-of-yours",
        "SHOAL_GRPC_PORT": "0",
    }
    with Server(*REAL, **settings) as server:
        server.wait_until_ready()
        http, grpc = server.url.removeprefix("http://"), server.address("gRPC on")
        yield Checkout(folder, {"127.0.0.1:8000": http, "127.0.0.1:8001": grpc})


def why_not_run(command: str) -> str | None:
    """The reason why a command is not run; None if it is."""
    bare = re.sub(r"^(\w+=\S+ )+", "", command)
    return next((reason for pattern, reason in NOT_RUN.items() if re.match(pattern, bare)), None)


def without_numbers(output: str) -> str:
    """`output` without what differs from run to run: numbers, request IDs, widths of columns."""
    output = re.sub(r"\b[0-9a-f]{32}\b", "ID", output)
    return " ".join(re.sub(r"\d+(\.\d+)?(e-\d+)?", "N", output).split())


def check(checkout: Checkout, command: Command) -> None:
    """Run a command. One whose output is shown prints it; any other one succeeds."""
    done = checkout.shell(command.text)
    if command.output is None:
        assert done.returncode == 0, f"{command.text}\n{done.stdout}"
    else:
        assert without_numbers(done.stdout) == without_numbers(command.output)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_of_a_page_run(checkout: Checkout, page: pathlib.Path) -> None:
    """The commands and the Python programs of a page run, in their order."""
    for block in blocks(page):
        for command in block.commands():
            if why_not_run(command.text) is None:
                check(checkout, command)
        if block.language == "python":
            done = checkout.run(sys.executable, "-c", checkout.addressed(block.text))
            assert done.returncode == 0, f"{block.text}\n{done.stdout}"


def as_check(command: str) -> str | None:
    """The command that checks that a command in running text exists: it shows its help. None if
    there is no such command."""
    if command.startswith("make "):
        return command  # a dry run
    if re.match(r"python -m service\b", command):  # these modules have no --help
        return command if command == "python -m service.settings" else None
    found = re.match(r"(?:\.venv/bin/)?(python -m [\w.]+|shoal \w+)", command)
    if found is None:
        return None
    return f"{found[1]} --help"


def test_commands_in_the_text_exist(checkout: Checkout) -> None:
    """Commands in running text and tables name targets, modules and subcommands that exist."""
    commands = dict.fromkeys(code for page in PAGES for code in inline_commands(page))
    checks = {command: as_check(command) for command in commands}
    unknown = [one for one, line in checks.items() if line is None and not why_not_run(one)]
    assert unknown == [], "list them in NOT_RUN"
    for line in dict.fromkeys(line for line in checks.values() if line is not None):
        check(checkout, Command(line))


def test_not_run_lists_nothing_else() -> None:
    """Each pattern of NOT_RUN matches a command of some page."""
    shown = [command.text for page in PAGES for one in blocks(page) for command in one.commands()]
    commands = [*shown, *(code for page in PAGES for code in inline_commands(page))]
    bare = [re.sub(r"^(\w+=\S+ )+", "", command) for command in commands]
    assert [one for one in NOT_RUN if not any(re.match(one, command) for command in bare)] == []


def test_operations_lists_every_metric(checkout: Checkout) -> None:
    """The table of metrics has the names and types that `/metrics` has, and those of a GPU."""
    shown = checkout.shell("curl http://127.0.0.1:8000/metrics").stdout
    served = set(re.findall(r"^# TYPE (shoal_\w+(?<!_created)) (\w+)$", shown, re.MULTILINE))
    text = (ROOT / "docs/operations.md").read_text()
    listed = set(re.findall(r"^\| `(shoal_\w+)` \| (\w+) \|", text, re.MULTILINE))
    assert listed == served | {("shoal_gpu_memory_bytes", "gauge")}

"""The command `shoal` as its user runs it: real processes, files, pipes, signals, shells."""

from __future__ import annotations

import functools
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from benchmarks.processes import started
from tests.e2e.process import PATIENCE, ROOT, SCRIPTED, Hold, Server
from tests.service.conftest import png

pytestmark = pytest.mark.slow
KEY = "a-key-of-sixteen-or-more"
COMMAND = (sys.executable, "-m", "shoal")


def shoal(
    *arguments: str | pathlib.Path, given: bytes = b"", **environment: str
) -> subprocess.CompletedProcess[str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("SHOAL_")}
    done = subprocess.run(
        [*COMMAND, *map(str, arguments)],
        cwd=ROOT,
        env=inherited | environment,
        input=given,
        capture_output=True,
        timeout=60,
    )
    out, err = done.stdout.decode(), done.stderr.decode()
    return subprocess.CompletedProcess(done.args, done.returncode, out, err)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(*SCRIPTED, SHOAL_API_KEYS=KEY) as server:
        server.wait_until_ready()
        yield server


@pytest.fixture
def horse(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "horse.png"
    path.write_bytes(png(7))
    return path


def test_predict_prints_a_table_in_the_order_of_the_files(
    server: Server, tmp_path: pathlib.Path
) -> None:
    """Predictions go to standard output and errors to standard error; the status is 1."""
    files = [tmp_path / f"{number}.png" for number in range(30)]
    for number, file in enumerate(files):
        file.write_bytes(png(number) if number != 3 else b"no image")
    done = shoal("predict", *files, "nowhere.png", "--url", server.url, SHOAL_API_KEY=KEY)
    heading, *rows = done.stdout.splitlines()
    assert heading.split() == ["FILE", "CLASS", "PROBABILITY", "MS"]
    assert [row.split()[0] for row in rows] == [str(f) for f in files if f.name != "3.png"]
    assert [row.split()[1] for row in rows[:3]] == ["airplane", "automobile", "bird"]
    assert [line.split(": ")[1] for line in done.stderr.splitlines()] == [
        str(files[3]),
        "nowhere.png",
    ]
    assert done.returncode == 1


def test_predict_prints_json_lines(server: Server, horse: pathlib.Path) -> None:
    """Each file is an object, `-` is standard input, and the status is 0 if all got a class."""
    arguments = ("predict", horse, "-", "--json", "--url", server.url)
    done = shoal(*arguments, given=png(2), SHOAL_API_KEY=KEY)
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(line["file"], line["class"]) for line in told] == [
        (str(horse), "horse"),
        ("-", "bird"),
    ]
    assert done.returncode == 0 and not done.stderr


def test_predict_reports_a_missing_key_once(server: Server, horse: pathlib.Path) -> None:
    """An error that every file would get is printed once."""
    done = shoal("predict", horse, horse, horse, "--url", server.url)
    assert done.returncode == 1 and not done.stdout
    assert done.stderr.count("unauthorized") == done.stderr.count("\n") == 1


def test_predict_reports_a_missing_server(horse: pathlib.Path) -> None:
    """Without a server the command ends with status 1 and one line."""
    done = shoal("predict", horse, horse, "--url", "http://127.0.0.1:9")
    assert done.returncode == 1 and not done.stdout
    assert done.stderr.count("\n") == 1 and "Check that the server is running" in done.stderr


def test_predict_waits_for_a_server_that_starts(horse: pathlib.Path, hold: Hold) -> None:
    """A server that loads its model says when to retry, and the command does so."""
    with Server(*SCRIPTED, ENGINE_LOAD_HELD=str(hold)) as server, ThreadPoolExecutor(1) as pool:
        asking = pool.submit(shoal, "predict", horse, "--json", "--url", server.url)
        while server.wait_for_log("request")["code"] != "not_ready":
            pass
        hold.end()
        done = asking.result()
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["class"] == "horse"


def test_predict_reports_an_exceeded_timeout(horse: pathlib.Path) -> None:
    """A timeout that is too short is reported with its code."""
    with Server(*SCRIPTED, ENGINE_SECONDS="20", ENGINE_WARM_UP_SECONDS="0.01") as server:
        server.wait_until_ready()
        done = shoal("predict", horse, "--json", "--timeout", "0.5", "--url", server.url)
    assert done.returncode == 1
    assert json.loads(done.stdout)["error"]["code"] in {"timed_out", "deadline_exceeded"}


def test_predict_gives_the_same_answer_with_and_without_a_server(
    horse: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """`shoal serve` with a flag that overrides the environment answers as `shoal predict` does
    alone."""
    noise = tmp_path / "noise.bin"
    noise.write_bytes(bytes(3000))
    flags = ("--max-upload-bytes", "2000", "--no-page")
    with Server("-m", "shoal", "serve", *flags, SHOAL_MAX_UPLOAD_BYTES="5000") as server:
        server.wait_until_ready()
        asked = shoal("predict", horse, noise, "--json", "--url", server.url)
        assert httpx.get(server.url).status_code == 404  # no page
        assert server.stop() == 0
    local = shoal("predict", horse, noise, "--json")
    from_server, refused = map(json.loads, asked.stdout.splitlines())
    from_here, _ = map(json.loads, local.stdout.splitlines())
    assert refused["error"]["code"] == "body_too_large"
    for member in ("class", "probabilities", "model"):
        assert from_here[member] == from_server[member]
    assert not local.stderr


def test_predict_reports_an_unknown_model(horse: pathlib.Path) -> None:
    """The command lists the available models and ends with status 1."""
    done = shoal("predict", horse, "--model", "pets")
    assert done.returncode == 1 and not done.stdout
    assert done.stderr.count("\n") == 1 and "cifar_resnet20_v1" in done.stderr


def test_predict_rejects_a_wrong_setting(horse: pathlib.Path) -> None:
    """A wrong setting in the environment ends with status 2."""
    done = shoal("predict", horse, SHOAL_DEVICE="tpu")
    assert done.returncode == 2 and "SHOAL_DEVICE=tpu" in done.stderr


def test_predict_ends_silently_when_its_output_is_closed(
    server: Server, horse: pathlib.Path
) -> None:
    """A closed pipe, as with `| head`, ends the command with status 141 and no message."""
    ours, theirs = os.pipe()
    os.close(ours)
    environment = os.environ | {"SHOAL_API_KEY": KEY}
    command = [*COMMAND, "predict", str(horse), "--url", server.url]
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=theirs, stderr=subprocess.PIPE)
    os.close(theirs)
    assert (done.returncode, done.stderr) == (141, b"")


def test_predict_ends_on_ctrl_c(horse: pathlib.Path) -> None:
    """Ctrl-C ends the command with status 130 and no traceback."""
    with Server(*SCRIPTED, ENGINE_SECONDS="30", ENGINE_WARM_UP_SECONDS="0.01") as server:
        server.wait_until_ready()
        command = [*COMMAND, "predict", str(horse), "--url", server.url]
        with started(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
            server.wait_for_log("batch")
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, errors) == (130, "")


def test_predict_with_a_server_loads_neither_mxnet_nor_the_service(
    server: Server, horse: pathlib.Path
) -> None:
    """With --url, neither MXNet nor the application is imported."""
    code = (
        "import sys; from shoal.command import main\n"
        "status = main(sys.argv[1:])\n"
        "sys.exit(status or bool({'mxnet', 'service.app', 'fastapi'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, "predict", str(horse), "--url", server.url]
    environment = os.environ | {"SHOAL_API_KEY": KEY}
    assert subprocess.run(command, cwd=ROOT, env=environment, capture_output=True).returncode == 0


COMPLETE = {
    "bash": "source /dev/stdin; COMP_WORDS=(shoal {typed}); COMP_CWORD={last}; _shtab_shoal\n"
    'echo "${COMPREPLY[*]}"',
    "fish": 'source -; complete -C "shoal {typed}"',
}


@functools.cache
def script(shell: str) -> str:
    return shoal("completion", shell).stdout


@pytest.mark.parametrize("shell", ["bash", "fish"])
@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("pre", "predict"),
        ("serve --max-b", "--max-batch-size"),
        ("models im", "import"),
        ("predict READ", "README.md"),
    ],
)
def test_completion_works_in_the_shell(shell: str, typed: str, completed: str) -> None:
    """The shell completes commands, flags, subcommands and files."""
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell}: apt-get install {shell}")
    asking = COMPLETE[shell].replace("{typed}", typed).replace("{last}", str(len(typed.split())))
    done = subprocess.run(
        [shell, "-c", asking], input=script(shell), capture_output=True, text=True, cwd=ROOT
    )
    assert completed in done.stdout.split(), done.stderr

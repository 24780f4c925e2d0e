"""`shoal bench`: arguments, output and exit statuses."""

from __future__ import annotations

import asyncio
import json
import os
import pathlib
import subprocess
import sys

import pytest

from shoal import bench
from shoal.command import main, parser
from shoal.load.report import summarize
from tests.e2e.process import ROOT, SCRIPTED, Server
from tests.shoal.load.fakes import good, samples_of, served


@pytest.mark.slow
def test_bench_measures_a_server(tmp_path: pathlib.Path) -> None:
    """Two processes load the real service with a key, and a table, results and a plot are
    written."""
    key = "a-key-of-sixteen-or-more"
    with Server(*SCRIPTED, SHOAL_API_KEYS=key) as server:
        server.wait_until_ready()
        run = subprocess.run(
            [
                *(sys.executable, "-m", "shoal", "bench", server.url),
                *("--rate", "20,40", "--duration", "1", "--warm-up", "0.2", "--processes", "2"),
                *("--slo-ms", "1000", "--out", str(tmp_path)),
            ],
            cwd=ROOT,
            env=os.environ | {"SHOAL_API_KEY": key},
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert run.returncode == 0, run.stderr
    assert "20/s poisson" in run.stdout and "40/s poisson" in run.stdout
    report = json.loads((tmp_path / "load_test.json").read_text())
    assert [set(run["statuses"]) for run in report["runs"]] == [{"200"}, {"200"}]
    assert report["runs"][0]["different"] == 0
    assert (tmp_path / "load_test.png").read_bytes().startswith(b"\x89PNG")


def test_bench_writes_results_without_matplotlib(
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Results are written, and the message names the extra that plots need."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    options = parser({"bench"}).parse_args(["bench", "--rate", "1", "--out", str(tmp_path)])
    bench.write(options, None, [summarize("x", 10.0, [samples_of([200] * 4)], 0.0, 1.0)])
    assert [path.name for path in tmp_path.iterdir()] == ["load_test.json"]
    output = capsys.readouterr()
    assert "shoal[train]" in output.err and ".png" not in output.out


@pytest.mark.slow
def test_bench_reports_a_missing_server() -> None:
    """Without a server the command ends with status 1 and one line."""
    run = subprocess.run(
        [sys.executable, "-m", "shoal", "bench", "http://127.0.0.1:9/x", "--rate", "1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 1
    assert "Check that the server is running" in run.stderr and "Traceback" not in run.stderr


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://shoal:80", "http://shoal:80/predict"),
        ("http://shoal/", "http://shoal/predict"),
        ("https://shoal/v1/predict?x=1", "https://shoal/v1/predict?x=1"),
    ],
)
def test_bench_adds_predict_to_a_url_without_a_path(url: str, expected: str) -> None:
    """A URL without a path gets /predict; another path is kept."""
    assert parser({"bench"}).parse_args(["bench", url, "--rate", "1"]).url == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    ("slo", "line"),
    [
        ("60000", "Highest rate with a p99 latency of at most 60000 ms: 40/s"),
        ("0.0001", "The p99 latency was above 0.0001 ms at every measured load."),
    ],
)
async def test_bench_prints_the_highest_rate_within_the_slo(
    capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path, slo: str, line: str
) -> None:
    """After the table, a line has the highest rate whose p99 latency is within the SLO, if any."""
    (tmp_path / "a.jpg").write_bytes(b"pixels")
    arguments = ["--rate", "20,40", "--slo-ms", slo, "--raw", "--images", str(tmp_path)]
    arguments += ["--duration", "0.5", "--warm-up", "0", "--arrivals", "constant"]
    async with served(good) as url:
        assert await asyncio.to_thread(main, ["bench", url, *arguments]) == 0
    header, first, second, last = capsys.readouterr().out.splitlines()
    assert header.split()[0] == "load" and last == line
    assert first.split()[0] == "20/s" and second.split()[0] == "40/s"


@pytest.mark.parametrize("numbers", ["", "inf", "nan", "1,x", "1,,2", "0"])
@pytest.mark.parametrize("option", ["--rate", "--concurrency"])
def test_bench_rejects_loads_that_are_not_positive_numbers(
    capsys: pytest.CaptureFixture[str], option: str, numbers: str
) -> None:
    """The command ends with status 2, and says how to write the numbers."""
    with pytest.raises(SystemExit) as caught:
        main(["bench", option, numbers])
    assert caught.value.code == 2
    expected = f"{option}: {numbers} is not a list of positive numbers. Write them as 100,200,400"
    assert expected in capsys.readouterr().err


def test_bench_rejects_two_loads(capsys: pytest.CaptureFixture[str]) -> None:
    """`--rate` and `--concurrency` together end with status 2."""
    with pytest.raises(SystemExit) as caught:
        main(["bench", "--rate", "1", "--concurrency", "1"])
    assert caught.value.code == 2
    assert "not allowed with argument --rate" in capsys.readouterr().err

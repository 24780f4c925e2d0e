"""The template and its decoders: what they share, and what they answer."""

from __future__ import annotations

import pathlib

import pytest
from PIL import Image

from service.decoding.image import identify
from service.decoding.launch import Template
from service.decoding.picture import Fault
from service.decoding.process import DecoderProcess
from tests.service import synthetic
from tests.service.decoding.decoded import MAX_PIXELS
from tests.service.synthetic import encode

MIB = 2**20

pytestmark = pytest.mark.slow


async def test_processes_share_nothing_with_the_server(
    process: DecoderProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A decoder has no variable of the server's environment, and no descriptor but two."""
    proc = pathlib.Path(f"/proc/{process.pid}")
    variables = proc.joinpath("environ").read_bytes().split(b"\0")[:-1]
    names = {variable.partition(b"=")[0].decode() for variable in variables}
    assert {name for name in names if not name.startswith("MALLOC_")} <= {"LD_LIBRARY_PATH"}
    assert {path.name for path in proc.joinpath("fd").iterdir()} == {"0", "1"}


async def test_decoders_are_killed_first_when_memory_runs_out(process: DecoderProcess) -> None:
    """The kernel prefers them to the server."""
    proc = pathlib.Path(f"/proc/{process.pid}")
    preference = proc.joinpath("oom_score_adj").read_bytes()
    assert preference == b"1000\n"


def _photo(side: int) -> Image.Image:
    return Image.linear_gradient("L").resize((side, side)).convert("RGB")


@pytest.mark.parametrize(("kind", "side"), [("JPEG", 2600), ("WEBP", 1900), ("BMP", 3000)])
async def test_process_says_when_it_lacks_memory(template: Template, kind: str, side: int) -> None:
    """Where earlier images may have taken it. Libraries then call the image damaged, and the
    process cannot even hold a long one."""
    process = await template.fork(24 * MIB, 0)
    await process.ready()
    small = identify(encode(synthetic.CHART, "PNG"), MAX_PIXELS)
    assert (await process.decode(small, 10, 60))[0] == 0
    options = {"progressive": True, "subsampling": 0} if kind == "JPEG" else {}
    large = identify(encode(_photo(side), kind, **options), MAX_PIXELS)
    assert (await process.decode(large, 10, 60))[0] == Fault.OUT_OF_MEMORY
    process.close()

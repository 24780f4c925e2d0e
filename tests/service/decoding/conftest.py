"""Fixtures of the tests of decoder processes."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from service.decoding.launch import Template
from service.decoding.process import DecoderProcess

MIB = 2**20


@pytest.fixture
async def template() -> AsyncIterator[Template]:
    """A template that has started."""
    template = Template()
    await template.start()
    yield template
    template.close()


@pytest.fixture
async def process(template: Template) -> AsyncIterator[DecoderProcess]:
    """A decoder that has started, with memory for ordinary images."""
    process = await template.fork(96 * MIB, 0)
    await process.ready()
    yield process
    process.close()

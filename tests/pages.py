"""The pages of the documentation, as the tests that read them see them."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Iterator
from dataclasses import dataclass

from tests.sources import ROOT

FENCE = re.compile(r"^( *)```(\S*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
NOTES = sorted(ROOT.glob("docs/decisions/0*.md"))
"""Decision notes: history, whose commands were those of their time."""
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
    *(page for page in sorted(ROOT.glob("docs/**/*.md")) if page not in NOTES),
]
PROGRAMS = (
    r"make [a-z]",
    r"shoal (serve|predict|bench|models|completion)\b",
    r"(\.venv/bin/)?(python|pip) ",
    r"(curl|docker|podman|kind|minikube|kubectl|git|apt-get|k8s/\w+) ",
)
"""How inline code begins that is a command."""


@dataclass(frozen=True)
class Command:
    """A command in a page.

    Args:
        text: As the shell gets it, in one line.
        output: The output that the page shows; None if it shows none.
    """

    text: str
    output: str | None = None


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, and its lines without their common indent."""

    language: str
    text: str

    def commands(self) -> Iterator[Command]:
        """Its commands in order, if its language is that of a shell."""
        if self.language == "sh":
            for line in self.text.replace("\\\n", " ").splitlines():
                if line and not line.startswith("#"):
                    yield Command(line)
        elif self.language == "console":
            for part in re.split(r"^\$ ", self.text, flags=re.MULTILINE)[1:]:
                command, _, output = part.partition("\n")
                yield Command(command, output)


def blocks(page: pathlib.Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    return [
        Block(language, re.sub(rf"^{indent}", "", text, flags=re.MULTILINE))
        for indent, language, text in FENCE.findall(page.read_text())
    ]


def inline_commands(page: pathlib.Path) -> list[str]:
    """Commands in the running text and in tables, each once."""
    found = INLINE.findall(FENCE.sub("", page.read_text()))
    return [code for code in dict.fromkeys(found) if re.match("|".join(PROGRAMS), code)]


def name_of(page: pathlib.Path) -> str:
    """Its path in the project."""
    return str(page.relative_to(ROOT))

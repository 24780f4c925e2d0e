"""The documentation agrees with the code: links, paths, settings, codes, and its own size."""

from __future__ import annotations

import pathlib
import re
import tomllib

import pytest

from service import settings
from service.http import problems
from tests.pages import FENCE, INLINE, NOTES, PAGES, blocks, name_of
from tests.sources import ROOT

LANGUAGES = {"sh", "console", "python", "json", "yaml", "dockerfile", "text"}
DOCUMENTS = [*PAGES, *NOTES, ROOT / "CHANGELOG.md"]
SOURCES = r"(?:service|batching|model_store|shoal|benchmarks|tests|samples|k8s|docs)/[\w./-]*\w"


def anchors(page: pathlib.Path) -> set[str]:
    """The anchors of its headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in headings}


@pytest.mark.parametrize("page", DOCUMENTS, ids=name_of)
def test_links_lead_somewhere(page: pathlib.Path) -> None:
    """Relative links name files that exist, and anchors name headings."""
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", page.read_text())):
        if re.match(r"https?:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_paths_exist(page: pathlib.Path) -> None:
    """Paths of the project in a page exist, but for those that its readers make."""
    named = {code for code in INLINE.findall(page.read_text()) if re.fullmatch(SOURCES, code)}
    made = {path for path in named if path.startswith("k8s/overlays/mine")}
    assert [path for path in named - made if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("note", NOTES, ids=name_of)
def test_notes_name_the_files_of_today(note: pathlib.Path) -> None:
    """A decision note that names a file of the code that is gone says where it is now."""
    text = note.read_text()
    [*today] = re.findall(r"^\*\*Names today:\*\* (.+)$", text, re.MULTILINE)
    files = set(re.findall(r"`((?:service|tests|model_store|shoal)/[\w/]+\.py)`", text))
    gone = {file for file in files if not (ROOT / file).exists()}
    named = " ".join(today)
    assert [file for file in gone if not re.search(rf"`{file}` (is|are) ", named)] == []


def test_decisions_index_lists_every_note() -> None:
    """The index of the decisions links to each note once."""
    index = (ROOT / "docs/decisions/README.md").read_text()
    linked = re.findall(r"^\| \[\d+\]\((0\d+-[\w-]+\.md)\)", index, re.MULTILINE)
    assert sorted(linked) == [note.name for note in NOTES]


def test_index_lists_every_page() -> None:
    """The index of the documentation links to each page."""
    index = (ROOT / "docs/README.md").read_text()
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert [name for name in pages if f"]({name})" not in index] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_blocks_have_a_language(page: pathlib.Path) -> None:
    """Every fenced block names its language, so that commands are recognized as commands."""
    assert {block.language for block in blocks(page)} <= LANGUAGES
    assert FENCE.sub("", page.read_text()).count("```") == 0


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_settings_exist(page: pathlib.Path) -> None:
    """Variables in a page are settings, but for those of other programs and of the last version."""
    names = set(re.findall(r"\bSHOAL_[A-Z_]+[A-Z]\b", page.read_text()))
    known = {f"SHOAL_{name.upper()}" for name in settings.Settings.model_fields}
    others = {"SHOAL_API_KEY"}
    if page.name == "upgrading.md":
        others |= {"SHOAL_DECODE_THREADS", "SHOAL_MAX_IN_FLIGHT"}
    assert names - known - others == set()


def test_configuration_has_the_table_of_settings() -> None:
    """The page ends with the table that `python -m service.settings` prints."""
    page = (ROOT / "docs/configuration.md").read_text()
    assert page.endswith(f"\n\n{settings.table()}\n"), (
        "replace the table: sed -i '/^| variable/,$d' docs/configuration.md; "
        "python -m service.settings >> docs/configuration.md"
    )


def test_http_api_lists_every_code() -> None:
    """The table of errors has every problem that can be answered, with its status."""
    listed = set(
        re.findall(
            r"^\| (\d{3}) \| `(\w+)` \|", (ROOT / "docs/http-api.md").read_text(), re.MULTILINE
        )
    )
    others = [value for value in vars(problems).values() if isinstance(value, problems.Problem)]
    answered = {(str(one.status), one.code) for one in (*problems.PROBLEMS.values(), *others)}
    assert listed == answered | {("404", "not_found"), ("405", "method_not_allowed")}


def test_readme_is_short() -> None:
    """The README can be read in four minutes: at most 1,000 words."""
    assert len((ROOT / "README.md").read_text().split()) <= 1000


def test_pages_name_the_version() -> None:
    """Names of images have the version of the project."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    for page in PAGES:
        named = set(re.findall(r"\bshoal:(\d+\.\d+\.\d+)-", page.read_text()))
        assert named <= {version}, name_of(page)


def test_request_svg_adapts_to_dark_pages() -> None:
    """The picture has colors for light and for dark pages, and a title and description."""
    text = (ROOT / "docs/request.svg").read_text()
    for part in ("prefers-color-scheme: dark", "<title", "<desc"):
        assert part in text

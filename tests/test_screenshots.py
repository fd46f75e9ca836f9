"""The pictures that the documents show, and how they are made."""

import re
from pathlib import Path

import pytest
from PIL import Image

from runtime.settings import PROJECT
from tests.browser_support import PHONE, Site
from tests.screenshots import FOLDER, Picture, at, save, taken


def test_every_picture_is_shown_somewhere() -> None:
    documents = [PROJECT / "README.md", *(PROJECT / "docs").glob("**/*.md")]
    shown = {
        (document.parent / path).resolve()
        for document in documents
        for path in re.findall(r"[\w./-]+\.(?:png|svg)", document.read_text())
    }
    assert {path for path in shown if path.parent == FOLDER.resolve()} == {file.resolve() for file in FOLDER.iterdir()}


@pytest.mark.asyncio(loop_scope="module")
async def test_a_picture_is_what_is_seen(site: Site, tmp_path: Path) -> None:
    file = tmp_path / "refer.png"
    size = save(file, await taken(site, Picture("refer", at("/refer"), PHONE, "dark")))
    assert file.stat().st_size == size > 10_000
    with Image.open(file) as picture:
        assert picture.size == (585, 1266)
        assert picture.convert("L").resize((1, 1)).tobytes()[0] < 90, "it is night"

"""Style sheets, scripts and pictures, read once, under names that change with what they hold."""

import gzip
import hashlib
import mimetypes
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fastapi.responses import PlainTextResponse, Response

from starter.preferences import takes_gzip

FOLDER = Path(__file__).parent / "static"

FOR_EVER = "public, max-age=31536000, immutable"
"""How long a browser may keep what never changes under its name."""

_WORTH_COMPRESSING = frozenset({"text/css", "text/javascript", "image/svg+xml"})


@dataclass(frozen=True, slots=True)
class Asset:
    """A file as it is sent: as it is, and compressed where that is worth it."""

    name: str
    media_type: str
    content: bytes
    compressed: bytes | None

    @property
    def digest(self) -> str:
        """What its address changes by."""
        return hashlib.sha256(self.content).hexdigest()[:12]


class Assets:
    """The files of the site, by name. What is not there is known at start, not at the first visit."""

    def __init__(self, folder: Path = FOLDER) -> None:
        """Read them all."""
        self._assets: dict[str, Asset] = {}
        self._to_make: dict[str, Callable[[], bytes]] = {}
        for file in sorted(folder.iterdir()):
            self.add(file.name, file.read_bytes())

    def add(self, name: str, content: bytes) -> None:
        """Take one more, made by the program itself."""
        media_type = mimetypes.guess_type(name)[0] or "application/octet-stream"
        compressed = gzip.compress(content, mtime=0) if media_type in _WORTH_COMPRESSING else None
        self._assets[name] = Asset(name, media_type, content, compressed)

    def add_later(self, name: str, make: Callable[[], bytes]) -> None:
        """Take one more, made when it is first asked for: by name or, in another process, by its address."""
        self._to_make[name] = make

    def _find(self, name: str) -> Asset | None:
        if name in self._to_make:
            self.add(name, self._to_make[name]())
            del self._to_make[name]
        return self._assets.get(name)

    def path(self, name: str) -> str:
        """The path of a file on this site.

        Raises:
            KeyError: there is no such file.
        """
        asset = self._find(name)
        if asset is None:
            raise KeyError(name)
        return f"/assets/{asset.digest}/{asset.name}"

    def answer(self, digest: str, name: str, accepts: str) -> Response:
        """A file, if it is there under this digest."""
        asset = self._find(name)
        if asset is None or asset.digest != digest:
            return PlainTextResponse("not found\n", 404, {"Cache-Control": "no-store"})
        headers = {"Cache-Control": FOR_EVER, "X-Content-Type-Options": "nosniff"}
        if asset.compressed is None:
            return Response(asset.content, 200, headers, asset.media_type)
        headers["Vary"] = "Accept-Encoding"
        if not takes_gzip(accepts):
            return Response(asset.content, 200, headers, asset.media_type)
        return Response(asset.compressed, 200, headers | {"Content-Encoding": "gzip"}, asset.media_type)

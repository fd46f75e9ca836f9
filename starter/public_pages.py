"""The pages that anybody may read, and the files that they are made with."""

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from starter.services import Serving

FOR_MINUTES = "public, max-age=300"
"""How long a page may be kept that is the same for everybody: a deployment shows soon."""

router = APIRouter()

_PAGE: dict[str, Any] = {"response_class": HTMLResponse, "tags": ["pages"]}


@router.head("/", include_in_schema=False)
@router.get("/", include_in_schema=False)
async def get_root() -> Response:
    """Lead whoever comes without a page in mind to the program's."""
    return RedirectResponse("/refer", 307, {"Cache-Control": FOR_MINUTES})


@router.head("/refer", **_PAGE)
@router.get("/refer", **_PAGE)
async def get_program(request: Request, services: Serving) -> Response:
    """The program's public page: how it works, what it brings, questions and answers."""
    return services.site.page(request, "refer.html", cache=FOR_MINUTES)


@router.head("/terms", **_PAGE)
@router.get("/terms", **_PAGE)
async def get_terms(request: Request, services: Serving) -> Response:
    """The Program Terms in the version that is in force (rule 13)."""
    return services.site.page(request, "terms.html", cache=FOR_MINUTES)


@router.head("/assets/{digest}/{name}", include_in_schema=False)
@router.get("/assets/{digest}/{name}", include_in_schema=False)
async def get_asset(digest: str, name: str, request: Request, services: Serving) -> Response:
    """A file of the site."""
    return services.site.assets.answer(digest, name, request.headers.get("accept-encoding", ""))

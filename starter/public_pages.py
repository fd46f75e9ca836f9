"""The pages that anybody may read, and the files that they are made with."""

from fastapi import APIRouter, Request
from fastapi.responses import Response

from starter.services import Serving

router = APIRouter(include_in_schema=False)


@router.head("/assets/{digest}/{name}")
@router.get("/assets/{digest}/{name}")
async def get_asset(digest: str, name: str, request: Request, services: Serving) -> Response:
    """A file of the site."""
    return services.site.assets.answer(digest, name, request.headers.get("accept-encoding", ""))

"""FastAPI behind Mangum."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from mangum import Mangum
from pydantic import BaseModel

PREFIX = os.environ["PREFIX"]
PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256))


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    app.state.ready = True
    yield


app = FastAPI(lifespan=lifespan)
router = APIRouter(prefix=PREFIX)


class Note(BaseModel):
    text: str


async def slept() -> float:
    await asyncio.sleep(0.001)
    return 0.001


@router.get("/items/{number}")
async def item(number: int, request: Request, slept: Annotated[float, Depends(slept)]) -> dict[str, object]:
    assert request.app.state.ready
    return {"id": number, "q": request.query_params.getlist("q"), "key": request.headers.get("x-key")}


@router.post("/echo", status_code=201)
def echo(note: Note, response: Response) -> Note:
    response.headers["x-made"] = "yes"
    return note


@router.get("/image")
async def image() -> Response:
    return Response(PNG, media_type="image/png")


@router.get("/cookies")
async def cookies(response: Response) -> None:
    response.set_cookie("a", "1")
    response.set_cookie("b", "2")


@router.get("/boom")
async def boom() -> None:
    raise ValueError("boom")


app.include_router(router)
handler = Mangum(app)

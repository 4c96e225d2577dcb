"""Starlette behind Mangum, without lifespan."""

import asyncio
import os

from mangum import Mangum
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route

PREFIX = os.environ["PREFIX"]
PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256))


async def item(request: Request) -> Response:
    await asyncio.sleep(0.001)
    number, key = int(request.path_params["number"]), request.headers.get("x-key")
    return JSONResponse({"id": number, "q": request.query_params.getlist("q"), "key": key})


async def echo(request: Request) -> Response:
    return JSONResponse(await request.json(), 201, {"x-made": "yes"})


def image(_: Request) -> Response:
    return Response(PNG, media_type="image/png")


async def cookies(_: Request) -> Response:
    response = Response()
    response.set_cookie("a", "1")
    response.set_cookie("b", "2")
    return response


async def boom(_: Request) -> Response:
    raise ValueError("boom")


routes = [
    Route("/items/{number}", item),
    Route("/echo", echo, methods=["POST"]),
    Route("/image", image),
    Route("/cookies", cookies),
    Route("/boom", boom),
]
handler = Mangum(Starlette(routes=[Mount(PREFIX, routes=routes)]), lifespan="off")

"""Chalice."""

import os

from chalice import Chalice, Response

PREFIX = os.environ["PREFIX"]
PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256))

handler = app = Chalice(app_name="shop")


@app.route(f"{PREFIX}/items/{{number}}")
def item(number: str) -> dict[str, object]:
    request = app.current_request
    q = request.query_params.getlist("q") if request.query_params else []  # Chalice has None for no query
    return {"id": int(number), "q": q, "key": request.headers.get("x-key")}


@app.route(f"{PREFIX}/echo", methods=["POST"])
def echo() -> Response:
    return Response(app.current_request.json_body, {"x-made": "yes"}, 201)


@app.route(f"{PREFIX}/image")
def image() -> Response:
    return Response(PNG, {"Content-Type": "image/png"})


@app.route(f"{PREFIX}/cookies")
def cookies() -> Response:
    return Response("", {"Set-Cookie": ["a=1", "b=2"], "Content-Type": "text/plain"})


@app.route(f"{PREFIX}/boom")
def boom() -> None:
    raise ValueError("boom")

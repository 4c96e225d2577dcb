"""A Flask application, and its handlers by apig-wsgi and by serverless-wsgi."""

import os
from typing import Any

import serverless_wsgi
from apig_wsgi import make_lambda_handler
from flask import Blueprint, Flask, Response, jsonify, request

PREFIX = os.environ["PREFIX"]
PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256))

app = Flask(__name__)
pages = Blueprint("pages", __name__, url_prefix=PREFIX)


@pages.get("/items/<int:number>")
def item(number: int) -> Response:
    return jsonify(id=number, q=request.args.getlist("q"), key=request.headers.get("X-Key"))


@pages.post("/echo")
def echo() -> tuple[Response, int, dict[str, str]]:
    return jsonify(request.get_json()), 201, {"X-Made": "yes"}


@pages.get("/image")
def image() -> Response:
    return Response(PNG, mimetype="image/png")


@pages.get("/cookies")
def cookies() -> Response:
    response = Response()
    response.set_cookie("a", "1")
    response.set_cookie("b", "2")
    return response


@pages.get("/boom")
def boom() -> Response:
    raise ValueError("boom")


app.register_blueprint(pages)
apig = make_lambda_handler(app, binary_support=True)  # on by itself in format 2.0 only


def serverless(event: dict[str, Any], context: Any) -> dict[str, Any]:
    return serverless_wsgi.handle_request(app, event, context)

"""Dispatch of Connect calls: request → call and handler."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from mesh.errors import StatusError
from mesh.protojson.codec import Codecs
from mesh.rpc.server.connect import request as requests
from mesh.rpc.server.connect.connect_call import ConnectCall, LimitedConnectCall
from mesh.rpc.server.connect.messages import JsonCodec
from mesh.rpc.server.unserved import UNKNOWN_METHOD, refusing, unimplemented

if TYPE_CHECKING:
    from mesh.asgi import Receive, Scope, Send
    from mesh.call import Handler, Layer, Metadata
    from mesh.contract.model import Method
    from mesh.rpc.server.clients.limits import ClientLimits
    from mesh.rpc.server.connect.request import ConnectRequest
    from mesh.rpc.server.inbound_call import InboundCall

__all__ = ["ConnectDispatch"]


class ConnectDispatch:
    """Dispatch of the Connect calls of a server.

    Args:
        methods: Path → the method and the handler of its Connect calls.
        trace: Layer that records the calls that are refused before they reach a handler. None: they are not recorded.
        codecs: JSON codecs, with their options; None: the default ones.
    """

    __slots__ = ("_codecs", "_json", "_methods", "_trace")

    def __init__(
        self,
        methods: Mapping[str, tuple[Method, Handler]],
        *,
        trace: Layer | None = None,
        codecs: Codecs | None = None,
    ) -> None:
        self._methods = methods
        self._trace = trace
        self._codecs = codecs or Codecs()
        self._json: dict[str, JsonCodec] = {}  # of the methods that were called with JSON

    def admit(
        self,
        scope: Scope,
        metadata: Metadata,
        receive: Receive,
        send: Send,
        max_message: int,
        clients: ClientLimits | None,
    ) -> tuple[InboundCall, Handler] | None:
        """Return the call of a request, and its handler; that of a refused call raises the refusal.

        Args:
            scope: The request.
            metadata: Its headers.
            receive: As in ASGI.
            send: As in ASGI.
            max_message: Largest request message, bytes.
            clients: Limits on the callers; None: an application before this one has them.

        Returns:
            None: it is no Connect call.
        """
        request = self.read(scope, scope["path"], metadata)
        if request is None:
            return None
        codec = self.codec(request)
        call: ConnectCall | LimitedConnectCall
        if clients is None:
            call = ConnectCall(request, codec, scope, receive, send, max_message)
        else:
            call = LimitedConnectCall(clients, request, codec, scope, receive, send, max_message)
        refusal = request.refusal
        tls = scope.get("extensions", {}).get("tls")
        if tls is not None:
            try:
                call.set_certificate(tls)
            except StatusError as error:
                refusal = error
        if refusal is not None:
            return call, refusing(refusal, self._trace)
        return call, self._methods[request.method.path][1]

    def read(self, scope: Scope, path: str, metadata: Metadata) -> ConnectRequest | None:
        """Return the parsed request of a Connect call; None for another request."""
        found = self._methods.get(path)
        content_type = metadata.wire(b"content-type") or b""
        if found is None:
            by_type = scope["method"] == "POST" and requests.is_connect_type(content_type)
            if not (by_type or requests.is_marked(scope)):
                return None
            return requests.read(scope, metadata, UNKNOWN_METHOD, unimplemented(path, self._methods))
        if not requests.takes(found[0], scope["method"], content_type):
            return None
        return requests.read(scope, metadata, found[0])

    def codec(self, request: ConnectRequest) -> JsonCodec | None:
        """Return the JSON codec of a call, compiled at the first one; None if its messages are serialized."""
        if not request.json:
            return None
        path = request.method.path
        found = self._json.get(path)
        if found is None:
            found = self._json[path] = JsonCodec(request.method, self._codecs)
        return found

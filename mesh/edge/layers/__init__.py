"""Layers of the edge's chain: trusted proxies, CORS, size limits, rate limits, header forwarding.

They know no protocol of the edge: a call is an ``HttpCall``, which a gRPC call is too. All but the size limits are off
until ``[edge]`` enables them (``stack``), so that a deployment pays only for what it uses. A layer that fails refuses
the call. Headers that a layer adds to ``call.headers`` are sent with errors too.
"""

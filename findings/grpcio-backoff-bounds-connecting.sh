#!/usr/bin/env bash
# grpcio: grpc.min_reconnect_backoff_ms bounds each attempt to connect, up to the server's SETTINGS.
#
# Its name says the shortest pause between two attempts, so a small value looks like the way to reconnect fast. It is also
# the time that an attempt may take (MIN_CONNECT_TIMEOUT of gRPC's connection backoff document). With 100 ms a call
# to a healthy server that needs 0.5 s to answer the handshake fails at once with UNAVAILABLE; with 5 s it succeeds.
# mesh/rpc/client/grpcio_transport.py leaves attempts 5 s, with and without TLS.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check grpcio==1.85.1
"$folder/venv/bin/python" - <<'PYTHON'
import asyncio

import grpc

DELAY = 0.5  # seconds until the relay passes the first bytes on, as on a busy machine


class Echo(grpc.GenericRpcHandler):
    def service(self, call):
        async def echo(request, context):
            return request

        return grpc.unary_unary_rpc_method_handler(echo)


async def pipe(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
    writer.close()


async def main():
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Echo(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()

    async def relay(reader, writer):
        await asyncio.sleep(DELAY)
        there, back = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(pipe(reader, back), pipe(there, writer), return_exceptions=True)

    slow = await asyncio.start_server(relay, "127.0.0.1", 0)
    address = "127.0.0.1:%d" % slow.sockets[0].getsockname()[1]
    outcomes = {}
    for backoff in (100, 5000):
        options = [("grpc.min_reconnect_backoff_ms", backoff), ("grpc.initial_reconnect_backoff_ms", 100)]
        async with grpc.aio.insecure_channel(address, options) as channel:
            try:
                outcomes[backoff] = (await channel.unary_unary("/a.B/C")(b"hello", timeout=5)).decode()
            except grpc.aio.AioRpcError as error:
                outcomes[backoff] = error.code().name
                print(f"min_reconnect_backoff_ms {backoff}: {error.code().name}: {error.details()}")
            else:
                print(f"min_reconnect_backoff_ms {backoff}: answered")
    slow.close()
    await server.stop(None)
    return outcomes


print("grpcio", grpc.__version__)
outcomes = asyncio.run(main())
assert outcomes == {100: "UNAVAILABLE", 5000: "hello"}, f"the behaviour has changed: {outcomes}"
print("The shortest pause between attempts was also the longest time of an attempt.")
PYTHON

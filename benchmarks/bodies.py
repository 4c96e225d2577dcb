"""A large HttpBody, downloaded and uploaded through a running mesh: throughput and peak memory of each process.

    python benchmarks/bodies.py [--megabytes 1024]

The functions send and receive 64 KiB a message. The client is a bare socket. Needs Linux (/proc).
"""

from __future__ import annotations

import argparse
import re
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PIECE = 64 * 1024

MANIFEST = """
protos = ["."]
[edge]
listen = "127.0.0.1:0"
[services.files]
module = "functions"
serves = ["files.v1.Files"]
listen = "127.0.0.1:0"
"""

PROTO = """
syntax = "proto3";
package files.v1;
import "google/api/annotations.proto";
import "google/api/httpbody.proto";
import "meshapi/v1/annotations.proto";
message DownloadRequest { int64 pieces = 1; }
message Saved { int64 size = 1; }
service Files {
  rpc Download(DownloadRequest) returns (stream google.api.HttpBody) {
    option (google.api.http) = { get: "/files/{pieces}" };
    option (meshapi.v1.method) = { access: PUBLIC };
  }
  rpc Upload(stream google.api.HttpBody) returns (Saved) {
    option (google.api.http) = { post: "/files" body: "*" };
    option (meshapi.v1.method) = { access: PUBLIC };
  }
}
"""

FUNCTIONS = f"""
from files.v1 import files_pb2 as pb
from google.api.httpbody_pb2 import HttpBody

DATA = bytes(range(256)) * {PIECE // 256}

async def download(request, context):
    for _ in range(request.pieces):
        yield HttpBody(content_type="application/octet-stream", data=DATA)

async def upload(requests, context):
    size = 0
    async for part in requests:
        size += len(part.data)
    return pb.Saved(size=size)
"""


def main() -> None:
    """Run download and upload."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=1024)
    pieces = parser.parse_args().megabytes * 2**20 // PIECE
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "mesh.toml").write_text(MANIFEST)
        (root / "files" / "v1").mkdir(parents=True)
        (root / "files" / "v1" / "files.proto").write_text(PROTO)
        (root / "functions.py").write_text(FUNCTIONS)
        command = [sys.executable, "-m", "mesh", "up", "--file", str(root / "mesh.toml")]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as mesh:
            try:
                host, port = _edge(mesh)
                report(mesh.pid, "at rest")
                for name, run in (("download", download), ("upload", upload)):
                    started_at = time.monotonic()
                    run(host, port, pieces)
                    seconds = time.monotonic() - started_at
                    size = pieces * PIECE / 2**20
                    report(mesh.pid, f"{name} of {size:.0f} MB at {size / seconds:.0f} MB/s")
            finally:
                mesh.terminate()


def _edge(mesh: subprocess.Popen[str]) -> tuple[str, int]:
    assert mesh.stdout is not None
    for line in mesh.stdout:
        found = re.search(r"http://([\d.]+):(\d+)", line)
        if found:
            return found[1], int(found[2])
    raise SystemExit("the mesh did not start")


def download(host: str, port: int, pieces: int) -> None:
    """Download as fast as possible."""
    with socket.create_connection((host, port)) as client:
        client.sendall(f"GET /files/{pieces} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
        size = 0
        while got := client.recv(2**20):
            size += len(got)
        if size < pieces * PIECE:
            raise SystemExit(f"only {size} bytes were received")


def upload(host: str, port: int, pieces: int) -> None:
    """Upload as fast as possible."""
    data = bytes(PIECE)
    with socket.create_connection((host, port)) as client:
        head = f"POST /files HTTP/1.1\r\nhost: x\r\ncontent-type: a/b\r\ncontent-length: {pieces * PIECE}\r\n\r\n"
        client.sendall(head.encode())
        for _ in range(pieces):
            client.sendall(data)
        response = client.recv(2**16)
        if f'"{pieces * PIECE}"'.encode() not in response:
            raise SystemExit(f"unexpected response {response!r}")


def report(parent: int, what: str) -> None:
    """Print the peak memory of each process of the mesh so far."""
    print(what)
    for status in sorted(Path("/proc").glob("[0-9]*/status")):
        try:
            text = status.read_text()
            words = (status.parent / "cmdline").read_bytes().decode().split("\0")
        except OSError:  # the process has ended
            continue
        if f"PPid:\t{parent}\n" in text:
            most = re.search(r"VmHWM:\s+(\d+) kB", text)
            name = " ".join(word for word in words[1:] if word and not word.startswith(("-", "/")))
            print(f"  {name or words[0]}: {int(most[1]) / 1024 if most else 0:.0f} MB")


if __name__ == "__main__":
    main()

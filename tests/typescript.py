"""The TypeScript compiler for tests that use a generated client, as strict as projects set it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import cached_packages

FOLDER = Path(__file__).parent / "node" / "typescript"
STRICT = (
    "strict", "exactOptionalPropertyTypes", "erasableSyntaxOnly", "noUncheckedIndexedAccess", "noImplicitOverride",
    "noPropertyAccessFromIndexSignature", "noImplicitReturns", "noUnusedLocals", "verbatimModuleSyntax",
    "isolatedModules", "isolatedDeclarations", "declaration", "noFallthroughCasesInSwitch",
)  # fmt: skip


def compiled(*files: Path, out: Path) -> Path:
    """Compile files to JavaScript modules in a folder, and return the folder."""
    compiler = cached_packages.npm(FOLDER / "package.json") / "node_modules" / ".bin" / "tsc"
    flags = [f"--{name}" for name in STRICT]
    lib = "es2022,dom,dom.iterable,dom.asynciterable"
    options = [
        "--target",
        "es2022",
        "--module",
        "esnext",
        "--moduleResolution",
        "bundler",
        "--lib",
        lib,
        "--outDir",
        out,
    ]
    done = subprocess.run(
        [compiler, *flags, *options, "--outDir", out, *files], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stdout
    return out

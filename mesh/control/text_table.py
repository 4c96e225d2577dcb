"""Text tables for the output of commands. Pure."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["table"]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return rows below a head, with aligned columns; a cell of several lines makes its row as high."""
    cells = [[cell.splitlines() or [""] for cell in row] for row in [head, *rows]]
    widths = [max(len(line) for row in cells for line in row[at]) for at in range(len(head))]
    lines = []
    for row in cells:
        for at in range(max(map(len, row))):
            texts = [cell[at] if at < len(cell) else "" for cell in row]
            lines.append("  ".join(text.ljust(width) for text, width in zip(texts, widths, strict=True)).rstrip())
    lines.insert(1, "  ".join("─" * width for width in widths))
    return "\n".join(lines)

"""Regular expressions for the JSON strings of proto3 values, as ``mesh.protojson`` prints and reads them. Pure.

They use only syntax that ECMA-262, RE2 and Python share, without lookarounds. Spellings that the codec reads and never
prints (``1e3`` for an integer, URL-safe base64) do not match.

Sources: https://protobuf.dev/programming-guides/json/, google/protobuf/{timestamp,duration}.proto, RFC 3339.
"""

from __future__ import annotations

__all__ = ["BASE64", "DURATION", "FIELD_MASK", "INT32", "INT64", "TIMESTAMP", "UINT32", "UINT64"]


def _up_to(limit: int) -> str:
    """Return alternatives that match the decimal numbers from 0 to a limit of at least two digits."""
    digits = str(limit)
    rest = len(digits) - 1
    alternatives = ["0", f"[1-9]{_digits(rest - 1)}" if rest == 1 else f"[1-9][0-9]{{0,{rest - 1}}}"]
    for index, digit in enumerate(map(int, digits)):
        lowest = 0 if index else 1
        if digit > lowest:
            alternatives.append(f"{digits[:index]}{_range(lowest, digit - 1)}{_digits(rest - index)}")
    return "|".join([*alternatives, digits])


def _range(low: int, high: int) -> str:
    return str(low) if low == high else f"[{low}-{high}]"


def _digits(count: int) -> str:
    return f"[0-9]{{{count}}}" if count else ""


def _signed(bits: int) -> str:
    return f"^(-?({_up_to(2 ** (bits - 1) - 1)})|-{2 ** (bits - 1)})$"


INT32, INT64 = _signed(32), _signed(64)
UINT32, UINT64 = f"^({_up_to(2**32 - 1)})$", f"^({_up_to(2**64 - 1)})$"

_MAX_DURATION_SECONDS = 315_576_000_000
"""Seconds of the longest ``Duration``: ten thousand years. The fraction has a limit of its own."""
DURATION = rf"^-?({_up_to(_MAX_DURATION_SECONDS)})(\.[0-9]{{1,9}})?s$"

_DAY = "-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])"
_TIME = r"T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,9})?"
_OFFSET = "[+-]([01][0-9]|2[0-3]):[0-5][0-9]"
_MIDDLE_YEARS = "0[1-9][0-9]{2}|00[1-9][0-9]|[1-8][0-9]{3}|9[0-8][0-9]{2}|99[0-8][0-9]"
"""The years 0010 to 9989. In the first and the last ten years an offset could lead out of the range of timestamps."""
TIMESTAMP = (
    f"^(({_MIDDLE_YEARS}|000[1-9]|999[0-9]){_DAY}{_TIME}Z|({_MIDDLE_YEARS}|000[2-9]|999[0-8]){_DAY}{_TIME}{_OFFSET})$"
)

BASE64 = "^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$"
FIELD_MASK = "^[!-^`-~]*$"

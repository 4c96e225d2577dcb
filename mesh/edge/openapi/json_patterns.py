"""Regular expressions of the texts that proto3 JSON has for values, as ``mesh.protojson`` prints and reads them. Pure.

They keep to what ECMA-262, RE2 and Python have in common, without lookarounds. A spelling that the codec reads and
never prints (``1e3`` for an integer, URL-safe base64) is not in them.

Sources: https://protobuf.dev/programming-guides/json/, google/protobuf/{timestamp,duration}.proto, RFC 3339.
"""

from __future__ import annotations

__all__ = ["BASE64", "DURATION", "FIELD_MASK", "INT32", "INT64", "TIMESTAMP", "UINT32", "UINT64"]


def _up_to(limit: int) -> str:
    """Return alternatives for the decimal numbers from 0 to a limit of two digits or more."""
    digits = str(limit)
    rest = len(digits) - 1
    found = ["0", f"[1-9]{_digits(rest - 1)}" if rest == 1 else f"[1-9][0-9]{{0,{rest - 1}}}"]
    for at, digit in enumerate(map(int, digits)):
        lowest = 0 if at else 1
        if digit > lowest:
            found.append(f"{digits[:at]}{_range(lowest, digit - 1)}{_digits(rest - at)}")
    return "|".join([*found, digits])


def _range(low: int, high: int) -> str:
    return str(low) if low == high else f"[{low}-{high}]"


def _digits(count: int) -> str:
    return f"[0-9]{{{count}}}" if count else ""


def _signed(bits: int) -> str:
    return f"^(-?({_up_to(2 ** (bits - 1) - 1)})|-{2 ** (bits - 1)})$"


INT32, INT64 = _signed(32), _signed(64)
UINT32, UINT64 = f"^({_up_to(2**32 - 1)})$", f"^({_up_to(2**64 - 1)})$"

_LONGEST = 315_576_000_000
"""Seconds, ten thousand years: the longest ``Duration``."""
DURATION = rf"^-?(({_up_to(_LONGEST - 1)})(\.[0-9]{{1,9}})?|{_LONGEST})s$"

_DAY = "-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])"
_TIME = r"T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,9})?"
_OFFSET = "[+-]([01][0-9]|2[0-3]):[0-5][0-9]"
_INNER = "0[1-9][0-9]{2}|00[1-9][0-9]|[1-8][0-9]{3}|9[0-8][0-9]{2}|99[0-8][0-9]"
"""Years of all digits but the first and the last ten, in which an offset could lead out of the range."""
TIMESTAMP = f"^(({_INNER}|000[1-9]|999[0-9]){_DAY}{_TIME}Z|({_INNER}|000[2-9]|999[0-8]){_DAY}{_TIME}{_OFFSET})$"

BASE64 = "^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$"
FIELD_MASK = "^[!-^`-~]*$"

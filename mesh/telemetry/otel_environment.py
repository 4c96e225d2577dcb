"""OpenTelemetry's environment variables, validated and normalized by their specification before the SDK reads them.

By the specification, an unusable value is ignored with a warning. The SDK reads many variables itself, some during its
import, and ends the process with a traceback instead. ``normalize`` therefore removes unusable values from the
environment and keeps a warning for each. It brings the others into the form that every reader understands: no spaces
around them, enumerations in lower case, headers percent-encoded. It is idempotent, so a child process can normalize the
environment that it inherits.

- An empty value counts as unset. A boolean is true for ``true`` in any case, and for nothing else.
- Durations and timeouts are milliseconds, also those that the Python SDK takes for seconds
  (``OTEL_EXPORTER_OTLP_TIMEOUT``): ``timeout`` converts them for its exporters. A timeout of 0 means none.
- Of a list (exporters, propagators, headers, resource attributes) only the unusable elements are left out.
- Warnings never contain values of headers.

OpenTelemetry is not imported here.

Source: https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/ and
https://opentelemetry.io/docs/specs/otel/protocol/exporter/.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from importlib.metadata import entry_points
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

__all__ = ["LEVELS", "exporters", "normalize", "number", "protocol", "take_warnings", "timeout"]

SIGNALS = ("TRACES", "METRICS", "LOGS")
HTTP, GRPC = "http/protobuf", "grpc"
MAX_NUMBER = 2**31 - 1
"""Largest number that is accepted. As milliseconds it is some 24 days, which every clock and queue can take."""
NO_LIMIT_TIMEOUT = 86_400.0
"""Seconds that stand for no timeout. No export takes a day."""
LEVELS = {"none": 100, "error": 40, "warn": 30, "warning": 30, "info": 20, "debug": 10}
"""``OTEL_LOG_LEVEL`` → the level of a logger."""
_DEFAULT_TIMEOUT_MS = 10_000
"""Default of ``OTEL_EXPORTER_OTLP_TIMEOUT``, milliseconds."""

_EVERY_TRACE = "1.0"
_PREFIX = "OTEL_"
_OTLP = "OTEL_EXPORTER_OTLP_"
_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?\Z")
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+\Z")
"""A field name (RFC 9110, section 5.6.2)."""
_UNQUOTED = "!#$&'()*+-./:<=>?@[]^_`{|}~"
"""Characters of a header's value that are not percent-encoded, besides ASCII alphanumerics.

The SDK logs a header that has other characters.
"""
_CONTROL_CHARACTER = re.compile(r"[\x00-\x1f\x7f]")

_warnings: list[str] = []


def normalize(environ: MutableMapping[str, str]) -> None:
    """Remove unusable values, and bring the others into their normal form. ``take_warnings`` returns the reasons.

    Args:
        environ: The environment of the process. It is changed in place.
    """
    for name in [name for name in environ if name.startswith(_PREFIX)]:
        value = environ[name].strip()
        kept = _checked(name, value, environ) if value else ""
        if not kept:
            del environ[name]
        elif kept != environ[name]:
            environ[name] = kept
    _compression(environ)
    if "traceidratio" in environ.get("OTEL_TRACES_SAMPLER", ""):
        environ.setdefault(
            "OTEL_TRACES_SAMPLER_ARG", _EVERY_TRACE
        )  # the specification's default; without it the SDK warns


def take_warnings() -> list[str]:
    """Return the warnings since the last call, one line for each variable."""
    found = list(dict.fromkeys(_warnings))
    _warnings.clear()
    return found


# -- values of the normalized environment --


def number(environ: Mapping[str, str], name: str, default: float) -> float:
    """Return a number, or ``default`` if it is unset or unusable (then with a warning)."""
    text = environ.get(name, "").strip()
    kept = _checked(name, text, environ) if text else ""
    return float(kept) if kept else default


def timeout(environ: Mapping[str, str], signal: str) -> float:
    """Return the timeout of an export of a signal (``traces``, ``metrics``), seconds."""
    general = number(environ, f"{_OTLP}TIMEOUT", _DEFAULT_TIMEOUT_MS)
    return number(environ, f"{_OTLP}{signal.upper()}_TIMEOUT", general) / 1000 or NO_LIMIT_TIMEOUT


def protocol(environ: Mapping[str, str], signal: str) -> str:
    """Return the protocol of a signal's OTLP exporter: ``http/protobuf`` or ``grpc``."""
    names = (f"{_OTLP}{signal.upper()}_PROTOCOL", f"{_OTLP}PROTOCOL")
    return next((found for name in names if (found := environ.get(name, "").strip().lower()) in (HTTP, GRPC)), HTTP)


def exporters(environ: Mapping[str, str], signal: str) -> list[str] | None:
    """Return the names of a signal's exporters, or None if the environment names neither exporters nor an endpoint.

    ``none`` is not an exporter. An endpoint without names means ``otlp``.
    """
    names = environ.get(f"OTEL_{signal.upper()}_EXPORTER", "")
    if names:
        return [name for name in names.split(",") if name != "none"]
    endpoints = (f"{_OTLP}{signal.upper()}_ENDPOINT", f"{_OTLP}ENDPOINT")
    return ["otlp"] if any(environ.get(name) for name in endpoints) else None


# -- the kinds of values --

Environ = Mapping[str, str]
Check = Callable[[str, str, Environ], str]
"""Name, value without outer spaces, environment → the value to keep, or ``""``."""


def _checked(name: str, value: str, environ: Environ) -> str:
    check = _CHECKS.get(name)
    return value if check is None else check(name, value, environ)


def _ignore(name: str, expected: str, value: str, instead: str = "the default is used") -> str:
    """Add the warning of an ignored value, and return no value."""
    _warnings.append(f"{name} is ignored: expected {expected}, not {_shown(value)!r}; {instead}")
    return ""


def _leave_out(entry: str, name: str, expected: str) -> None:
    """Add the warning of an ignored element of a list."""
    _warnings.append(f"{entry} of {name} is left out: expected {expected}")


def _shown(value: str) -> str:
    """Return a value for the log: without user and password, and shortened."""
    value = re.sub(r"//[^/@]*@", "//", value)
    return value if len(value) <= 80 else f"{value[:80]}…"  # noqa: PLR2004 - a line's worth


def _numeric(smallest: int, *, integer: bool = False, unit: str = "") -> Check:
    kind = "an integer" if integer else "a number"
    expected = f"{kind}{unit and f' of {unit}'} from {smallest} to {MAX_NUMBER}"

    def check(name: str, value: str, _: Environ) -> str:
        fits = _NUMBER.match(value) and len(value) <= 20 and smallest <= float(value) <= MAX_NUMBER  # noqa: PLR2004
        if not fits or (integer and not value.isdigit()):
            return _ignore(name, expected, value)
        return value

    return check


def _boolean(name: str, value: str, _: Environ) -> str:
    if value.lower() not in ("true", "false"):
        return _ignore(name, "true or false", value, "the default, false, is used")
    return value.lower()


def _choice(*values: str, instead: str = "the default is used") -> Check:
    def check(name: str, value: str, _: Environ) -> str:
        if value.lower() not in values:
            return _ignore(name, _one_of(values), value, instead)
        return value.lower()

    return check


def _one_of(values: Iterable[str]) -> str:
    *most, last = values
    return f"{', '.join(most)} or {last}" if most else last


def _names(group: str, *known: str) -> Check:
    """Return the check of a list of names. Valid are ``known`` and the names in a group of installed packages."""

    def check(name: str, value: str, _: Environ) -> str:
        kept: list[str] = []
        for entry in filter(None, (entry.strip() for entry in value.split(","))):
            lower = entry.lower()
            if lower in known or (group and entry_points(group=group, name=lower)):
                kept.append(lower)
            elif group and entry_points(group=group, name=entry):
                kept.append(entry)
            else:
                there = sorted({*known, *(found.name for found in entry_points(group=group))})
                _leave_out(repr(_shown(entry)), name, _one_of(there))
        return ",".join(dict.fromkeys(kept))

    return check


def _no_logs(name: str, value: str, _: Environ) -> str:
    if value.lower() == "none":
        return "none"
    return _ignore(name, "none", value, "logs are JSON lines on standard error, and not exported")


def _endpoint(signal: str) -> Check:
    def check(name: str, value: str, environ: Environ) -> str:
        signals = [signal] if signal else list(SIGNALS)
        try:
            url = urlsplit(value)
            fits = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
        except ValueError:  # a port that is not a number, brackets that are not closed
            fits = False
        if fits or ("://" not in value and all(protocol(environ, one) == GRPC for one in signals)):  # gRPC: host:port
            return value
        return _ignore(name, "a URL such as http://localhost:4318", value, "it counts as unset")

    return check


def _file(name: str, value: str, _: Environ) -> str:
    try:
        with Path(value).open("rb"):
            return value
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        return _ignore(name, "a file that can be read", value, f"{reason}; the default is used")


def _pairs(text: str) -> Iterator[tuple[str, str, str]]:
    """Yield each element of a list as written, with its key ("" without ``=``) and its decoded value."""
    for entry in filter(None, (entry.strip() for entry in text.split(","))):
        key, equals, value = entry.partition("=")
        yield entry, unquote(key).strip() if equals else "", unquote(value).strip()


def _headers(name: str, value: str, _: Environ) -> str:
    kept = []
    for at, (_entry, key, text) in enumerate(_pairs(value), 1):
        if (
            _TOKEN.match(key)
            and not _CONTROL_CHARACTER.search(text)
            and text.encode("latin-1", "ignore").decode("latin-1") == text
        ):
            kept.append(f"{quote(key, _UNQUOTED)}={quote(text, _UNQUOTED)}")
        else:
            what = f" ({key})" if _TOKEN.match(key) else ""
            _leave_out(f"entry {at}{what}", name, "name=value, percent-encoded")
    return ",".join(kept)


def _attributes(name: str, value: str, _: Environ) -> str:
    kept = []
    for entry, key, _text in _pairs(value):
        if key:
            kept.append(entry)
        else:
            _leave_out(repr(_shown(entry)), name, "key=value, percent-encoded")
    return ",".join(kept)


def _sampler_argument(name: str, value: str, environ: Environ) -> str:
    if "traceidratio" not in environ.get("OTEL_TRACES_SAMPLER", "").lower():
        return value
    try:
        fits = 0 <= float(value) <= 1
    except ValueError:
        fits = False
    if not fits:
        _ignore(name, "a number from 0 to 1", value, f"{_EVERY_TRACE} is used")
        return _EVERY_TRACE
    return value


def _compression(environ: MutableMapping[str, str]) -> None:
    """Set the compression of each signal. ``none`` becomes unset, since OTLP's gRPC exporter does not know it."""
    general = environ.pop(f"{_OTLP}COMPRESSION", "none")
    for signal in SIGNALS:
        name = f"{_OTLP}{signal}_COMPRESSION"
        value = environ.pop(name, general)
        if value == "deflate" and protocol(environ, signal) == GRPC:
            value = _ignore(name, "gzip or none for gRPC", value) or "none"
        if value != "none":
            environ[name] = value


_MILLISECONDS = "milliseconds"
_FROM_ZERO = _numeric(0, integer=True)
_FROM_ONE = _numeric(1, integer=True)
_SAMPLERS = _choice(
    "always_on", "always_off", "traceidratio", "parentbased_always_on", "parentbased_always_off",
    "parentbased_traceidratio",
)  # fmt: skip

_CHECKS: dict[str, Check] = {
    "OTEL_SDK_DISABLED": _boolean,
    "OTEL_RESOURCE_ATTRIBUTES": _attributes,
    "OTEL_LOG_LEVEL": _choice(*LEVELS),
    "OTEL_PROPAGATORS": _names("opentelemetry_propagator", "none"),
    "OTEL_TRACES_SAMPLER": _SAMPLERS,
    "OTEL_TRACES_SAMPLER_ARG": _sampler_argument,
    "OTEL_TRACES_EXPORTER": _names("opentelemetry_traces_exporter", "otlp", "none"),
    "OTEL_METRICS_EXPORTER": _names("opentelemetry_metrics_exporter", "otlp", "none"),
    "OTEL_LOGS_EXPORTER": _no_logs,
    "OTEL_METRICS_EXEMPLAR_FILTER": _choice("always_on", "always_off", "trace_based"),
    "OTEL_METRIC_EXPORT_INTERVAL": _numeric(1, unit=_MILLISECONDS),
    "OTEL_METRIC_EXPORT_TIMEOUT": _numeric(0, unit=_MILLISECONDS),
    f"{_OTLP}METRICS_TEMPORALITY_PREFERENCE": _choice("cumulative", "delta", "lowmemory"),
    f"{_OTLP}METRICS_DEFAULT_HISTOGRAM_AGGREGATION": _choice(
        "explicit_bucket_histogram", "base2_exponential_bucket_histogram"
    ),
    **{
        f"OTEL_{processor}_{setting}": check
        for processor in ("BSP", "BLRP")
        for setting, check in {
            "SCHEDULE_DELAY": _numeric(1, unit=_MILLISECONDS),
            "EXPORT_TIMEOUT": _numeric(0, unit=_MILLISECONDS),
            "MAX_QUEUE_SIZE": _FROM_ONE,
            "MAX_EXPORT_BATCH_SIZE": _FROM_ONE,
        }.items()
    },
    **{
        f"OTEL_{limit}_LIMIT": _FROM_ZERO
        for limit in (
            "ATTRIBUTE_VALUE_LENGTH", "ATTRIBUTE_COUNT", "SPAN_ATTRIBUTE_VALUE_LENGTH", "SPAN_ATTRIBUTE_COUNT",
            "SPAN_EVENT_COUNT", "SPAN_LINK_COUNT", "EVENT_ATTRIBUTE_COUNT", "LINK_ATTRIBUTE_COUNT",
            "LOGRECORD_ATTRIBUTE_VALUE_LENGTH", "LOGRECORD_ATTRIBUTE_COUNT",
        )
    },
    **{
        f"{_OTLP}{signal and f'{signal}_'}{setting}": check
        for signal in ("", *SIGNALS)
        for setting, check in {
            "ENDPOINT": _endpoint(signal),
            "PROTOCOL": _choice(HTTP, GRPC, instead=f"{HTTP} is used"),
            "TIMEOUT": _numeric(0, unit=_MILLISECONDS),
            "HEADERS": _headers,
            "COMPRESSION": _choice("gzip", "deflate", "none"),
            "INSECURE": _boolean,
            "CERTIFICATE": _file,
            "CLIENT_KEY": _file,
            "CLIENT_CERTIFICATE": _file,
        }.items()
    },
}  # fmt: skip

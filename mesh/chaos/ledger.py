"""Ledger of ``mesh chaos``: compares expected with found calls, rows, events and effects. Pure.

Each line counts what was lost and what was doubled. No count comes from a service: the client counts calls, a trigger
in the database commits, the broker's storage events, and the databases effects.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from mesh.control.text_table import table

__all__ = [
    "CallOutcome",
    "EffectCount",
    "Ledger",
    "Line",
    "Observations",
    "ObservedDeadLetter",
    "compare",
    "ledger",
    "outcome",
    "show",
]

_UNSURE = frozenset({408, 409, 425, 429, 499})
"""HTTP statuses of refusals that may have been sent after the function ran."""


class CallOutcome(Enum):
    """Outcome of a call, as its client knows it."""

    ACCEPTED = "accepted"
    REFUSED = "refused"
    """The call must have had no effect."""
    UNKNOWN = "unknown"
    """The call failed or got no response: it had its whole effect or none."""


def outcome(status: int | None) -> CallOutcome:
    """Return the outcome of a call by its HTTP status; None: there was no response."""
    if status is None or status >= 500 or status in _UNSURE:  # noqa: PLR2004 - server errors
        return CallOutcome.UNKNOWN
    return CallOutcome.ACCEPTED if status < 300 else CallOutcome.REFUSED  # noqa: PLR2004 - success


@dataclass(frozen=True, slots=True)
class ObservedDeadLetter:
    """A dead letter on the broker: its method, the id of its event, and its reason."""

    method: str
    event: str
    reason: str


@dataclass(frozen=True, slots=True)
class EffectCount:
    """Count of the effects of events in one place.

    Attributes:
        place: Its name in the ledger.
        expected: Ids of events, each as often as it should be found.
        found: Ids of events, each as often as it was found.
        methods: The methods whose dead letters explain missing effects; each explains one of its event.
        uncounted: Reason why it cannot be counted; "": it is counted.
    """

    place: str
    expected: Counter[str]
    found: Counter[str]
    methods: frozenset[str]
    uncounted: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observations:
    """Observations after an experiment.

    Attributes:
        calls: Word of each call → its outcome.
        event: The event that an accepted call publishes.
        words: Words of these events on the broker.
        published: Ids of all events and changes on the broker.
        committed: Service → ids of events that its transactions have committed.
        stored: Table → words of calls, once for each row.
        unfinished: Table → words of calls with a row that is marked as unfinished.
        effects: Effects of the methods that are called for events and changes.
        dead: The dead letters.
        doomed: Method → ids of the only events that must become its dead letters; empty: unknown.
    """

    calls: Mapping[str, CallOutcome]
    event: str
    words: Counter[str]
    published: Counter[str]
    committed: Mapping[str, Sequence[str]]
    stored: Mapping[str, Counter[str]] = field(default_factory=dict)
    unfinished: Mapping[str, Counter[str]] = field(default_factory=dict)
    effects: Sequence[EffectCount] = ()
    dead: Sequence[ObservedDeadLetter] = ()
    doomed: Mapping[str, Counter[str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Line:
    """One comparison.

    Attributes:
        label: Name of the comparison.
        expected: Expected number.
        found: Found number.
        lost: Number of the missing without an explanation.
        doubled: Number of the found beyond the expected.
        dead: Number of the missing that are dead letters.
        examples: Some of the lost and doubled.
    """

    label: str
    expected: int
    found: int
    lost: int
    doubled: int
    dead: int = 0
    examples: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Ledger:
    """Result of an experiment.

    Attributes:
        lines: The comparisons.
        deaths: Method and reason → number of dead letters.
        uncounted: Place → reason why it cannot be counted.
        unfinished: Table → number of rows that are marked as unfinished.
    """

    lines: tuple[Line, ...]
    deaths: Mapping[str, int]
    uncounted: Mapping[str, str] = field(default_factory=dict)
    unfinished: Mapping[str, int] = field(default_factory=dict)

    @property
    def lost(self) -> int:
        """Number of the missing, over all lines."""
        return sum(line.lost for line in self.lines)

    @property
    def doubled(self) -> int:
        """Number of the doubled, over all lines."""
        return sum(line.doubled for line in self.lines)


def compare(label: str, expected: Counter[str], found: Counter[str], dead: Iterable[str] = ()) -> Line:
    """Return a comparison; each of ``dead`` explains one that is missing."""
    missing, doubled = expected - found, found - expected
    explained = missing & Counter(dead)
    lost = missing - explained
    return Line(
        label,
        expected.total(),
        found.total(),
        lost.total(),
        doubled.total(),
        explained.total(),
        tuple([f"lost {name}" for name in sorted(lost)][:3] + [f"doubled {name}" for name in sorted(doubled)][:3]),
    )


def ledger(observations: Observations) -> Ledger:
    """Return the ledger of observations.

    An accepted call must be stored, be published and have its effects once; an unknown one wholly or not at all.
    """
    by_outcome = {
        outcome: {word for word, one in observations.calls.items() if one is outcome} for outcome in CallOutcome
    }

    def of(outcome: CallOutcome, words: Counter[str]) -> Counter[str]:
        return Counter({word: count for word, count in words.items() if word in by_outcome[outcome]})

    accepted, unknown = Counter(by_outcome[CallOutcome.ACCEPTED]), of(CallOutcome.UNKNOWN, observations.words)
    lines = [
        compare(f"accepted calls → {observations.event}", accepted, of(CallOutcome.ACCEPTED, observations.words)),
        compare("unknown calls → at most one each", Counter(set(unknown)), unknown),
        compare("refused calls → none", Counter(), of(CallOutcome.REFUSED, observations.words)),
    ]
    if not observations.stored:
        lines.append(compare("accepted calls → stored", accepted, Counter()))
    for name, rows in sorted(observations.stored.items()):
        lines += [
            compare(f"accepted calls → stored in {name}", accepted, of(CallOutcome.ACCEPTED, rows)),
            compare(f"unknown calls, stored in {name} → published", of(CallOutcome.UNKNOWN, rows), unknown),
            compare(f"refused calls → none stored in {name}", Counter(), of(CallOutcome.REFUSED, rows)),
        ]
    for name, ids in sorted(observations.committed.items()):
        mine = set(ids)
        published = Counter({id_: count for id_, count in observations.published.items() if id_ in mine})
        lines.append(compare(f"committed by {name} → published", Counter(ids), published))
    dead = {(one.method, one.event) for one in observations.dead}
    lines += [
        compare(one.place, one.expected, one.found, [event for method, event in dead if method in one.methods])
        for one in observations.effects
        if not one.uncounted
    ]
    for name, expected in observations.doomed.items():
        died = Counter(event for method, event in dead if method == name)
        lines.append(compare(f"doomed → dead letters of {name}", expected, died))
    deaths = Counter(f"{one.method}: {one.reason}" for one in observations.dead)
    uncounted = {one.place: one.uncounted for one in observations.effects if one.uncounted}
    return Ledger(
        tuple(lines), deaths, uncounted, {name: rows.total() for name, rows in observations.unfinished.items() if rows}
    )


def show(found: Ledger) -> str:
    """Return the ledger as text."""
    rows = [
        (line.label, *(f"{number:,}" for number in (line.expected, line.found, line.lost, line.doubled, line.dead)))
        for line in found.lines
    ]
    text = table(("", "expected", "found", "lost", "doubled", "dead"), rows)
    examples = [f"{line.label}: {', '.join(line.examples)}" for line in found.lines if line.examples]
    deaths = [f"{count:,} dead letters of {cause}" for cause, count in sorted(found.deaths.items())]
    uncounted = [f"not counted: {place}: {reason}" for place, reason in found.uncounted.items()]
    unfinished = [
        f"unfinished: {count:,} rows of unknown calls in {name}, which differ from those of accepted calls"
        for name, count in found.unfinished.items()
    ]
    return "\n".join(
        [text, "", *examples, *deaths, *unfinished, *uncounted, f"lost {found.lost:,}, doubled {found.doubled:,}"]
    )

"""The ledger of ``mesh chaos``: what was asked for, stored, published and done → what was lost, what was doubled. Pure.

Each line compares what should be there with what is. Nothing is taken from a service's word: calls were counted by the
client, commits by a trigger in the service's database, events on the broker's disk, effects in the databases.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from mesh.control.text_table import table

__all__ = ["Dead", "Effect", "Facts", "Fate", "Ledger", "Line", "compare", "fate", "ledger", "show"]

_UNSURE = frozenset({408, 409, 425, 429, 499})
"""HTTP statuses of refusals that may have come after something was done."""


class Fate(Enum):
    """What became of a call, as its client knows it."""

    ACCEPTED = "accepted"
    REFUSED = "refused"
    """Nothing may have happened."""
    UNKNOWN = "unknown"
    """It failed, or was never answered: it may have happened, wholly or not at all."""


def fate(status: int | None) -> Fate:
    """Return what an HTTP status says; None: there was no answer."""
    if status is None or status >= 500 or status in _UNSURE:  # noqa: PLR2004 - server errors
        return Fate.UNKNOWN
    return Fate.ACCEPTED if status < 300 else Fate.REFUSED  # noqa: PLR2004 - success


@dataclass(frozen=True, slots=True)
class Dead:
    """A dead letter: the method it was for, the event's id, and why."""

    method: str
    event: str
    why: str


@dataclass(frozen=True, slots=True)
class Effect:
    """Where the effects of events are counted.

    Attributes:
        where: Its name in the ledger.
        expected: Ids of events, as often as each should be found.
        found: Ids, as often as each is.
        methods: The methods whose dead letters explain what is missing: each one copy of its event.
        uncounted: Why it cannot be counted; "": it is counted.
    """

    where: str
    expected: Counter[str]
    found: Counter[str]
    methods: frozenset[str]
    uncounted: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What was counted.

    Attributes:
        calls: Word of each call → what became of it.
        event: The event that an accepted call publishes.
        words: The word of each of these events on the broker.
        published: Ids of all events and changes on the broker.
        committed: Service → ids that its transactions have committed.
        stored: Table → words of calls in it, once for each row.
        begun: Table → words of calls of which it has a row that says that it is not done.
        effects: Of the methods that are called for events and changes.
        dead: Dead letters.
        doomed: Method → ids of the events that have to be dead letters of it, and no others; empty: it is not known.
    """

    calls: Mapping[str, Fate]
    event: str
    words: Counter[str]
    published: Counter[str]
    committed: Mapping[str, Sequence[str]]
    stored: Mapping[str, Counter[str]] = field(default_factory=dict)
    begun: Mapping[str, Counter[str]] = field(default_factory=dict)
    effects: Sequence[Effect] = ()
    dead: Sequence[Dead] = ()
    doomed: Mapping[str, Counter[str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Line:
    """One comparison.

    Attributes:
        what: What is compared.
        expected: How many there should be.
        found: How many there are.
        lost: How many are missing without an explanation.
        doubled: How many are there that should not be.
        dead: How many are missing because they are dead letters.
        examples: Some of the lost and doubled.
    """

    what: str
    expected: int
    found: int
    lost: int
    doubled: int
    dead: int = 0
    examples: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Ledger:
    """All lines, why letters died (reason → how many), what cannot be counted (what → why), and what was only begun."""

    lines: tuple[Line, ...]
    deaths: Mapping[str, int]
    uncounted: Mapping[str, str] = field(default_factory=dict)
    begun: Mapping[str, int] = field(default_factory=dict)

    @property
    def lost(self) -> int:
        """What is missing, over all lines."""
        return sum(line.lost for line in self.lines)

    @property
    def doubled(self) -> int:
        """What is there too often, over all lines."""
        return sum(line.doubled for line in self.lines)


def compare(what: str, expected: Counter[str], found: Counter[str], dead: Iterable[str] = ()) -> Line:
    """Compare; each of ``dead`` explains one copy that is missing."""
    missing, more = expected - found, found - expected
    buried = missing & Counter(dead)
    lost = missing - buried
    return Line(
        what,
        expected.total(),
        found.total(),
        lost.total(),
        more.total(),
        buried.total(),
        tuple([f"lost {name}" for name in sorted(lost)][:3] + [f"doubled {name}" for name in sorted(more)][:3]),
    )


def ledger(facts: Facts) -> Ledger:
    """Return the ledger: every accepted call stored, published and done once; every other wholly, or not at all."""
    by_fate = {fate: {word for word, one in facts.calls.items() if one is fate} for fate in Fate}

    def of(fate: Fate, words: Counter[str]) -> Counter[str]:
        return Counter({word: count for word, count in words.items() if word in by_fate[fate]})

    accepted, unknown = Counter(by_fate[Fate.ACCEPTED]), of(Fate.UNKNOWN, facts.words)
    lines = [
        compare(f"accepted calls → {facts.event}", accepted, of(Fate.ACCEPTED, facts.words)),
        compare("unknown calls → at most one each", Counter(set(unknown)), unknown),
        compare("refused calls → none", Counter(), of(Fate.REFUSED, facts.words)),
    ]
    if not facts.stored:
        lines.append(compare("accepted calls → stored", accepted, Counter()))
    for name, rows in sorted(facts.stored.items()):
        lines += [
            compare(f"accepted calls → stored in {name}", accepted, of(Fate.ACCEPTED, rows)),
            compare(f"unknown calls, stored in {name} → published", of(Fate.UNKNOWN, rows), unknown),
            compare(f"refused calls → none stored in {name}", Counter(), of(Fate.REFUSED, rows)),
        ]
    for name, ids in sorted(facts.committed.items()):
        mine = set(ids)
        there = Counter({id_: count for id_, count in facts.published.items() if id_ in mine})
        lines.append(compare(f"committed by {name} → published", Counter(ids), there))
    letters = {(dead.method, dead.event) for dead in facts.dead}
    lines += [
        compare(one.where, one.expected, one.found, [event for method, event in letters if method in one.methods])
        for one in facts.effects
        if not one.uncounted
    ]
    for name, expected in facts.doomed.items():
        died = Counter(event for method, event in letters if method == name)
        lines.append(compare(f"doomed → dead letters of {name}", expected, died))
    deaths = Counter(f"{one.method}: {one.why}" for one in facts.dead)
    uncounted = {one.where: one.uncounted for one in facts.effects if one.uncounted}
    return Ledger(tuple(lines), deaths, uncounted, {name: rows.total() for name, rows in facts.begun.items() if rows})


def show(found: Ledger) -> str:
    """Return the ledger as text."""
    rows = [
        (line.what, *(f"{number:,}" for number in (line.expected, line.found, line.lost, line.doubled, line.dead)))
        for line in found.lines
    ]
    text = table(("", "expected", "found", "lost", "doubled", "dead"), rows)
    examples = [f"{line.what}: {', '.join(line.examples)}" for line in found.lines if line.examples]
    deaths = [f"{count:,} dead letters of {why}" for why, count in sorted(found.deaths.items())]
    unknown = [f"not counted: {where}: {why}" for where, why in found.uncounted.items()]
    begun = [
        f"begun, and not done: {count:,} rows of unknown calls in {name}, which are not as those of accepted calls"
        for name, count in found.begun.items()
    ]
    return "\n".join(
        [text, "", *examples, *deaths, *begun, *unknown, f"lost {found.lost:,}, doubled {found.doubled:,}"]
    )

"""Rotation of the root: at every step, each pair of components accepts each other."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mesh.certificates import CertificateError
from mesh.certificates.authority import BACKDATE, parse_bundle, verify_leaf
from mesh.certificates.authority_store import AuthorityStore
from mesh.certificates.leaf_files import current_leaf, issue_due
from mesh.certificates.rotation import (
    SETTLE_TIME,
    IssuedLeaf,
    RotationState,
    Step,
    advance,
    next_change,
    waiting_for,
)  # fmt: skip
from mesh.faults import Faults

START = datetime(2026, 11, 30, tzinfo=UTC)
DAY = timedelta(days=1)
NAMES = ["login", "audit", "edge"]


class Rotation(RuleBasedStateMachine):
    """Components that renew, sleep and die, while a root is rotated by the safe steps only.

    A component holds a leaf, and the roots that it got with it. No certificate is made: a leaf is the name of its root.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.latest = START
        self.state = RotationState("r0", ("r0",))
        self.held: dict[str, tuple[int, IssuedLeaf, tuple[str, ...]]] = {}
        self.serial = 0
        self.roots = 0

    @rule(name=st.sampled_from(["a", "b", "c"]))
    def renew(self, name: str) -> None:
        """A component renews, or starts: one that was killed lost its leaf without telling anybody."""
        held = self.held.get(name)
        leaf = IssuedLeaf(name, self.state.signing, self.state.round, self.now, self.now + DAY)
        self.serial += 1
        self.state = self.state.with_leaf(self.serial, leaf, None if held is None else held[0])
        self.held[name] = self.serial, leaf, self.state.trusted

    @rule(name=st.sampled_from(["a", "b", "c"]))
    def die(self, name: str) -> None:
        self.held.pop(name, None)

    @rule(seconds=st.sampled_from([1, 20, 31, 3600, 12 * 3600, 86401]))
    def wait(self, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)

    @rule(minutes=st.integers(1, 29))
    def set_the_clock_back(self, minutes: int) -> None:
        self.latest = max(self.latest, self.now)
        self.now = self.latest - timedelta(minutes=minutes)

    @precondition(lambda self: (next_change(self.state, self.now) or self.now) <= self.now)
    @rule()
    def step(self) -> None:
        self.roots += 1
        self.state = advance(self.state, f"r{self.roots}", self.now)

    @invariant()
    def all_valid_components_accept_each_other(self) -> None:
        valid = [(leaf, trusted) for _, leaf, trusted in self.held.values() if leaf.expires > self.now]
        for leaf, _ in valid:
            for other, trusted in valid:
                assert leaf.root in trusted, (self.state.step, leaf, other, trusted)
        assert self.state.signing in self.state.trusted

    @invariant()
    def the_state_is_written_and_read_back(self) -> None:
        assert RotationState.from_json(self.state.to_json()) == self.state


Rotation.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestRotation = Rotation.TestCase


@pytest.fixture
def store(tmp_path: Path) -> AuthorityStore:
    found = AuthorityStore(tmp_path / "authority", "shop")
    found.ensure(START)
    found.ensure(START + DAY)  # the second call makes nothing
    return found


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    (tmp_path / "identity").mkdir()
    return dict.fromkeys(NAMES, tmp_path / "identity")


def leaf_of(folders: dict[str, Path], name: str) -> x509.Certificate:
    leaf = current_leaf(folders[name], name, "shop")
    assert leaf is not None
    return leaf


def test_the_authority_is_private_and_made_once(store: AuthorityStore) -> None:
    assert store.folder.stat().st_mode & 0o777 == 0o700
    files = list(store.folder.iterdir())
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    assert len([path for path in files if path.name.startswith("root-")]) == 1


def test_leaves_are_issued_when_missing_or_at_half_of_their_life(
    store: AuthorityStore, folders: dict[str, Path]
) -> None:
    due = issue_due(store, folders, {"login": ["login.svc", "10.0.0.1"]}, now=START)
    first = {name: leaf_of(folders, name).serial_number for name in NAMES}
    assert START + DAY / 3 < due <= START + DAY / 2
    assert due < issue_due(store, folders, {"login": ["login.svc"]}, now=due - timedelta(seconds=1)) + DAY
    assert {name: leaf_of(folders, name).serial_number for name in NAMES} == first
    (folders["audit"] / "audit.pem").write_text("damaged")
    issue_due(store, folders, {"login": ["login.svc"]}, now=START + timedelta(hours=1))
    assert [leaf_of(folders, name).serial_number == first[name] for name in NAMES] == [True, False, True]
    issue_due(store, folders, {"login": ["other.svc"]}, now=START + timedelta(hours=1))
    assert leaf_of(folders, "login").serial_number != first["login"]  # another host
    issue_due(store, folders, {}, now=due)
    assert leaf_of(folders, "edge").serial_number != first["edge"]
    assert len(store.status().state.leaves) == len(NAMES) + 1  # that of the damaged file may be in use
    assert (folders["login"] / "login.pem").stat().st_mode & 0o777 == 0o600


def test_a_rotation_of_real_certificates(store: AuthorityStore, folders: dict[str, Path]) -> None:
    now = START
    issue_due(store, folders, {}, now=now)
    old = store.status().state.signing
    steps = []
    for _ in range(200):
        now += timedelta(seconds=10)
        after = store.advance(now) if steps[-1:] != [Step.STEADY] else None
        if after is not None:
            steps.append(after.step)
        issue_due(store, folders, {}, now=now)
        trusted = parse_bundle((folders["login"] / "roots.pem").read_bytes())
        for name in NAMES:
            verify_leaf(leaf_of(folders, name), trusted, now)
    assert steps == [Step.ADDED, Step.SIGNING, Step.STEADY]
    state = store.status().state
    assert state.trusted == (state.signing,) != (old,)
    assert [path.name for path in store.folder.glob("root-*")] == [f"root-{state.signing}.pem"]
    assert {leaf.root for leaf in state.leaves.values()} == {state.signing}


def test_a_step_waits_for_a_leaf_that_nobody_renews_until_it_expires(
    store: AuthorityStore, folders: dict[str, Path]
) -> None:
    issue_due(store, folders, {}, now=START)
    assert store.advance(START) is not None
    renewing = {name: folder for name, folder in folders.items() if name != "audit"}
    issue_due(store, renewing, {}, now=START)
    later = START + timedelta(hours=1)
    assert store.advance(later) is None
    assert [leaf.name for leaf in waiting_for(store.status().state, later)] == ["audit"]
    assert next_change(store.status().state, later) == leaf_of(folders, "audit").not_valid_after_utc + BACKDATE
    forced = store.advance(later, force=True)
    assert forced is not None
    assert forced.step is Step.SIGNING
    assert store.advance(START + timedelta(hours=25)) is not None


def test_a_step_waits_until_the_components_have_taken_the_files(
    store: AuthorityStore, folders: dict[str, Path]
) -> None:
    issue_due(store, folders, {}, now=START)
    store.advance(START)
    issue_due(store, folders, {}, now=START)
    assert store.advance(START + SETTLE_TIME - timedelta(seconds=1)) is None
    assert store.advance(START + SETTLE_TIME) is not None


def test_two_processes_that_renew_at_once_leave_no_leaf_behind(store: AuthorityStore, folders: dict[str, Path]) -> None:
    """A leaf that no component has would keep a rotation from its next step until it expires."""
    issue_due(store, folders, {}, now=START)
    store.advance(START)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: issue_due(store, folders, {}, now=START), range(4)))
    assert len(store.status().state.leaves) == len(NAMES)


def test_a_damaged_authority_is_a_fault_with_its_place(store: AuthorityStore) -> None:
    good = (store.folder / "state.json").read_text()
    for bad in (
        "",
        "[]",
        "[" * 10_000,
        '{"signing": 1}',
        good.replace("steady", "ready"),
        good.replace('"round"', '"ground"'),
    ):
        (store.folder / "state.json").write_text(bad)
        with pytest.raises(Faults, match=r"authority.*malformed"):
            store.roots()
    (store.folder / "state.json").write_text(good)
    (root,) = store.folder.glob("root-*")
    root.write_text("nothing")
    with pytest.raises(Faults, match=r"root-.*expected a root certificate and its key"):
        store.roots()
    root.unlink()
    with pytest.raises(Faults, match=r"root-.*is missing: restore it, or remove the folder"):
        store.roots()
    with pytest.raises(Faults, match="`mesh keys` makes one"):
        AuthorityStore(store.folder / "none", "shop").roots()


def test_a_root_that_has_expired_signs_nothing(store: AuthorityStore, folders: dict[str, Path]) -> None:
    with pytest.raises(Faults, match="rotate-root"):
        issue_due(store, folders, {}, now=START + 3660 * DAY)


def test_a_leaf_is_not_verified_by_the_roots_of_another_authority(tmp_path: Path, folders: dict[str, Path]) -> None:
    stores = [AuthorityStore(tmp_path / name, "shop") for name in ("one", "two")]
    for store in stores:
        store.ensure(START)
    issue_due(stores[0], folders, {}, now=START)
    with pytest.raises(CertificateError):
        verify_leaf(leaf_of(folders, "login"), parse_bundle(stores[1].roots()), START)
    serial = leaf_of(folders, "login").serial_number
    issue_due(stores[1], folders, {}, now=START)  # the state folder was deleted: a new authority
    assert leaf_of(folders, "login").serial_number != serial


def test_an_expired_leaf_is_forgotten() -> None:
    leaf = IssuedLeaf("login", "r", 0, START, START + DAY)
    state = RotationState("r", ("r",)).with_leaf(1, leaf, None)
    state = state.with_leaf(2, replace(leaf, issued=START + 2 * DAY, expires=START + 3 * DAY), None)
    assert list(state.leaves) == [2]
    assert list(state.with_leaf(3, replace(leaf, name="audit"), 2).leaves) == [2, 3]  # of another component

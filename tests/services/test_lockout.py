"""Failed logins: lock-out by name and address with backoff, also of names that do not exist, and what the log holds."""

from __future__ import annotations

import asyncio
import logging

import pytest
from login.v1 import login_pb2 as pb
from meshapi.v1 import annotations_pb2 as meshapi
from sample import Sample
from sqlalchemy import select

from mesh import PermissionDenied, ResourceExhausted, Unauthenticated
from services.login import functions, lockout, passwords
from services.login.tables import failures, sessions


class Clock:
    """The time of login, moved by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = functions._now()
        monkeypatch.setattr(functions, "_now", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Comparisons that cost nothing, counted."""
    compared: list[str] = []

    async def verify(stored: str | None, password: str, time_left: float | None) -> bool:
        compared.append(password)
        return stored is not None and password == "correct horse"

    monkeypatch.setattr(passwords, "verify", verify)
    return compared


async def fail(sample: Sample, login: str, address: str = "") -> int:
    """Log in with a wrong password; return the seconds of the lock that refused it, 0 for none."""
    with pytest.raises((Unauthenticated, ResourceExhausted)) as caught:
        await sample.log_in(login, "wrong horse", address)
    return sum(detail.retry_delay.seconds for detail in caught.value.details)


@pytest.mark.parametrize("login", ["ada", "nobody"])
async def test_a_name_is_locked_after_failures_known_or_not(sample: Sample, clock: Clock, quick: list[str], login: str):
    await sample.register("ada")
    waits = []
    for _ in range(4):
        assert await fail(sample, login) == 0
    for _ in range(12):
        assert await fail(sample, login) == 0
        waits.append(await fail(sample, login))
        clock.now += waits[-1]
    assert waits == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 900, 900]
    assert len(quick) == 16  # what is locked is not compared: no argon2 for it


async def test_a_lock_holds_the_right_password_too_and_ends(sample: Sample, clock: Clock, quick: list[str]):
    await sample.register("ada")
    for _ in range(5):
        await fail(sample, "ada")
    with pytest.raises(ResourceExhausted, match="too many attempts; try again later"):
        await sample.log_in(" ADA ")
    await sample.log_in("ada@example.com")  # another name is counted by itself
    clock.now += 1
    await sample.log_in("ada")
    for _ in range(4):  # counted from the beginning
        assert await fail(sample, "ada") == 0
    await sample.log_in("ada")


async def test_who_guesses_at_one_address_does_not_lock_the_user_out_elsewhere(
    sample: Sample, clock: Clock, quick: list[str]
):
    await sample.register("ada")
    for _ in range(5):
        assert await fail(sample, "ada", "192.0.2.1") == 0
    assert await fail(sample, "ada", "192.0.2.1") == 1
    await sample.log_in("ada", address="192.0.2.2")
    clock.now += 1
    await fail(sample, "ada", "192.0.2.1")
    assert await fail(sample, "ada", "192.0.2.1") == 2  # a success elsewhere does not help the one who guesses


async def test_guesses_from_many_addresses_lock_the_name(sample: Sample, clock: Clock, quick: list[str]):
    await sample.register("ada")
    for number in range(20):
        assert await fail(sample, "ada", f"192.0.2.{number}") == 0
    assert await fail(sample, "ada", "192.0.2.100") == 1
    with pytest.raises(ResourceExhausted):
        await sample.log_in("ada", address="192.0.2.101")
    clock.now += 1
    await sample.log_in("ada", address="192.0.2.101")
    for number in range(19):  # counted from the beginning
        assert await fail(sample, "ada", f"198.51.100.{number}") == 0
    await sample.log_in("ada", address="192.0.2.101")


@pytest.mark.parametrize(
    ("addresses", "other"),
    [
        (["192.0.2.1"], "2001:db8:0:8::1"),
        (["2001:db8:0:7::1", "2001:db8:0:7:ffff::2"], "2001:db8:0:8::1"),
        (["::ffff:192.0.2.1", "192.0.2.1"], "::ffff:192.0.2.2"),
    ],
)
async def test_one_password_with_many_names_locks_the_address(
    sample: Sample, clock: Clock, quick: list[str], addresses: list[str], other: str
):
    await sample.register("ada")
    for number in range(50):
        address = addresses[number % len(addresses)]
        assert await fail(sample, f"name{number}", address) == 0
        if number == 40:
            await sample.log_in("ada", address=address)  # the guesser's own account forgets nothing
    assert await fail(sample, "another", addresses[0]) == 1
    with pytest.raises(ResourceExhausted):
        await sample.log_in("ada", address=addresses[-1])
    await sample.log_in("ada", address=other)
    clock.now += 60 * 10  # ten failures are forgotten
    for number in range(9):
        assert await fail(sample, f"again{number}", addresses[0]) == 0
    await sample.log_in("ada", address=addresses[0])


async def test_an_address_may_fail_about_once_a_minute(sample: Sample, clock: Clock, quick: list[str]):
    for number in range(60):
        assert await fail(sample, f"name{number}", "192.0.2.1") == 0
        clock.now += 59  # the seconds count, too, not only whole minutes
    clock.now += 3600
    assert await fail(sample, "another", "192.0.2.1") == 0


async def test_failures_are_forgotten_after_a_day(sample: Sample, clock: Clock, quick: list[str]):
    for _ in range(5):
        await fail(sample, "nobody")
    clock.now += lockout.MAX_COUNT_AGE
    for _ in range(5):
        assert await fail(sample, "nobody") == 0
    tick = meshapi.Tick(schedule="7 * * * *")
    for ahead, left in ((lockout.MAX_COUNT_AGE - 1, 2), (lockout.MAX_COUNT_AGE, 0)):
        tick.time.FromSeconds(clock.now + ahead)
        await sample.login.call("PurgeSessions", tick)
        async with sample.login.transaction() as tx:
            assert len((await tx.execute(select(failures))).all()) == left


async def test_guesses_at_the_same_time_are_all_counted(sample: Sample, clock: Clock, monkeypatch: pytest.MonkeyPatch):
    await sample.register("ada")
    guesses, together = 12, asyncio.Event()
    arrived = 0
    wrong_done = asyncio.Event()

    async def verify(stored: str | None, password: str, time_left: float | None) -> bool:
        nonlocal arrived
        arrived += 1
        if arrived == guesses + 1:
            together.set()
        await together.wait()
        if password == "correct horse":
            await wrong_done.wait()
        return password == "correct horse"

    monkeypatch.setattr(passwords, "verify", verify)
    right = asyncio.create_task(sample.log_in("ada"))
    await asyncio.gather(*(fail(sample, "ada") for _ in range(guesses)))
    wrong_done.set()
    with pytest.raises(ResourceExhausted):  # the guess that was right does not tell so
        await right
    async with sample.login.transaction() as tx:
        assert (await tx.execute(select(failures.c.count))).scalars().all() == [guesses] * 2
        assert not (await tx.execute(select(sessions))).all()


async def test_the_log_names_users_and_nothing_that_was_typed(
    sample: Sample, clock: Clock, quick: list[str], caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO)
    user = await sample.register("ada")
    caplog.clear()
    for _ in range(5):
        await fail(sample, "ada", "192.0.2.1")
        await fail(sample, "hunter2 typed into the wrong field", "192.0.2.2")
    assert f"wrong password for user {user.id} from 192.0.2.1: failure 4 in a row" in caplog.text
    assert f"wrong password for user {user.id} from 192.0.2.1: failure 5 in a row, locked for 1 s" in caplog.text
    assert "wrong password for an unknown name from 192.0.2.2: failure 5 in a row, locked for 1 s" in caplog.text
    assert not [word for word in ("hunter2", "wrong horse", "ada\n") if word in caplog.text]
    async with sample.login.transaction() as tx:
        assert "hunter2" not in str((await tx.execute(select(failures))).all())


async def test_guesses_of_the_current_password_are_locked_too(sample: Sample, clock: Clock, quick: list[str]):
    await sample.register("ada")
    identity = await sample.identity("ada")
    change = pb.ChangePasswordRequest(current_password="wrong horse", new_password="battery staple")
    for _ in range(5):
        with pytest.raises(PermissionDenied, match="current password is wrong"):
            await sample.login.call("ChangePassword", change, identity=identity)
    change.current_password = "correct horse"
    with pytest.raises(ResourceExhausted):
        await sample.login.call("ChangePassword", change, identity=identity)
    await sample.log_in("ada")  # one who holds a stolen token does not lock the user out

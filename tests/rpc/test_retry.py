"""Retries: the decision as a pure function, the layer by the attempts that its handler sees."""

from __future__ import annotations

import asyncio

import pytest
from google.rpc import error_details_pb2
from hypothesis import given
from hypothesis import strategies as st

from mesh.call import Call, Metadata, chain, current
from mesh.errors import Code, NotFound, StatusError, Unavailable
from mesh.headers import ATTEMPTS, NO_RETRY, PUSHBACK
from mesh.rpc.client.attempt import BUDGET_TOKENS, RetryBudget, is_retry, pushback
from mesh.rpc.client.retry import RetryPolicy, decide, retry

POLICY = RetryPolicy()
FAST = RetryPolicy(base_delay=0.001, max_delay=0.002)

inputs = st.fixed_dictionaries(
    {
        "code": st.sampled_from([int(code) for code in Code]),
        "attempts": st.integers(1, 20),
        "replayable": st.booleans(),
        "budget_spent": st.booleans(),
        "pushback_delay": st.none() | st.floats(-1, 100),
        "remaining": st.none() | st.floats(0, 100),
        "chance": st.floats(0, 1),
    }
)


@given(inputs)
def test_a_retry_is_only_ever_one_that_may_be(given_):
    wait = decide(POLICY, **given_)
    if wait is None:
        return
    assert given_["code"] == Code.UNAVAILABLE
    assert given_["replayable"]
    assert not given_["budget_spent"]
    assert given_["attempts"] < POLICY.max_attempts
    assert wait >= 0
    assert given_["remaining"] is None or wait < given_["remaining"]
    assert wait == given_["pushback_delay"] if given_["pushback_delay"] is not None else wait < POLICY.max_delay * 1.21


@pytest.mark.parametrize("code", Code)
def test_only_unavailable_is_retried(code):
    wait = decide(
        POLICY,
        code=code,
        attempts=1,
        replayable=True,
        budget_spent=False,
        pushback_delay=None,
        remaining=None,
        chance=0.5,
    )
    assert (wait is not None) == (code is Code.UNAVAILABLE)


@given(st.integers(1, 3), st.floats(0, 1))
def test_waits_grow(attempts, chance):
    def wait(number):
        return decide(
            POLICY,
            code=14,
            attempts=number,
            replayable=True,
            budget_spent=False,
            pushback_delay=None,
            remaining=None,
            chance=chance,
        )

    assert wait(attempts) is not None
    assert POLICY.base_delay * 0.79 < wait(1) < POLICY.base_delay * 1.21
    if attempts > 1:
        assert wait(attempts) > wait(attempts - 1)


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 600)), max_size=8))
def test_a_budget_stays_within_its_bounds(outcomes):
    budget = RetryBudget()
    for good, times in outcomes:
        for _ in range(times):
            budget.success() if good else budget.failure()
            assert 0 <= budget.tokens <= BUDGET_TOKENS
    if not any(good for good, _ in outcomes):
        assert budget.spent == (sum(times for _, times in outcomes) >= BUDGET_TOKENS / 2)


def test_pushback():
    error = Unavailable("x")
    assert pushback(error, []) is None
    assert pushback(error, [(PUSHBACK, b"250")]) == 0.25
    assert pushback(error, [(PUSHBACK, b"-1")]) < 0
    assert pushback(error, [(PUSHBACK, b"soon")]) < 0
    assert pushback(Unavailable("x", retry_after=1.5), []) == 1.5
    assert pushback(Unavailable("x", details=[error_details_pb2.ErrorInfo()]), []) is None


class Outgoing(Call):
    """A call with some request messages, which records its responses."""

    def __init__(self, method, *messages, deadline=None):
        super().__init__(method, Metadata(), deadline)
        self.messages = list(messages)
        self.answers = []

    async def receive(self):
        return self.messages.pop(0) if self.messages else None

    async def send(self, message):
        self.headers_sent = True
        self.answers.append(message)

    async def send_headers(self):
        self.headers_sent = True


class Script:
    """A handler that fails with the given failures, then succeeds."""

    def __init__(self, *failures, before=None):
        self.failures = list(failures)
        self.before = before
        self.seen = []
        self.attempts = []

    async def __call__(self, call):
        self.attempts.append(call.metadata.wire(ATTEMPTS))
        self.seen.append(await (call.receive() if call.method.client_streaming else call.receive_one()))
        if self.before:
            await self.before(call)
        if self.failures:
            call.headers.append((b"x-try", b"failed"))
            call.trailers.append((b"x-try", b"failed"))
            failure = self.failures.pop(0)
            if isinstance(failure, tuple):
                call.trailers.append(failure)
                failure = Unavailable("not now")
            raise failure
        call.headers.append((b"x-try", b"good"))
        await call.send(b"answer")
        call.trailers.append((b"x-try", b"good"))


@pytest.fixture
def method(contract):
    return contract.method("/conformance.v1.Echo/Idempotent")


@pytest.fixture
def unsafe(contract):
    return contract.method("/conformance.v1.Echo/Unary")


async def test_what_failed_tries_say_does_not_reach_the_caller(method):
    script = Script(Unavailable("1"), Unavailable("2"))
    call = Outgoing(method, b"request")
    await chain(retry(FAST), script)(call)
    assert script.seen == [b"request"] * 3
    assert script.attempts == [None, b"1", b"2"]
    assert call.answers == [b"answer"]
    assert call.headers == call.trailers == [(b"x-try", b"good")]


async def test_the_last_failure_reaches_the_caller_with_its_trailers(method):
    script = Script(*[Unavailable(str(number)) for number in range(9)])
    call = Outgoing(method, b"request")
    with pytest.raises(Unavailable, match="3"):
        await chain(retry(FAST), script)(call)
    assert len(script.seen) == FAST.max_attempts
    assert call.trailers == [(b"x-try", b"failed"), NO_RETRY]


async def test_methods_that_do_not_declare_it_are_not_retried(unsafe):
    script = Script(Unavailable("1"))
    with pytest.raises(Unavailable):
        await chain(retry(FAST), script)(Outgoing(unsafe, b"request"))
    assert len(script.seen) == 1


@pytest.mark.parametrize("failure", [NotFound("x"), StatusError.of(4), (PUSHBACK, b"-1")])
async def test_failures_that_are_final(method, failure):
    script = Script(failure)
    with pytest.raises(StatusError):
        await chain(retry(FAST), script)(Outgoing(method, b"request"))
    assert len(script.seen) == 1


async def test_nothing_is_retried_once_the_caller_has_seen_something(method):
    for before in (lambda call: call.send_headers(), lambda call: call.send(b"first")):
        script = Script(Unavailable("1"), before=before)
        with pytest.raises(Unavailable):
            await chain(retry(FAST), script)(Outgoing(method, b"request"))
        assert len(script.seen) == 1


async def test_a_request_stream_that_was_begun_is_not_replayed(contract):
    from dataclasses import replace

    method = replace(contract.method("/conformance.v1.Echo/ClientStream"), idempotent=True)
    script = Script(Unavailable("1"))
    with pytest.raises(Unavailable):
        await chain(retry(FAST), script)(Outgoing(method, b"1", b"2"))
    assert len(script.seen) == 1


async def test_retries_keep_within_the_deadline(method):
    loop = asyncio.get_running_loop()
    script = Script(Unavailable("1"))
    with pytest.raises(Unavailable):
        await chain(retry(RetryPolicy(base_delay=60, max_delay=60)), script)(
            Outgoing(method, b"x", deadline=loop.time() + 5)
        )
    assert len(script.seen) == 1


async def test_calls_on_behalf_of_a_retry_are_not_retried_and_say_so(method, unsafe):
    inbound = Outgoing(method)
    inbound.metadata.append(ATTEMPTS, b"2")
    token = current.set(inbound)
    try:
        for called in (method, unsafe):
            script = Script(Unavailable("1"))
            call = Outgoing(called, b"request")
            with pytest.raises(Unavailable):
                await chain(retry(FAST), script)(call)
            assert is_retry(call)
            assert script.attempts == [None]
            assert NO_RETRY not in call.trailers, "the level that retries must go on"
    finally:
        current.reset(token)


async def test_a_target_that_fails_all_calls_is_soon_asked_once_for_each(method):
    layer = retry(FAST)
    attempts = []
    for _ in range(200):
        script = Script(*[Unavailable("down")] * 9)
        with pytest.raises(Unavailable):
            await chain(layer, script)(Outgoing(method, b"x"))
        attempts.append(len(script.seen))
    assert attempts[0] == FAST.max_attempts
    assert attempts[-1] == 1
    assert sum(attempts) < 600

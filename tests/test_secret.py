"""A secret is shown by nothing, and its text is there for who asks for it."""

from __future__ import annotations

import copy
import json
import logging
import pickle

import pytest

from mesh import Secret

TEXT = "correct horse battery"


def test_no_way_of_showing_it_shows_it(caplog: pytest.LogCaptureFixture) -> None:
    secret = Secret(TEXT)
    logging.getLogger("x").warning("%s %r %s", secret, secret, {"password": secret})
    shown = [
        str(secret), repr(secret), f"{secret:>10}", f"{secret!a}", "%s" % secret, json.dumps([secret], default=str),  # noqa: UP031 - the way under test
        repr([secret]), caplog.text, pickle.dumps(secret).decode("latin-1"), repr(pickle.loads(pickle.dumps(secret))),  # noqa: S301 - our own
    ]  # fmt: skip
    assert [one for one in shown if "horse" in one] == []
    assert str(secret) == "***"
    assert f"{secret:>5}" == "  ***"


def test_its_text_is_revealed_to_who_asks() -> None:
    assert Secret(TEXT).reveal() == TEXT
    assert copy.deepcopy({"a": Secret(TEXT)})["a"].reveal() == TEXT
    assert pickle.loads(pickle.dumps(Secret(TEXT))).reveal() == "***"  # noqa: S301 - our own


def test_secrets_compare_with_secrets_only() -> None:
    assert Secret(TEXT) == Secret(TEXT)
    assert hash(Secret(TEXT)) == hash(Secret(TEXT))
    assert Secret("ä") != Secret("a")
    assert Secret(TEXT) != TEXT
    assert not Secret("")
    assert Secret(TEXT)

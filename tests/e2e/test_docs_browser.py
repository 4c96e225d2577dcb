"""The page ``/docs`` in a browser, against the running sample mesh."""

from __future__ import annotations

import json
import secrets
from typing import Any

import pytest
from browser import chromium as chromium  # noqa: PLC0414 - a fixture
from mesh_process import Mesh
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

TIMEOUT = 20


class Docs:
    """The page, as a person uses it."""

    def __init__(self, driver: Chrome, edge: str) -> None:
        self.driver = driver
        self.edge = edge
        driver.get("about:blank")
        driver.get(f"{edge}/docs")
        self.all("nav li a")

    def all(self, selector: str) -> list[WebElement]:
        """Return what is there once anything is."""
        found: list[WebElement] = WebDriverWait(self.driver, TIMEOUT).until(
            lambda driver: driver.find_elements(By.CSS_SELECTOR, selector)
        )
        return found

    def open(self, operation: str) -> None:
        """Open an operation by its link."""
        self.all(f'nav a[href="#{operation}"]')[0].click()
        self.all(f'nav a[href="#{operation}"][aria-current]')

    def fill(self, selector: str, text: str) -> None:
        """Put text into a field in place of what stands there."""
        field = self.all(selector)[0]
        field.clear()
        field.send_keys(text)

    def send(self) -> tuple[int, Any]:
        """Press the button; return status and JSON of the response."""
        self.driver.execute_script("document.querySelector('.result').replaceChildren()")
        self.all(".try button[type=submit]")[0].click()
        status = self.all(".result [data-status]")[0].get_attribute("data-status")
        WebDriverWait(self.driver, TIMEOUT).until(
            lambda driver: not driver.find_elements(By.CSS_SELECTOR, ".result[aria-busy]")
        )
        return int(status or 0), json.loads(self.all(".result .body")[0].text)


@pytest.fixture
def docs(chromium: Chrome, mesh: Mesh) -> Docs:
    chromium.get_log("browser")  # what others left
    return Docs(chromium, mesh.edge)


def test_it_lists_every_operation(docs: Docs) -> None:
    paths = [one.text for one in docs.all("nav li .path")]
    assert len(paths) == 19
    assert "/v1/users/{id}" in paths
    assert docs.driver.title == "Mesh"
    assert "Passwords, sessions" in docs.all("main")[0].text


def test_search(docs: Docs) -> None:
    docs.fill("#search", "delete users")
    shown = [one.text for one in docs.all("nav li") if one.is_displayed()]
    assert shown == ["DEL\n/v1/users/{id}", "DEL\n/v1/users/{id}/roles/{role}"]
    docs.fill("#search", "no such thing")
    assert docs.all("#none")[0].is_displayed()


def test_it_shows_what_the_contract_says(docs: Docs) -> None:
    docs.open("Registration_Register")
    text = docs.all("main")[0].text
    for said in ("Creates an account", "ALREADY_EXISTS names the field", "8 to 128 characters", "required", "409"):
        assert said in text


def test_it_tries_operations_with_and_without_a_token(docs: Docs) -> None:
    name = f"eve{secrets.token_hex(4)}"
    docs.fill("#token", "")
    docs.open("Registration_Register")
    docs.fill("#body", json.dumps({"name": name, "email": f"{name}@example.com", "password": "long enough"}))
    status, user = docs.send()
    assert (status // 100, user["name"]) == (2, name)
    trace = docs.all(".result .trace")[0].text
    assert len(trace) == 32

    docs.open("Registration_GetUser")
    docs.fill("#parameter-path-id", "me")
    status, refusal = docs.send()
    assert (status, refusal["code"]) == (401, 16)

    docs.open("Login_Login")
    docs.fill("#body", json.dumps({"login": name, "password": "long enough"}))
    status, tokens = docs.send()
    assert status == 200

    docs.fill("#token", tokens["accessToken"])
    docs.open("Registration_GetUser")
    docs.fill("#parameter-path-id", "me")
    status, found = docs.send()
    assert (status, found["id"]) == (200, user["id"])

    docs.open("Registration_DeleteUser")
    docs.fill("#parameter-path-id", user["id"])
    assert docs.send() == (200, {})


def test_the_example_of_a_body_is_what_the_schema_says(docs: Docs) -> None:
    docs.open("Registration_UpdateUser")
    body = docs.driver.execute_script("return document.querySelector('#body').value")
    assert json.loads(body) == {"name": "", "email": ""}  # the rest is the server's


def test_light_and_dark(docs: Docs) -> None:
    def background() -> str:
        found: str = docs.driver.execute_script("return getComputedStyle(document.body).backgroundColor")
        return found

    before = background()
    docs.all("#theme")[0].click()
    assert background() != before
    docs.all("#theme")[0].click()
    assert background() == before


def test_it_asks_nobody_else_and_breaks_no_rule_of_its_policy(docs: Docs) -> None:
    docs.open("Registration_ListUsers")
    asked = docs.driver.execute_script("return performance.getEntriesByType('resource').map((one) => one.name)")
    assert asked
    assert all(one.startswith(docs.edge) for one in asked)
    assert [one for one in docs.driver.get_log("browser") if one["level"] == "SEVERE"] == []


def test_every_field_has_a_label(docs: Docs) -> None:
    docs.open("Registration_UpdateUser")
    unlabelled = docs.driver.execute_script(
        "return [...document.querySelectorAll('input, select, textarea')].filter((one) => !one.labels.length).length"
    )
    assert unlabelled == 0

"""The sample mesh as its users meet it: over HTTP and over plain gRPC."""

from __future__ import annotations

import itertools
from typing import Any

import grpc
import pytest
from mesh_process import Answer, Mesh, http

numbers = itertools.count()
PASSWORD = "correct horse battery"


class User:
    """A registered user."""

    def __init__(self, mesh: Mesh) -> None:
        self.name = f"user{next(numbers)}"
        self.email = f"{self.name}@example.com"
        self.answer = http(f"{mesh.edge}/v1/users", "POST", self.body())
        assert self.answer.status == 200, self.answer
        self.id = self.answer.json["id"]
        self.token = login(mesh, self.name).json["accessToken"]

    def body(self, **other: str) -> dict[str, str]:
        return {"name": self.name, "email": self.email, "password": PASSWORD, **other}


def login(mesh: Mesh, name: str, password: str = PASSWORD) -> Answer:
    return http(f"{mesh.edge}/v1/sessions", "POST", {"login": name, "password": password})


@pytest.fixture(scope="module")
def user(mesh: Mesh) -> User:
    return User(mesh)


@pytest.fixture(scope="module")
def admin(mesh: Mesh) -> str:
    token: str = login(mesh, "admin", "admin's own password").json["accessToken"]
    return token


def test_register_log_in_and_see_oneself(mesh: Mesh, user: User) -> None:
    me = http(f"{mesh.edge}/v1/users/me", token=user.token)
    assert me.status == 200
    assert (me.json["id"], me.json["name"], me.json["email"]) == (user.id, user.name, user.email)
    assert me.headers["x-trace-id"]
    assert login(mesh, user.email.upper()).status == 200


def test_the_same_by_the_connect_protocol(mesh: Mesh, user: User) -> None:
    session = http(f"{mesh.edge}/login.v1.Login/Login", "POST", {"login": user.name, "password": PASSWORD})
    assert session.status == 200
    me = http(f"{mesh.edge}/registration.v1.Registration/GetUser", "POST", {"id": "me"}, token=user.token)
    assert (me.status, me.json["name"]) == (200, user.name)
    query = "connect=v1&encoding=json&message=%7B%22id%22:%22me%22%7D"
    assert http(f"{mesh.edge}/registration.v1.Registration/GetUser?{query}", token=user.token).json == me.json
    wrong = http(f"{mesh.edge}/login.v1.Login/Login", "POST", {"login": user.name, "password": "wrong password"})
    assert (wrong.status, wrong.json["code"]) == (401, "unauthenticated")


def violations(answer: Answer) -> dict[str, str]:
    return {
        found["field"]: found["description"]
        for detail in answer.json["details"]
        for found in detail.get("fieldViolations", ())
    }


class TestWrongInput:
    """Each body tells the caller what to do."""

    def test_wrong_password_and_unknown_user_are_the_same(self, mesh: Mesh, user: User) -> None:
        wrong, unknown = login(mesh, user.name, "wrong password"), login(mesh, "nobody-at-all", "wrong password")
        assert (wrong.status, wrong.body) == (401, unknown.body)
        assert wrong.json["code"] == 16

    def test_taken_name_and_taken_address(self, mesh: Mesh, user: User) -> None:
        taken = http(f"{mesh.edge}/v1/users", "POST", user.body(name=user.name.upper(), email="other@example.com"))
        assert (taken.status, taken.json["code"]) == (409, 6)
        assert "name" in taken.json["message"]
        taken = http(f"{mesh.edge}/v1/users", "POST", user.body(name="somebody-else", email=user.email.upper()))
        assert taken.status == 409
        assert "mail" in taken.json["message"]

    def test_bad_json_says_where(self, mesh: Mesh) -> None:
        answer = http(f"{mesh.edge}/v1/users", "POST", b'{"name": "x",\n oops}')
        assert answer.status == 400
        assert "line 2" in answer.json["message"]

    def test_an_unknown_field_is_named(self, mesh: Mesh) -> None:
        answer = http(f"{mesh.edge}/v1/users", "POST", {"nickname": "x"})
        assert answer.status == 400
        assert "nickname" in str(answer.json)

    def test_each_wrong_field_is_named(self, mesh: Mesh) -> None:
        answer = http(f"{mesh.edge}/v1/users", "POST", {"name": "1", "email": "nope", "password": "short"})
        assert answer.status == 400
        assert set(violations(answer)) == {"name", "email", "password"}

    def test_no_token(self, mesh: Mesh) -> None:
        answer = http(f"{mesh.edge}/v1/users/me")
        assert answer.status == 401
        assert answer.headers["www-authenticate"].startswith("Bearer")
        assert "authorization: Bearer" in answer.json["message"]

    def test_a_token_of_nobody(self, mesh: Mesh) -> None:
        answer = http(f"{mesh.edge}/v1/users/me", token="e30.e30.e30")
        assert answer.status == 401

    def test_another_users_account(self, mesh: Mesh, user: User) -> None:
        other = User(mesh)
        answer = http(f"{mesh.edge}/v1/users/{user.id}", token=other.token)
        assert (answer.status, answer.json["code"]) == (403, 7)

    def test_a_list_that_is_for_admins(self, mesh: Mesh, user: User, admin: str) -> None:
        assert http(f"{mesh.edge}/v1/users", token=user.token).status == 403
        listed = http(f"{mesh.edge}/v1/users?pageSize=1", token=admin)
        assert listed.status == 200
        assert len(listed.json["users"]) == 1
        assert listed.json["nextPageToken"]

    @pytest.mark.parametrize(
        ("method", "path", "status", "allowed"),
        [
            ("GET", "/nope", 404, set()),
            ("DELETE", "/v1/users", 405, {"GET", "POST"}),
            ("GET", "/registration.v1.Registration/Register", 405, {"POST"}),
        ],
    )
    def test_an_unknown_route(self, mesh: Mesh, method: str, path: str, status: int, allowed: set[str]) -> None:
        answer = http(f"{mesh.edge}{path}", method)
        assert answer.status == status
        assert answer.json["message"]
        if status == 405:
            assert set(answer.headers["allow"].replace(" ", "").split(",")) >= allowed

    def test_another_media_type(self, mesh: Mesh) -> None:
        answer = http(f"{mesh.edge}/v1/users", "POST", b"<xml/>", headers={"Content-type": "text/xml"})
        assert answer.status == 415

    def test_a_body_that_is_too_large(self, mesh: Mesh) -> None:
        answer = http(f"{mesh.edge}/v1/users", "POST", b'{"name": "' + b"x" * (5 * 2**20) + b'"}')
        assert answer.status == 413


def test_update_and_delete(mesh: Mesh, admin: str) -> None:
    user = User(mesh)
    path = f"{mesh.edge}/v1/users/{user.id}?updateMask=name"
    renamed = http(path, "PATCH", {"name": f"{user.name}-new", "email": "ignored@example.com"}, token=user.token)
    assert renamed.status == 200, renamed
    assert (renamed.json["name"], renamed.json["email"]) == (f"{user.name}-new", user.email)
    assert login(mesh, user.name).status == 401
    assert login(mesh, f"{user.name}-new").status == 200
    assert http(f"{mesh.edge}/v1/users/{user.id}", "DELETE", token=admin).status == 200
    assert login(mesh, f"{user.name}-new").status == 401
    assert http(f"{mesh.edge}/v1/users/{user.id}", token=admin).status == 404


def test_refresh_rotates_and_reuse_ends_the_session(mesh: Mesh, user: User) -> None:
    first = login(mesh, user.name).json
    path = f"{mesh.edge}/v1/sessions:refresh"
    second = http(path, "POST", {"refreshToken": first["refreshToken"]})
    assert second.status == 200
    assert http(path, "POST", {"refreshToken": first["refreshToken"]}).status == 401
    assert http(path, "POST", {"refreshToken": second.json["refreshToken"]}).status == 401


def test_the_keys_are_a_jwk_set(mesh: Mesh) -> None:
    keys = http(f"{mesh.edge}/.well-known/jwks.json").json["keys"]
    assert keys
    assert {(key["kty"], key["crv"], key["alg"]) for key in keys} == {("OKP", "Ed25519", "EdDSA")}
    assert not any("d" in key for key in keys)


class TestPlainGrpc:
    """The sidecars by a stock client."""

    @pytest.fixture
    def stubs(self) -> Any:
        import login.v1.login_pb2_grpc as login_grpc
        import registration.v1.registration_pb2_grpc as registration_grpc

        return login_grpc, registration_grpc

    async def test_register_and_log_in(self, mesh: Mesh, stubs: Any) -> None:
        login_grpc, registration_grpc = stubs
        from login.v1 import login_pb2
        from registration.v1 import registration_pb2

        async with (
            grpc.aio.insecure_channel(mesh.addresses["registration"]) as to_registration,
            grpc.aio.insecure_channel(mesh.addresses["login"]) as to_login,
        ):
            registration = registration_grpc.RegistrationStub(to_registration)
            name = f"grpc{next(numbers)}"
            made = await registration.Register(
                registration_pb2.RegisterRequest(name=name, email=f"{name}@example.com", password=PASSWORD), timeout=20
            )
            session = await login_grpc.LoginStub(to_login).Login(
                login_pb2.LoginRequest(login=name, password=PASSWORD), timeout=20
            )
            me = await registration.GetUser(
                registration_pb2.GetUserRequest(id="me"),
                metadata=[("authorization", f"Bearer {session.access_token}")],
                timeout=20,
            )
            assert me.id == made.id
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await registration.GetUser(registration_pb2.GetUserRequest(id="me"), timeout=20)
            assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED

    async def test_an_internal_method_is_for_services_only(self, mesh: Mesh, stubs: Any, admin: str) -> None:
        login_grpc, _ = stubs
        from login.v1 import login_pb2

        async with grpc.aio.insecure_channel(mesh.addresses["login"]) as channel:
            for metadata in ([], [("authorization", f"Bearer {admin}")]):
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await login_grpc.LoginStub(channel).SetCredential(
                        login_pb2.SetCredentialRequest(), metadata=metadata, timeout=20
                    )
                assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED


class TestOwnSessions:
    """Sessions, passwords and guesses over HTTP."""

    def test_sessions_are_listed_and_ended(self, mesh: Mesh) -> None:
        user = User(mesh)
        there = login(mesh, user.name).json
        listed = http(f"{mesh.edge}/v1/sessions", token=user.token).json["sessions"]
        assert sum(session.get("current", False) for session in listed) == 1
        other = next(session["id"] for session in listed if not session.get("current"))
        assert http(f"{mesh.edge}/v1/sessions/{other}", "DELETE", token=user.token).status == 200
        refresh = f"{mesh.edge}/v1/sessions:refresh"
        assert http(refresh, "POST", {"refreshToken": there["refreshToken"]}).status == 401
        assert http(f"{mesh.edge}/v1/sessions", "DELETE", token=user.token).status == 200
        assert http(f"{mesh.edge}/v1/sessions", token=user.token).json.get("sessions", []) == []

    def test_a_password_is_changed_with_the_current_one(self, mesh: Mesh) -> None:
        user = User(mesh)
        path, new = f"{mesh.edge}/v1/password:change", "battery staple"
        assert http(path, "POST", {"currentPassword": "?", "newPassword": new}, token=user.token).status == 403
        assert http(path, "POST", {"currentPassword": PASSWORD, "newPassword": new}, token=user.token).status == 200
        assert (login(mesh, user.name).status, login(mesh, user.name, new).status) == (401, 200)

    def test_guesses_are_locked_out_the_same_for_everybody(self, mesh: Mesh) -> None:
        answers = []
        for name in (User(mesh).name, "nobody-with-this-name"):
            statuses = []
            while 429 not in statuses:
                answer = login(mesh, name, "wrong password")
                statuses.append(answer.status)
                assert len(statuses) < 30
            assert statuses.count(401) >= 5
            answers.append((answer.json["code"], answer.json["message"], "retry-after" in answer.headers))
        assert answers[0] == answers[1]
        assert answers[0][2]

    def test_roles_are_granted_and_revoked_by_admins_only(self, mesh: Mesh, admin: str) -> None:
        user = User(mesh)
        path = f"{mesh.edge}/v1/users/{user.id}/roles/admin"
        assert http(path, "PUT", token=user.token).status == 403
        assert http(path, "PUT", token=admin).json["roles"] == ["admin"]
        mesh.until(
            lambda: http(f"{mesh.edge}/v1/users", token=login(mesh, user.name).json["accessToken"]).status == 200
        )
        assert http(path, "DELETE", token=admin).json.get("roles", []) == []
        mesh.until(
            lambda: http(f"{mesh.edge}/v1/users", token=login(mesh, user.name).json["accessToken"]).status == 403
        )

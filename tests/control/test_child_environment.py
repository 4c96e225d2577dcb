"""Each child of `mesh up` gets the variables that it needs, and no secrets of the others."""

from __future__ import annotations

from mesh.control.supervise import child_environment

SERVICES = ("login", "login-audit", "orders")
ENVIRON = {
    "PATH": "/bin",
    "LC_ALL": "C.UTF-8",
    "AWS_REGION": "eu-central-1",
    "OTEL_EXPORTER_OTLP_HEADERS": "key=secret",
    "MESH_BROKER": "nats://user:password@host:4222",
    "MESH_EVENTS_PASSWORD": "broker's",
    "MESH_EDGE_LISTEN": "127.0.0.1:8080",
    "MESH_SERVICES_LOGIN_ADDRESS": "login:9102",
    "MESH_SERVICES_LOGIN_DATABASE": "postgresql://login:password@host/login",
    "MESH_SERVICES_LOGIN_SETTINGS_KEY": "login's",
    "MESH_SERVICES_LOGIN_AUDIT_DATABASE": "postgresql://audit:password@host/audit",
    "MESH_SERVICES_LOGIN_AUDIT_ENVIRONMENT_TOKEN": "audit's",
    "MESH_SERVICES_ORDERS_SETTINGS": "{}",
}
SHARED = {name: value for name, value in ENVIRON.items() if not name.startswith("MESH_SERVICES_")} | {
    "MESH_SERVICES_LOGIN_ADDRESS": "login:9102"
}


def test_a_service_gets_its_own_private_values_and_not_those_of_others() -> None:
    assert child_environment.for_service(ENVIRON, "login", SERVICES) == SHARED | {
        "MESH_SERVICES_LOGIN_DATABASE": "postgresql://login:password@host/login",
        "MESH_SERVICES_LOGIN_SETTINGS_KEY": "login's",
    }


def test_the_longest_name_owns_a_variable() -> None:
    assert child_environment.for_service(ENVIRON, "login-audit", SERVICES) == SHARED | {
        "MESH_SERVICES_LOGIN_AUDIT_DATABASE": "postgresql://audit:password@host/audit",
        "MESH_SERVICES_LOGIN_AUDIT_ENVIRONMENT_TOKEN": "audit's",
    }


def test_the_edge_gets_no_private_value_and_no_access_to_the_broker() -> None:
    brokers = ("MESH_BROKER", "MESH_EVENTS_PASSWORD")
    assert child_environment.for_edge(ENVIRON, SERVICES) == {
        name: value for name, value in SHARED.items() if name not in brokers
    }


def test_the_broker_gets_what_any_program_needs() -> None:
    assert child_environment.for_broker(ENVIRON) == {"PATH": "/bin", "LC_ALL": "C.UTF-8"}

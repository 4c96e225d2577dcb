"""Direct invocation: a stock gRPC client calls ``functions.v1.Hello/Invoke`` of a sidecar."""

from __future__ import annotations

import importlib
import json
import logging
import os
from base64 import b64encode
from datetime import datetime
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import json_format
from google.protobuf.struct_pb2 import Value
from google.rpc import status_pb2
from lambda_project import Project, served

from mesh.call import Identity
from mesh.chaos.endings.ways import CANCELLATIONS
from mesh.control.project import load
from mesh.faults import Faults


async def invoke(address: str, event: Any, seconds: float = 10, metadata: Any = ()) -> Any:
    async with grpc.aio.insecure_channel(address) as channel:
        call = channel.unary_unary(
            "/functions.v1.Hello/Invoke",
            request_serializer=Value.SerializeToString,
            response_deserializer=Value.FromString,
        )
        message = json_format.ParseDict(event, Value())
        return json_format.MessageToDict(await call(message, timeout=seconds, metadata=metadata))


async def failure(address: str, event: Any, **options: Any) -> tuple[grpc.StatusCode, str, list[Any]]:
    """Return code, message and details of an invocation that fails."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await invoke(address, event, **options)
    trailers: dict[str, Any] = dict(caught.value.trailing_metadata() or ())
    status = status_pb2.Status.FromString(trailers.get("grpc-status-details-bin", b""))
    details = [json_format.MessageToDict(detail) for detail in status.details]
    return caught.value.code(), caught.value.details() or "", details


HELLO = """
    import json

    def handler(event, context):
        return {"statusCode": 200, "body": json.dumps("Hello from Lambda!"), "event": event}
"""


@pytest.mark.parametrize("kind", ["def", "async def"])
async def test_any_event_and_any_result(tmp_path: Path, kind: str) -> None:
    project = Project(tmp_path, HELLO.replace("def", kind))
    async with served(project) as address:
        for event in ({"name": "Ada", "n": 1, "deep": [{"a": [None, True, 1.5]}]}, "text", 7, [1, 2], None, {}):
            result = await invoke(address, event)
            assert result["event"] == event
            assert json.loads(result["body"]) == "Hello from Lambda!"


async def test_a_generated_stub_invokes_it(tmp_path: Path) -> None:
    project = Project(tmp_path, HELLO)
    load(project.manifest.file)
    stubs = importlib.import_module("functions.v1.hello_pb2_grpc")
    async with served(project) as address, grpc.aio.insecure_channel(address) as channel:
        result = await stubs.HelloStub(channel).Invoke(Value(string_value="event"), timeout=10)
    assert result.struct_value.fields["event"].string_value == "event"


async def test_a_whole_number_is_an_int_for_the_handler(tmp_path: Path) -> None:
    project = Project(tmp_path, "def handler(event, context): return [type(one).__name__ for one in event]")
    async with served(project) as address:
        assert await invoke(address, [1, 1.5, True, "a"]) == ["int", "float", "bool", "str"]


async def test_globals_live_on_and_the_module_runs_once(tmp_path: Path) -> None:
    code = """
        from pathlib import Path
        with Path(__file__).with_suffix(".runs").open("a") as runs:
            runs.write("x")
        count = 0

        def handler(event, context):
            global count
            count += 1
            return count
    """
    project = Project(tmp_path, code)
    async with served(project) as address:
        assert [await invoke(address, {}) for _ in range(3)] == [1, 2, 3]
    assert (tmp_path / f"{project.module}.runs").read_text() == "x"


async def test_the_context_is_lambdas(tmp_path: Path) -> None:
    code = """
        import os

        def handler(event, context):
            return {
                "name": context.function_name, "version": context.function_version,
                "memory": context.memory_limit_in_mb, "arn": context.invoked_function_arn,
                "group": context.log_group_name, "stream": context.log_stream_name, "id": context.aws_request_id,
                "left": context.get_remaining_time_in_millis(), "identity": context.identity.cognito_identity_id,
                "custom": context.client_context and context.client_context.custom,
                "app": context.client_context and context.client_context.client.app_title,
                "env": {name: os.environ.get(name) for name in event},
            }
    """
    names = ["AWS_LAMBDA_FUNCTION_NAME", "AWS_REGION", "_HANDLER", "LAMBDA_TASK_ROOT", "TABLE", "AWS_EXECUTION_ENV"]
    project = Project(tmp_path, code, 'timeout = "5s"\nmemory = "256MB"\nenvironment = { TABLE = "users" }')
    client = b64encode(json.dumps({"custom": {"a": 1}, "client": {"app_title": "shop"}}).encode()).decode()
    async with served(project) as address:
        one = await invoke(address, names, metadata=[("x-amz-client-context", client)])
        two = await invoke(address, names, seconds=2)
    assert (one["name"], one["version"], one["memory"]) == ("hello", "$LATEST", "256")
    assert one["arn"] == "arn:aws:lambda:us-east-1:000000000000:function:hello"
    assert (one["group"], one["stream"]) == ("/aws/lambda/hello", two["stream"])
    assert "/[$LATEST]" in one["stream"]
    assert one["id"] != two["id"]
    assert len(one["id"]) == 36
    assert 4000 < one["left"] <= 5000
    assert two["left"] <= 2010  # the caller waits no longer; gRPC core writes timeouts in steps of 10 ms, rounded up
    assert (one["identity"], one["custom"], one["app"], two["custom"]) == (None, {"a": 1}, "shop", None)
    assert one["env"] == {
        "AWS_LAMBDA_FUNCTION_NAME": "hello", "AWS_REGION": "us-east-1", "_HANDLER": f"{project.module}.handler",
        "LAMBDA_TASK_ROOT": str(tmp_path), "TABLE": "users", "AWS_EXECUTION_ENV": one["env"]["AWS_EXECUTION_ENV"],
    }  # fmt: skip
    assert one["env"]["AWS_EXECUTION_ENV"].startswith("AWS_Lambda_python3.")
    assert os.environ["TABLE"] == "users"


async def test_a_module_beside_the_handler_is_found(tmp_path: Path) -> None:
    (tmp_path / "beside_it.py").write_text("TEXT = 'found'")
    project = Project(tmp_path, "def handler(event, context):\n    import beside_it\n    return beside_it.TEXT")
    async with served(project) as address:
        assert await invoke(address, {}) == "found"


@pytest.mark.parametrize("kind", ["def", "async def"])
async def test_an_exception_is_lambdas_error_object(tmp_path: Path, kind: str) -> None:
    code = f"""
        class TooMany(Exception):
            pass

        def inner():
            raise TooMany("only 3 are left")

        {kind} handler(event, context):
            inner()
    """
    async with served(Project(tmp_path, code)) as address:
        code_, text, details = await failure(address, {})
    assert (code_, text) == (grpc.StatusCode.INTERNAL, "TooMany: only 3 are left")
    mark, body = details[0], details[1]["value"]
    assert (mark["reason"], mark["domain"]) == ("Unhandled", "lambda")
    assert (body["errorMessage"], body["errorType"]) == ("only 3 are left", "TooMany")
    assert body["requestId"] == mark["metadata"]["requestId"]
    assert ["handler" in body["stackTrace"][0], "inner" in body["stackTrace"][1]] == [True, True]
    assert len(body["stackTrace"]) == 2  # of the handler's code alone


async def test_outside_of_the_mesh_nothing_is_told(tmp_path: Path) -> None:
    project = Project(tmp_path, "def handler(event, context): raise ValueError('the password is 1234')")
    async with served(project, caller="edge") as address:
        code, text, details = await failure(address, {})
    assert (code, text) == (grpc.StatusCode.INTERNAL, "the function failed")
    assert "1234" not in str(details)
    assert [detail["@type"].rpartition(".")[2] for detail in details] == ["ErrorInfo"]


async def test_a_long_trace_loses_its_outermost_frames(tmp_path: Path) -> None:
    code = """
        def deep(n):
            if n == 0:
                raise ValueError("x" * 5000)
            deep(n - 1)

        def handler(event, context):
            deep(200)
    """
    async with served(Project(tmp_path, code)) as address:
        _, text, details = await failure(address, {})
    body = details[1]["value"]
    assert len(text) <= 800
    assert len(body["errorMessage"]) == 800
    assert 'raise ValueError("x" * 5000)' in body["stackTrace"][-1]


async def test_a_result_that_is_no_json(tmp_path: Path) -> None:
    async with served(Project(tmp_path, "def handler(event, context): return {1, 2}")) as address:
        code, text, details = await failure(address, {})
    assert code is grpc.StatusCode.INTERNAL
    assert "Unable to marshal response: Object of type set is not JSON serializable" in text
    assert details[1]["value"]["errorType"] == "Runtime.MarshalError"


@pytest.mark.parametrize("kind", ["def", "async def"])
async def test_an_exit_ends_the_invocation_and_nothing_else(tmp_path: Path, kind: str) -> None:
    code = f"import sys\n{kind} handler(event, context):\n    if event: sys.exit(3)\n    return 'well'"
    async with served(Project(tmp_path, code)) as address:
        _, text, details = await failure(address, {"exit": True})
        assert text.endswith("Runtime exited: 3")
        assert details[1]["value"]["errorType"] == "Runtime.ExitError"
        assert await invoke(address, {}) == "well"


ENDS = """
    from mesh.chaos.endings import ways

    class Odd:
        def _asdict(self):
            raise ways.Panic("while it is written")

    {kind} handler(event, context):
        if event == "odd result":
            return Odd()
        {end}(event)
        return "well"
"""


@pytest.mark.parametrize("kind", ["def", "async def"])
async def test_whatever_a_handler_raises_is_its_failure(tmp_path: Path, kind: str) -> None:
    end = "ways.end" if kind == "def" else "await ways.end_anywhere"
    kinds = {
        "exit": "Runtime.ExitError", "interrupt": "KeyboardInterrupt", "generator exit": "GeneratorExit",
        "panic": "Panic", "group with a panic": "BaseExceptionGroup", "unprintable": "UnprintableError",
        "odd result": "Runtime.MarshalError",
    }  # fmt: skip
    async with served(Project(tmp_path, ENDS.format(kind=kind, end=end))) as address:
        for how, expected in kinds.items():
            code, _, details = await failure(address, how)
            body = details[1]["value"]
            assert (how, code, body["errorType"]) == (how, grpc.StatusCode.INTERNAL, expected)
            assert "boundary.py" not in str(body["stackTrace"])
        for how in CANCELLATIONS:
            code, _, details = await failure(address, how)
            body = details[1]["value"]
            assert (how, code, body["errorType"]) == (how, grpc.StatusCode.CANCELLED, "CancelledError")
        assert await invoke(address, "well") == "well"


@pytest.mark.parametrize(
    "code",
    [
        "import threading\ndone = threading.Event()\ndef handler(event, context): done.wait(5)",
        "import asyncio\nasync def handler(event, context): await asyncio.Event().wait()",
    ],
)
async def test_a_time_out_is_lambdas(tmp_path: Path, code: str) -> None:
    project = Project(tmp_path, code, 'timeout = "200ms"')
    async with served(project) as address:
        status, text, details = await failure(address, {})
    assert (status, text) == (grpc.StatusCode.DEADLINE_EXCEEDED, "Task timed out after 0.20 seconds")
    body = details[1]["value"]
    assert body["errorType"] == "Sandbox.Timedout"
    assert body["errorMessage"].endswith("Error: Task timed out after 0.20 seconds")
    if "done" in code:
        __import__(project.module).done.set()


async def test_a_time_out_that_the_handler_raises_is_its_own(tmp_path: Path) -> None:
    project = Project(tmp_path, "def handler(event, context): raise TimeoutError('of a socket')")
    async with served(project) as address:
        status, text, _ = await failure(address, {})
    assert (status, text) == (grpc.StatusCode.INTERNAL, "TimeoutError: of a socket")


async def test_a_callers_deadline_is_kept(tmp_path: Path) -> None:
    code = "import asyncio\nasync def handler(event, context): await asyncio.Event().wait()"
    async with served(Project(tmp_path, code, 'timeout = "60s"')) as address:
        status, _, _ = await failure(address, {}, seconds=0.2)
    assert status is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_what_is_no_value_is_refused(tmp_path: Path) -> None:
    async with (
        served(Project(tmp_path, HELLO)) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary("/functions.v1.Hello/Invoke")(b"\xff\xff", timeout=10)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


FORGED = {"version": "1.0", "requestContext": {"authorizer": {"claims": {"sub": "root"}}}, "headers": {"a": "b"}}


async def test_nobody_makes_up_a_user(tmp_path: Path) -> None:
    project = Project(tmp_path, "def handler(event, context): return event['requestContext'].get('authorizer')")
    async with served(project) as address:
        assert await invoke(address, FORGED) is None
    claims = {"sub": "ada", "exp": 7, "roles": ["admin", "user"], "ok": True, "scope": "a b"}
    async with served(project, identity=Identity("ada", frozenset(), claims)) as address:
        told = await invoke(address, FORGED)
        assert told["claims"] == {"sub": "ada", "exp": "7", "roles": "[admin user]", "ok": "true", "scope": "a b"}
        assert (told["scopes"], told["principalId"]) == (["a", "b"], "ada")
        second = await invoke(address, {**FORGED, "version": "2.0"})
        assert second == {"jwt": {"claims": told["claims"], "scopes": ["a", "b"]}}
    async with served(project, caller="billing") as address:  # a service of the mesh may speak for a user
        assert await invoke(address, FORGED) == FORGED["requestContext"]["authorizer"]


async def test_a_schedule_invokes_it_too(tmp_path: Path) -> None:
    code = "seen = []\ndef handler(event, context): seen.append(event)"
    project = Project(tmp_path, code, 'schedule = "@every 1h"')
    service = project.contract.services["functions.v1.Hello"]
    assert [str(trigger) for trigger in service.methods["OnSchedule"].triggers] == ["schedule @every 1h"]
    assert service.methods["OnSchedule"].access.value == "internal"
    tick = project.contract.message("meshapi.v1.Tick")(time={"seconds": 1795305600}, schedule="@every 1h")
    async with served(project, caller="broker") as address, grpc.aio.insecure_channel(address) as channel:
        assert await channel.unary_unary("/functions.v1.Hello/OnSchedule")(tick.SerializeToString(), timeout=10) == b""
    [event] = __import__(project.module).seen
    assert (event["detail-type"], event["source"], event["detail"]) == ("Scheduled Event", "aws.events", {})
    assert (event["time"], event["resources"]) == ("2026-11-22T00:00:00Z", ["@every 1h"])


CALENDAR = """syntax = "proto3";
package calendar.v1;
import "meshapi/v1/annotations.proto";
message Schedule { option (meshapi.v1.event) = {}; string room = 1; }
"""


async def test_an_event_named_schedule_is_no_schedule(tmp_path: Path) -> None:
    code = "seen = []\ndef handler(event, context): seen.append(event)"
    documents = {"protos/calendar.proto": CALENDAR}
    project = Project(tmp_path, code, 'subscribes = ["calendar.v1.Schedule"]', documents)
    message = project.contract.message("calendar.v1.Schedule")(room="42").SerializeToString()
    async with served(project, caller="broker") as address, grpc.aio.insecure_channel(address) as channel:
        assert await channel.unary_unary("/functions.v1.Hello/OnSchedule")(message, timeout=10) == b""
    [event] = __import__(project.module).seen
    assert (event["detail-type"], event["source"]) == ("calendar.v1.Schedule", "calendar.v1")
    assert event["detail"] == {"room": "42"}


async def test_an_event_keeps_its_id_and_its_time(tmp_path: Path) -> None:
    project = Project(tmp_path, "seen = []\ndef handler(event, context): seen.append(event)", 'schedule = "@hourly"')
    message = project.contract.message("meshapi.v1.Tick")(schedule="@hourly").SerializeToString()
    delivered = [("ce-id", "e-1"), ("ce-time", "2026-11-22T01:02:03.456+01:00")]
    async with served(project, caller="broker") as address, grpc.aio.insecure_channel(address) as channel:
        call = channel.unary_unary("/functions.v1.Hello/OnSchedule")
        for metadata in (delivered, delivered, (), [("ce-time", "yesterday")]):
            await call(message, timeout=10, metadata=metadata)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(b"\xff\xff", timeout=10)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    one, again, by_hand, odd = __import__(project.module).seen
    assert one == again == {
        "version": "0", "id": "e-1", "detail-type": "Scheduled Event", "source": "aws.events",
        "account": "000000000000", "time": "2026-11-22T00:02:03Z", "region": "us-east-1",
        "resources": ["@hourly"], "detail": {},
    }  # fmt: skip
    assert len({"e-1", by_hand["id"], odd["id"]}) == 3
    assert datetime.fromisoformat(odd["time"]).tzinfo is not None


async def test_a_log_line_says_its_invocation(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    code = """
        import logging

        def handler(event, context):
            logging.getLogger("shop").warning("sold")
            return context.aws_request_id
    """
    async with served(Project(tmp_path, code)) as address:
        ids = [await invoke(address, {}), await invoke(address, {})]
    logging.getLogger("shop").warning("sold")
    lines = [getattr(record, "aws_request_id", None) for record in caplog.records if record.message == "sold"]
    assert lines == [*ids, None]


async def test_an_async_handler_that_will_not_end_has_timed_out(tmp_path: Path) -> None:
    code = """
        import asyncio

        async def handler(event, context):
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                if event:
                    raise ValueError("not now")
                return "late"
    """
    async with served(Project(tmp_path, code, 'timeout = "100ms"')) as address:
        for event in ({}, {"raise": True}):
            status, text, _ = await failure(address, event)
            assert (status, text) == (grpc.StatusCode.DEADLINE_EXCEEDED, "Task timed out after 0.10 seconds")


async def test_time_is_utc_unless_the_function_says_otherwise(tmp_path: Path) -> None:
    code = "import time\ndef handler(event, context): return time.localtime(0).tm_hour"
    async with served(Project(tmp_path, code)) as address:
        assert await invoke(address, {}) == 0
    async with served(Project(tmp_path, code, 'environment = { TZ = "JST-9" }')) as address:
        assert await invoke(address, {}) == 9


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("x = 1", "there is no handler 'handler'; write def handler"),
        ("def handler(event): return 1", "'handler' is no handler; write def handler(event, context)"),
        ("handler = 7", "is no handler"),
        ("import nowhere_at_all\n", "No module named 'nowhere_at_all'"),
    ],
)
def test_a_module_that_is_not_right(tmp_path: Path, code: str, text: str) -> None:
    project = Project(tmp_path, code)
    with pytest.raises(Faults) as caught:
        project.functions()
    assert text in str(caught.value).replace(": ModuleNotFoundError", "")
    assert f"{project.module}.py" in str(caught.value)

"""Every operation of the OpenAPI document, asked what a property fuzzer makes of its schema."""

import itertools
import time

import hypothesis
import pytest

from server.app import create_app
from server.settings import load_settings
from tests.server.scripted_engine import ScriptedEngine, model_text
from tests.server.test_serve import running_server

schemathesis = pytest.importorskip("schemathesis", reason="needs schemathesis")
checks = pytest.importorskip("schemathesis.checks")

# No answer is a fault of the server, and every one is as the document says: its status, its content
# type and its body. Which values are refused is not in the document, so that 400 is always right.
checks.load_all_checks()
CHECKS = checks.CHECKS.get_by_names(
    [
        "not_a_server_error",
        "status_code_conformance",
        "content_type_conformance",
        "response_schema_conformance",
    ]
)
SOAK_S = 600


def _operations():
    app = create_app(ScriptedEngine(), model_text(), load_settings({}))
    document = schemathesis.openapi.from_dict(app.openapi())
    return [found.ok() for found in document.get_all_operations()]


@pytest.fixture(scope="module")
def address():
    with running_server() as (_, address):
        yield address


def _ask(operation, address, *, seed, count):
    """Send `count` requests that the operation's schema describes, and check each answer."""

    @hypothesis.seed(seed)
    @hypothesis.given(case=operation.as_strategy())
    @hypothesis.settings(
        max_examples=count,
        deadline=None,
        derandomize=False,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    def ask(case):
        case.call_and_validate(base_url=address, checks=CHECKS)

    ask()


@pytest.mark.parametrize("operation", _operations(), ids=lambda operation: operation.label)
def test_no_request_ends_in_a_fault_or_off_the_document(operation, address):
    _ask(operation, address, seed=0, count=25)


@pytest.mark.soak
@pytest.mark.timeout(3 * SOAK_S)
def test_ten_minutes_of_requests_end_in_no_fault(address):
    until_s = time.monotonic() + SOAK_S
    for seed in itertools.count(1):
        for operation in _operations():
            _ask(operation, address, seed=seed, count=100)
            if time.monotonic() > until_s:
                return


def test_every_route_is_asked():
    asked = {operation.label for operation in _operations()}
    assert {"POST /v1/chat/completions", "POST /v1/messages", "GET /metrics"} <= asked
    assert len(asked) > 12

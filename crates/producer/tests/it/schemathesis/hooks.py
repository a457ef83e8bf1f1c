"""What schemathesis checks beyond its own checks."""

import json

import schemathesis

# The kinds of fault that JSON Schema cannot rule out: they depend on how a number is written, on nesting, on two
# fields at once, or on the calendar and an offset.
UNSTATABLE = {
    "datetime_parsing",
    "document_too_large",
    "greater_than_equal",
    "invalid_key",
    "less_than_equal",
    "nesting_too_deep",
    "number_out_of_range",
    "parallel_arrays",
    "string_too_long",  # of an integer: its decimal text
}


@schemathesis.serializer("application/x-ndjson")
def one_event_a_line(ctx, value):
    lines = value if isinstance(value, list) else [value]
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


@schemathesis.hook
def before_call(ctx, case, kwargs):
    # Bodies are sent as they are; that compressed ones are taken has tests of its own.
    if case.headers and case.headers.get("Content-Encoding") in {"gzip", "zstd"}:
        case.headers["Content-Encoding"] = "identity"


@schemathesis.check
def valid_data_is_refused_only_for_limits_that_no_schema_states(ctx, response, case):
    if case.meta is None or not case.meta.generation.mode.is_positive:
        return
    if response.status_code == 422:
        # A batch tells of each event in words; that an Idempotency-Key fits the id is between two places.
        errors = response.json().get("errors", [])
        kinds = {error["type"] for error in errors if error["loc"][0] != "header"}
        assert kinds <= UNSTATABLE, f"refused for {kinds - UNSTATABLE}"


@schemathesis.check
def the_request_id_comes_back(ctx, response, case):
    sent = response.request.headers.get("X-Request-Id", "")
    if isinstance(sent, bytes):
        sent = sent.decode("latin-1")
    (got,) = response.headers["x-request-id"]
    if 1 <= len(sent) <= 128 and all("!" <= character <= "~" for character in sent):
        assert got == sent, f"{got!r} for {sent!r}"
    else:
        assert got != sent, f"{got!r} came back"


@schemathesis.check
def a_refusal_says_whether_to_try_again(ctx, response, case):
    if response.status_code >= 400 and response.request.method != "HEAD":
        problem = response.json()
        assert problem["status"] == response.status_code
        assert problem["retryable"] is (response.status_code in {408, 429, 502, 503, 504})

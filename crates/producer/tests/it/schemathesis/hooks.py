"""Further checks for schemathesis."""

import json

import schemathesis

# The violations that JSON Schema cannot exclude. They depend on the text of a number, on nesting, on
# two fields at once, or on the calendar and an offset.
NOT_IN_SCHEMA = {
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
    # Bodies are sent uncompressed. Compressed bodies have their own tests.
    if case.headers and case.headers.get("Content-Encoding") in {"gzip", "zstd"}:
        case.headers["Content-Encoding"] = "identity"


@schemathesis.check
def valid_data_is_rejected_only_for_limits_outside_the_schema(ctx, response, case):
    if case.meta is None or not case.meta.generation.mode.is_positive:
        return
    if response.status_code == 422:
        # A batch has no list of errors. Whether an Idempotency-Key equals the id depends on two fields.
        errors = response.json().get("errors", [])
        kinds = {error["type"] for error in errors if error["loc"][0] != "header"}
        assert kinds <= NOT_IN_SCHEMA, f"rejected for {kinds - NOT_IN_SCHEMA}"


@schemathesis.check
def the_response_has_the_request_id(ctx, response, case):
    sent = response.request.headers.get("X-Request-Id", "")
    if isinstance(sent, bytes):
        sent = sent.decode("latin-1")
    (got,) = response.headers["x-request-id"]
    if 1 <= len(sent) <= 128 and all("!" <= character <= "~" for character in sent):
        assert got == sent, f"{got!r} for {sent!r}"
    else:
        assert got != sent, f"{got!r} was returned"


@schemathesis.check
def an_error_has_the_expected_retryable(ctx, response, case):
    if response.status_code >= 400 and response.request.method != "HEAD":
        problem = response.json()
        assert problem["status"] == response.status_code
        assert problem["retryable"] is (response.status_code in {408, 429, 502, 503, 504})

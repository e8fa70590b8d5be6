"""What a request that fits the schema may be refused for all the same.

Every rule here names the refusal by its code and says when it is right, so that the same code in another place is still
found. What no schema can say: how a field belongs to another, to an earlier request, or to what is stored.
"""

import json
import re
from decimal import Decimal

import schemathesis
from schemathesis.openapi.checks import RejectedPositiveData


def has(values, name):
    return any(key.lower() == name.lower() for key in (values or {}))


def is_key_of_another_request(case, problem):
    return problem["code"] == "idempotency_key_reused" and has(case.headers, "Idempotency-Key")


def is_older_revision(case, problem):
    return problem["code"] == "revision_mismatch" and has(case.headers, "If-Match")


def is_cursor_that_was_made_up(case, problem):
    """A cursor is opaque, and its schema says less than what a server that made it knows."""
    return problem["code"] == "invalid_cursor" and has(case.query, "cursor")


def is_role_of_nobody(case, problem):
    return problem["code"] == "invalid_role" and has(case.query, "role") and not has(case.query, "agent")


def is_other_agent_than_the_path_names(case, problem):
    if problem["code"] != "invalid_agent_id" or case.method != "PUT" or not isinstance(case.body, dict):
        return False
    return case.body.get("agent_id") not in (None, case.path_parameters["id"])


def is_no_entity_tag(case, problem):
    """Schemathesis takes a quoted text for JSON and sends it without its quotes, which is no entity tag any more."""
    field = problem.get("field")
    if problem["code"] != "invalid_request" or field not in ("If-Match", "If-None-Match"):
        return False
    schemas = case.operation.schema.raw_schema["components"]["schemas"]
    sent = next(value for key, value in case.headers.items() if key.lower() == field.lower())
    return re.search(schemas["EntityTags"]["pattern"], str(sent)) is None


def is_null_character_somewhere_within(case, problem):
    """No schema looks into an object that may hold anything."""
    return problem["code"] in ("invalid_metadata", "invalid_context") and "\\u0000" in json.dumps(case.body)


def is_number_of_too_many_digits(case, problem):
    if problem["code"] not in ("invalid_amount", "invalid_cost_per_task"):
        return False
    sent = case.body.get(problem["field"])
    return isinstance(sent, float) and Decimal(repr(sent)).as_tuple().exponent < -9


def is_both_names_of_one_field(case, problem):
    return problem["code"] == "invalid_request" and has(case.body, "status") and has(case.body, "availability")


RULES = [
    is_key_of_another_request,
    is_older_revision,
    is_cursor_that_was_made_up,
    is_role_of_nobody,
    is_other_agent_than_the_path_names,
    is_no_entity_tag,
    is_null_character_somewhere_within,
    is_number_of_too_many_digits,
    is_both_names_of_one_field,
]


@schemathesis.hook
def filter_failure(context, failure, case, response):
    if not isinstance(failure, RejectedPositiveData):
        return True
    problem = response.json()
    return not any(rule(case, problem) for rule in RULES)

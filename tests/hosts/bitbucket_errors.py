"""Bodies of Bitbucket's errors: of a form's field, of a bulk limit, of Code Insights."""

from __future__ import annotations

from tests.hosts.exchange import Answer
from tests.hosts.schemas import Violation


def form_error(broken: list[Violation]) -> Answer:
    fields: dict[str, list[str]] = {}
    for violation in broken:
        fields.setdefault(violation.field or "__all__", []).append(_form_words(violation))
    name, messages = next(iter(fields.items()))
    return Answer(
        400, {"type": "error", "error": {"message": f"{name}: {messages[0]}", "fields": fields}}
    )


def _form_words(broken: Violation) -> str:
    match broken.rule:
        case "maxLength":
            length = len(broken.value)
            return f"Ensure this value has at most {broken.limit} characters (it has {length})."
        case "required":
            return "This field is required."
        case "format":
            return "Enter a valid URL."
        case "enum":
            return f"Select a valid choice. {broken.value} is not one of the available choices."
        case _:
            return "Enter a valid value."


def annotations_error(broken: list[Violation]) -> Answer:
    for violation in broken:
        if violation.field == "" and violation.rule == "maxItems":
            return Answer(
                400,
                {
                    "code": 400,
                    "message": f"Bulk upload supports a maximum of /{violation.limit} annotations.",
                },
            )
    return report_error(broken)


def report_error(broken: list[Violation]) -> Answer:
    violation = broken[0]
    name = violation.field.rpartition(".")[2]
    match violation.rule:
        case "maxLength":
            return insights_error(
                f"The {name} field cannot contain more than {violation.limit} characters."
            )
        case "required":
            return insights_error(f"The {name} field is required.")
        case _:
            return insights_error(f"The {name or 'body'} field is not valid.")


def insights_error(message: str, code: int = 400) -> Answer:
    kind = "bad-request" if code == 400 else "not-found"
    return Answer(
        code, {"key": f"report-service.general.{kind}", "message": message, "arguments": {}}
    )


def proxy_error(code: int, message: str) -> Answer:
    return Answer(code, {"code": code, "message": message})

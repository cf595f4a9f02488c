"""A record's pipeline step, before any of it enters a request.

Whoever may write to the store writes records. A value has to fit the grammar of its CI host and to
equal that of this process's environment, else it is left out, and a line tells of it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import NamedTuple

from pytest_gpu_cluster.contract.fields import shown
from pytest_gpu_cluster.contract.request import CI
from pytest_gpu_cluster.publish import OTHER, Publisher, api, detect, host_class
from pytest_gpu_cluster.publish.links import reachable

OWN_STEP = "report it in a step of its own build"
FORGED = "run the tests again, and see who may write to the store"
STEP = re.compile(r"[0-9]+(/[a-z]+/([0-9]+|%7B[0-9A-Fa-f-]+%7D))?")
NO_VARIABLE = "outside of a step nothing says where its token may go"
NO_FORM = "it does not have the form of one"


class CheckedStep(NamedTuple):
    """A step whose values may enter requests, and a text with remedy for each that was left out."""

    ci: CI
    refused: tuple[str, ...]


def checked_step(ci: CI, environ: Mapping[str, str]) -> CheckedStep:
    """Return the step of a record with the values that this process may use.

    In a step each has to equal the step's own. Outside of one, the repository has to be named by
    its host's variable.
    """
    host, here = host_class(ci.host), detect(environ)
    if here is not None and here.host == OTHER != ci.host:  # it knows no repositories of others
        here = None
    if here is not None and here.host != ci.host:
        nothing = CI(host=here.host, api=here.api, fork=here.fork)
        why = f"this step is one of {here.host}"
        return CheckedStep(nothing, (refusal("host", ci.host, why, OWN_STEP),))
    if host is None:  # nothing is sent anywhere
        return CheckedStep(dataclasses.replace(ci, api=""), ())
    if here is None and not host.repository_variable:
        nothing = CI(host=ci.host, api=api(ci.host, environ))
        return CheckedStep(nothing, (refusal("host", ci.host, NO_VARIABLE, OWN_STEP),))
    refused = _refused(ci, here, host, environ)
    page = host.page(here or ci, environ) if "repository" not in refused else ""
    if ci.step_url and not is_page(ci.step_url, page) and ci.step_url != (here and here.step_url):
        why = f"it is no page below {page}" if page else "nothing tells whose page it is"
        refused["step_url"] = refusal("link", ci.step_url, why, FORGED)
    used = {name: getattr(ci, name) for name in (*host.grammar, "step_url") if name not in refused}
    known = CI(host=ci.host, api=api(ci.host, environ), fork=(here or ci).fork)
    return CheckedStep(dataclasses.replace(known, **used), tuple(refused.values()))


def _refused(
    ci: CI, here: CI | None, host: type[Publisher], environ: Mapping[str, str]
) -> dict[str, str]:
    """Return a text with remedy for each value that is left out, by its name."""
    refused, variable = {}, host.repository_variable
    named = environ.get(variable, "")
    for name, pattern in host.grammar.items():
        if not (value := getattr(ci, name)):
            continue
        if not re.fullmatch(pattern, value):
            refused[name] = refusal(name, value, NO_FORM, FORGED)
        elif here is not None and value != (own := getattr(here, name)):
            why = f"this step has {shown(own)}" if own else "this step has none"
            refused[name] = refusal(name, value, why, OWN_STEP)
        elif here is None and name == "repository" and value != named:
            why = f"{variable} is {shown(named)}" if named else f"{variable} is to name it here"
            remedy = f"set {variable}={value} if a token may go there"
            refused[name] = refusal(name, value, why, remedy)
    return refused


def refusal(name: str, value: str, why: str, remedy: str) -> str:
    """Return the text for a value of a record that is not used, as reports list their troubles."""
    what = f"the record names the {name.replace('_', ' ')} {shown(value)}, which is not used"
    return f"{what}: {why}\n  remedy: {remedy}"


def is_page(url: str, page: str) -> bool:
    """Return True for the page of a step: `page`, its number, and which part or try of it.

    >>> is_page("https://ci.example.com/a/b/1/attempts/2", "https://ci.example.com/a/b/")
    True
    >>> is_page("https://ci.example.com/a/b/../c", "https://ci.example.com/a/b/")
    False
    """
    below = bool(page) and url.startswith(page) and reachable(url)
    return below and STEP.fullmatch(url.removeprefix(page)) is not None

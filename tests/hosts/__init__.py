"""Fake CI hosts on the loopback.

They refuse what the real ones refuse and show what a reviewer would see.
"""

from tests.hosts.bitbucket import FakeBitbucket
from tests.hosts.exchange import Fault, Recorded, cut, garbage, html, slow, status, trickle
from tests.hosts.github import FakeGitHub, secondary_limit
from tests.hosts.github_runner import Command, job_summary, workflow_commands
from tests.hosts.gitlab import FakeGitLab, JobLink, annotations_report, gitlab_junit
from tests.hosts.readers import READERS, Case, bitbucket_finds, schema_errors
from tests.hosts.render import page

__all__ = [
    "READERS",
    "Case",
    "Command",
    "FakeBitbucket",
    "FakeGitHub",
    "FakeGitLab",
    "Fault",
    "JobLink",
    "Recorded",
    "annotations_report",
    "bitbucket_finds",
    "cut",
    "garbage",
    "gitlab_junit",
    "html",
    "job_summary",
    "page",
    "schema_errors",
    "secondary_limit",
    "slow",
    "status",
    "trickle",
    "workflow_commands",
]

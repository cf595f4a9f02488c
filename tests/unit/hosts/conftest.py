"""Fake hosts for their own tests."""

from tests.hosts.fixtures import bitbucket, github, gitlab

__all__ = ["bitbucket", "github", "gitlab"]

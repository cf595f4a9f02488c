"""The files that `ci/` offers to be copied, and how to read them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped, unused-ignore]  # no types; comes with Ray

ROOT = Path(__file__).resolve().parents[2]
CI = ROOT / "ci"
BITBUCKET, GITLAB = CI / "bitbucket-pipelines.yml", CI / "gitlab" / "gpu-cluster.gitlab-ci.yml"
ACTION, WORKFLOW, PIPE = (
    CI / "github" / "action.yml",
    CI / "github" / "workflow.yml",
    CI / "pipe" / "pipe.yml",
)
# On the runner itself; the others rent.
BITBUCKET_LOCAL, GITLAB_LOCAL, WORKFLOW_LOCAL = (
    CI / "bitbucket-local.yml",
    CI / "gitlab" / "gpu-cluster-local.gitlab-ci.yml",
    CI / "github" / "workflow-local.yml",
)
Json = dict[str, Any]

README = (CI / "README.md").read_text("utf-8")


class Loader(yaml.SafeLoader):  # type: ignore[misc, unused-ignore]  # yaml has no types
    """YAML 1.2's booleans, as the hosts have them: to YAML 1.1 the workflow's key `on` is True."""


Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("^(true|false)$"), list("tf"))


def load(path: Path) -> Any:
    text = path.read_text("utf-8")
    return json.loads(text) if path.suffix == ".json" else yaml.load(text, Loader)


def texts(node: Any) -> Iterator[str]:
    """Every text of a document, the names of its keys too."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield str(key)
            yield from texts(value)
    elif isinstance(node, list):
        for item in node:
            yield from texts(item)
    else:
        yield str(node)

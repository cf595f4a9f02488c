"""Failures of the cluster as pytest would write them here."""

from __future__ import annotations

from pathlib import Path

from pytest_gpu_cluster.host.deserialize import with_paths_from


def test_a_place_outside_of_the_tree_is_relative_to_here_where_that_is_shorter() -> None:
    """Plain pytest writes `../venv/lib/…` of a plugin; the cluster has its tree elsewhere."""
    frames = {
        "reprentries": [
            {"data": {"reprfileloc": {"path": path, "lineno": 1, "message": "in f"}}}
            for path in (
                "/home/me/venv/lib/p.py",
                "/usr/lib/x.py",
                "test_a.py",
                "/home/me/project/a.py",
            )
        ]
    }

    shown = with_paths_from(
        {"reprtraceback": frames, "chain": [[frames, None, None]]},
        Path("/home/me/project"),
        Path("/home/me/project"),
    )

    assert isinstance(shown, dict)
    for traceback in (shown["reprtraceback"], shown["chain"][0][0]):
        assert [entry["data"]["reprfileloc"]["path"] for entry in traceback["reprentries"]] == [
            "../venv/lib/p.py",
            "/usr/lib/x.py",
            "test_a.py",
            "/home/me/project/a.py",  # after a chdir in its test
        ]

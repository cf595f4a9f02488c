"""The records of the test that runs, and the texts that are part of them."""

from __future__ import annotations

import os
import threading

import pytest

from pytest_gpu_cluster.contract.events import Output
from pytest_gpu_cluster.contract.records import OutputRecord, TestRecord
from pytest_gpu_cluster.worker.streams import Channel, Via


class Recorder:
    """Collects records while a test runs, and finds the place of each text.

    A text of a test is live if the user's options ask for that, until the test has a visible
    status. Else it is one of its records. Between tests texts go to the process's own streams.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self.records: list[TestRecord] | None = None  # None: no test runs
        self.shown = False  # the test has a visible status already
        self._capture = "no"
        self._live = False

    def configure(self, config: pytest.Config) -> None:
        option = config.option
        logs = hasattr(option, "log_cli_level") and (
            option.log_cli_level or config.getini("log_cli")
        )
        self._capture = getattr(option, "capture", "no")
        self._live = (
            self._capture in ("no", "tee-sys")
            or bool(logs)
            or bool(getattr(option, "setupshow", False))
        )

    def start(self, *, shown: bool = False) -> list[TestRecord]:
        """Begin a list of records and return it; it grows until `stop`."""
        self.shown = shown
        self.records = []
        return self.records

    def stop(self) -> None:
        self.records = None

    def add_text(self, via: Via, text: str, *, fresh: bool) -> None:
        """Bring a text to its place. `fresh`: the reporter has ended the line that it was in."""
        if self.records is None:
            if self._capture != "no":
                write_stream(2 if via == "err" else 1, text)
        elif self._live and not self.shown:
            self._channel.send(output_event(via, text, fresh=fresh))
        else:
            self.records.append(output_record(via, text, fresh=fresh))
            # pytest-timeout ends the process next, and the records with it.
            if threading.current_thread() is not threading.main_thread():
                write_stream(2, text)


def write_stream(descriptor: int, text: str) -> None:
    os.write(descriptor, text.encode("utf-8", "backslashreplace"))


def output_event(via: Via, text: str, *, fresh: bool) -> Output:
    """Return a text as a message."""
    return Output(text=text, via=via, fd=2 if via == "err" else 1, fresh=fresh)


def output_record(via: Via, text: str, *, fresh: bool) -> OutputRecord:
    """Return a text as a record; only one of the terminal reporter's writer can be fresh."""
    record: OutputRecord = {
        "kind": "output",
        "text": text,
        "via": via,
        "fd": 2 if via == "err" else 1,
    }
    if via == "tw":
        record["fresh"] = fresh
    return record

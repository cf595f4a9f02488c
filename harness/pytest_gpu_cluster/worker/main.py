"""The entry of a test process: a pytest session that an agent directs over a socket.

The process has one of two roles. `select` collects once with the user's full arguments (see
`pytest_gpu_cluster.worker.select`). `run` collects only the files that it needs and runs tests in
the order in which they arrive (see `pytest_gpu_cluster.worker.run`).
"""

from __future__ import annotations

import faulthandler
import os
import signal
import socket
import sys

import pytest

import pytest_gpu_cluster
from pytest_gpu_cluster import fixtures
from pytest_gpu_cluster.contract.fields import JsonObject
from pytest_gpu_cluster.contract.specs import Role, WorkerSpec
from pytest_gpu_cluster.worker import prepare, program
from pytest_gpu_cluster.worker.role import RemoteSession
from pytest_gpu_cluster.worker.run import RunningSession
from pytest_gpu_cluster.worker.select import SelectingSession
from pytest_gpu_cluster.worker.streams import Channel, standard_stream

STACKS_SIGNAL = signal.SIGRTMAX - 1  # from outside: write the stacks of all threads to stderr


def main(specification: JsonObject, connection: socket.socket) -> int:
    """Run the session of a WorkerSpec; return 0 when its end was sent, whatever its tests did.

    Raises FieldError for a specification that is none.
    """
    faulthandler.register(STACKS_SIGNAL, file=os.dup(2), all_threads=True)
    spec = WorkerSpec.from_json(specification)
    program.order_imports(spec.client.program, code=sys.path[0])
    prepare.set_environment(spec)
    prepare.refresh_repository(spec)
    prepare.write_cache(spec)
    prepare.hide_own_plugin()
    prepare.accept_preloaded()
    options = prepare.Options(spec)
    session = remote_session(spec, Channel(connection), options)
    arguments = prepare.pytest_arguments(spec)
    program.show(spec.client.program, spec.args)
    # Else pytest warns that this plugin of its was imported before it.
    pytest_gpu_cluster.__doc__ = "PYTEST_DONT_REWRITE"
    sys.stdout = standard_stream(1, lambda text: session.texts.write("out", text))
    sys.stderr = standard_stream(2, lambda text: session.texts.write("err", text))
    session.end(int(pytest.main(arguments, plugins=[options, fixtures, session])))
    return 0


def remote_session(spec: WorkerSpec, channel: Channel, options: prepare.Options) -> RemoteSession:
    """Return the session of the role that the specification names."""
    match spec.role:
        case Role.SELECT:
            return SelectingSession(spec, channel, options)
        case Role.RUN:
            return RunningSession(spec, channel, options)

"""A process on another node, through the actor of its reservation there."""

from __future__ import annotations

from typing import Any

from pytest_gpu_cluster.contract.messages import Exit, encode


def the_ray() -> Any:
    """Return Ray, imported late (the client reads this package too).

    It is untyped, because its stubs lag behind its options.
    """
    import ray

    return ray


class Relay:
    """A process on another node, through the reservation that sits there: the verbs of a Lease."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def _call(self, verb: str, *arguments: bytes | int) -> None:
        getattr(self._actor, verb).options(concurrency_group="send").remote(*arguments)

    def send(self, message: bytes) -> None:
        self._call("send", message)

    def signal(self, number: int) -> None:
        self._call("signal", int(number))

    def kill(self) -> None:
        self._call("kill")

    def stacks(self) -> None:
        self._call("stacks")

    def receive(self, timeout_s: float) -> list[bytes]:
        """Return the lines since the last call; the loss of the actor is an Exit."""
        ray = the_ray()
        try:
            lines: list[bytes] = ray.get(
                self._actor.receive.options(concurrency_group="receive").remote(timeout_s)
            )
            return lines
        except ray.exceptions.RayError as problem:
            message = f"its slot was lost: {problem}".splitlines()[0]
            return [encode(Exit(status=None, why=message))]

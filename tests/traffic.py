"""What a store behind S3's HTTP API was asked: by kind, and how many requests waited for another.

before = len(server.answers())
...
asked = server.answers()[before:]
by_kind(asked), round_trips(asked, result_key(store, session))
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from urllib.parse import parse_qs

from gpu_tests.s3_server import Answer
from pytest_gpu_cluster.contract.journal import segment_key
from pytest_gpu_cluster.contract.record import AGENT_WRITER
from pytest_gpu_cluster.contract.store import Store

# Said beside the run: nobody waits for a heartbeat, or for what the cluster announces.
BESIDE = ("/control/heartbeat", "/state.json")


def kind(answer: Answer) -> str:
    """Return how S3 bills a request: PUT, LIST, GET, HEAD, or DELETE, which is free."""
    if answer.method == "GET" and "/" not in answer.path.strip("/"):
        return "LIST"
    return {"POST": "DELETE"}.get(answer.method, answer.method)


def by_kind(answers: Iterable[Answer]) -> Counter[str]:
    return Counter(map(kind, answers))


def writes(answers: Iterable[Answer]) -> int:
    """Return the number of requests that S3 bills as writes: PUT and LIST."""
    kinds = by_kind(answers)
    return kinds["PUT"] + kinds["LIST"]


def reads(answers: Iterable[Answer]) -> int:
    kinds = by_kind(answers)
    return kinds["GET"] + kinds["HEAD"]


def place(answer: Answer) -> str:
    """Return the key of a request; of a listing its prefix."""
    return answer.path + parse_qs(answer.query).get("prefix", [""])[0]


def described(answers: Iterable[Answer]) -> str:
    """Return the requests as lines: seconds, kind, status, key."""
    answers = list(answers)
    first = answers[0].began if answers else 0.0
    return "\n".join(
        f"{a.began - first:7.3f} {a.ended - first:7.3f} {kind(a):6} {a.status} {place(a)}"
        for a in answers
    )


def result_key(store: Store, session: str) -> str:
    """Return the key of the segment with the first result of a session."""
    for number in range(1, 1000):
        key = segment_key(f"sessions/{session}/events", AGENT_WRITER, number)
        segment = store.get(key)
        assert segment is not None, f"{key}: no result before it"
        if b'"kind":"test_finished"' in zlib.decompress(segment):
            return key
    raise AssertionError("no result")


def round_trips(asked: Sequence[Answer], result: str) -> int:
    """Return how many requests came one after the other, from the client's first to its reading of
    the first result, which is in the segment `result`.

    The client's part ends with its offer. Then the keeper reads the offer and decides, the agent
    reads what it needs and stores the result, and the client, which meanwhile reads the decision,
    reads that. The longer one of these two ways counts. Of a part, requests that overlap count
    once. Not counted is what nobody waits for: heartbeats, announcements, polls that found nothing,
    the journal before the result, and what the agent writes elsewhere.
    """
    asked = [each for each in asked if not each.path.endswith(BESIDE)]
    offer = next(a for a in asked if a.method == "PUT" and "/inbox/" in a.path)
    polled = [a for a in asked if a is not offer and is_poll(a)]
    stored = next(a for a in asked if a.method == "PUT" and a.path.endswith(result))
    client = [a for a in asked if a.ended <= offer.ended and a not in polled]
    later = [a for a in asked if offer.ended <= a.began and a.ended <= stored.began]
    found = [a for a in later if a in polled and a.method == "GET" and a.status == 200]
    taken = [a for a in found if "/inbox" in place(a)][-1:]
    decided = [a for a in asked if a.method == "PUT" and "/decision/" in a.path]
    heard = [a for a in found if "/decision/" in a.path]
    agent = [a for a in later if a not in polled and a.method != "PUT"]
    way = max(chain([*taken, *decided, *agent, stored]), chain([*taken, *decided, *heard]))
    return client_trips([a for a in client if a is not offer]) + 1 + way + 1


def client_trips(asked: Sequence[Answer]) -> int:
    """Return how many requests came one after the other before the client could offer.

    It looks for clusters, and puts its request and its tree, at the same time; when those two are
    there, the request that names the tree.
    """
    requests = [a for a in asked if a.method == "PUT" and a.path.endswith("/request.json")]
    clusters = [a for a in asked if "/clusters" in place(a)]
    tree = [a for a in asked if a not in requests and a not in clusters]
    return max(chain(clusters), max(chain(requests[:-1]), chain(tree)) + 1)


def is_poll(answer: Answer) -> bool:
    """Return True for what is asked for again and again, until it is there, and for the journal."""
    if "/events" in place(answer):
        return True
    return answer.method == "GET" and any(part in place(answer) for part in ("/inbox", "/decision"))


def chain(answers: Iterable[Answer]) -> int:
    """Return the largest number of requests of which each began after the one before had ended."""
    count, free = 0, 0.0
    for answer in sorted(answers, key=lambda each: each.ended):
        if answer.began >= free:
            count, free = count + 1, answer.ended
    return count

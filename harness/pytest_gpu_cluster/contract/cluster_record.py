"""The record of a cluster: every key of it in the store is spelled here.

    clusters/<id>/cluster.json         shape and limits, before anything is rented
    clusters/<id>/state.json           the keeper of the head writes it, again with each heartbeat
    clusters/<id>/head.json            where Ray is; by the keeper of the head
    clusters/<id>/nodes/<node>.json    the keeper of each node: how far it has come
    clusters/<id>/inbox/<n>            the n-th offer: a session that asks for the cluster
    clusters/<id>/decision/<session>   taken or not; created once, by the keeper or a client
    clusters/<id>/key.json             to which values are sealed; none where they go another way
    clusters/<id>/sealed/<session>     values of passed variables; the keeper reads them once

The keeper of the head is the only arbiter: there is no lease object, for a store can create a key
but not change one.

Offers are numbered from 1, so that the keeper asks for one key, the next number, and need not list.
Two clients that offer at once lose no offer:

- A client creates a number only if it is free, and goes on to the next one only when it has seen
  that it is not. So there is no free number below an offer, and the keeper, which reads one number
  after the other and stops at the first free one, comes to every offer.
- An offer is never removed or changed while the cluster is on the list. So no number becomes free
  again behind the keeper. The number that `state.json` announces is the keeper's next one as it was
  lately: a client that begins there saves requests; from an old one, or from 1, it goes on too.
- An answer that is lost is settled by the nonce: a client knows its own offer when it reads it.
- The keeper goes on to the next number once a decision about this one has been made. If it dies
  before, the cluster ends, and the client withdraws after a wait by a decision of its own. If the
  client dies, its offer is still an offer: the keeper takes it, and ends the session because nobody
  beats.
"""

from __future__ import annotations

import contextlib
import json
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import field
from enum import StrEnum
from functools import partial
from pathlib import Path

from pytest_gpu_cluster.contract.background import Background, together
from pytest_gpu_cluster.contract.bounded import DOCUMENT_BYTES, SMALL_BYTES
from pytest_gpu_cluster.contract.errors import UnreadableRecordError
from pytest_gpu_cluster.contract.fields import Noun
from pytest_gpu_cluster.contract.frozen import dataclass
from pytest_gpu_cluster.contract.gpus import Gpu
from pytest_gpu_cluster.contract.ids import check_id, check_named, foreign, is_id
from pytest_gpu_cluster.contract.request import VERSION, Shape
from pytest_gpu_cluster.contract.store import Store
from pytest_gpu_cluster.contract.store_errors import damaged
from pytest_gpu_cluster.contract.stored import get_noun, ids_in, put_noun

OFFERS = 10_000  # that are looked through, at most


@dataclass(frozen=True, kw_only=True)
class ClusterDescription(Noun):
    """cluster.json: what was rented, and in which protocol its keepers are spoken to."""

    v: int = VERSION
    id: str
    provider: str
    protocol: int
    shape: Shape
    where: Mapping[str, str] = field(default_factory=dict)  # the provider finds it there
    session: str = ""  # it was rented for; that client waits for it
    deadline_s: float


class ClusterPhase(StrEnum):
    """What the head's keeper says of its cluster."""

    STARTING = "starting"
    IDLE = "idle"
    BUSY = "busy"


@dataclass(frozen=True, kw_only=True)
class Announcement(Noun):
    """state.json: whom the cluster serves."""

    state: ClusterPhase = ClusterPhase.STARTING
    session: str | None = None
    idle_left_s: float | None = None  # until an idle cluster closes; as of this heartbeat
    ready: bool = False  # Ray is up
    why: str = ""  # it closes
    inbox: int = 1  # the number of the next offer
    beats: int = 0  # heartbeats so far: that it changes says that the keeper lives


@dataclass(frozen=True, kw_only=True)
class Offer(Noun):
    """inbox/<n>: a session asks for the cluster."""

    session: str
    nonce: str


@dataclass(frozen=True, kw_only=True)
class Decision(Noun):
    """decision/<session>: whether the cluster serves it."""

    taken: bool
    nonce: str


@dataclass(frozen=True, kw_only=True)
class SealingKey(Noun):
    """key.json: the public half of the keeper's keys, in hexadecimal digits."""

    public: str


@dataclass(frozen=True, kw_only=True)
class HeadAddress(Noun):
    """head.json: where the other nodes join Ray."""

    address: str


class NodePhase(StrEnum):
    """How far a node has come."""

    BOOTING = "booting"  # its keeper runs
    READY = "ready"  # it is in Ray
    ENDED = "ended"


@dataclass(frozen=True, kw_only=True)
class NodeRecord(Noun):
    """nodes/<node>.json: a node, as its own keeper found it."""

    name: str  # of the node in its cluster, an id
    phase: NodePhase
    text: str  # what it does, or why it has ended, for people
    seconds: float  # from the start of its keeper to this
    directory: Path  # with the sockets of keeper and fork server
    ray_node: str = ""  # Ray's id, once it is in Ray
    host: str = ""
    gpus: tuple[Gpu, ...] = ()
    driver: str | None = None
    cpus: int = 1

    def __str__(self) -> str:
        """Return its last words."""
        return f"{self.name} {self.phase} after {self.seconds:.0f} s: {self.text}"


class ClusterRecord:
    """What the store holds of one cluster."""

    def __init__(self, store: Store, cluster: str) -> None:
        self.store, self.cluster = store, check_id(cluster, "cluster")
        self.prefix = f"clusters/{cluster}"
        self._nonce = secrets.token_hex(8)  # of this side: a second try is known as its own

    def put_description(self, description: ClusterDescription) -> None:
        put_noun(self.store, f"{self.prefix}/cluster.json", description)

    def description(self) -> ClusterDescription | None:
        """Return what was rented; None for a cluster that is not on the store's list."""
        key = f"{self.prefix}/cluster.json"
        description = get_noun(self.store, key, ClusterDescription, limit_bytes=SMALL_BYTES)
        if description is not None:
            check_named(key, description.id, self.cluster)
        return description

    def announce(self, announcement: Announcement) -> None:
        put_noun(self.store, f"{self.prefix}/state.json", announcement)

    def announcement(self) -> Announcement:
        """Return the keeper's last word; `starting` before its first."""
        key = f"{self.prefix}/state.json"
        noun = get_noun(self.store, key, Announcement, limit_bytes=SMALL_BYTES)
        if noun is not None and noun.session is not None and not is_id(noun.session):
            raise foreign(key, noun.session)
        return noun if noun is not None else Announcement()

    def heartbeat(self) -> bytes | None:
        """Return a value that changes while the head's keeper lives: its last word, unread."""
        return self.store.get(f"{self.prefix}/state.json", limit_bytes=SMALL_BYTES)

    def put_head(self, address: str) -> None:
        put_noun(self.store, f"{self.prefix}/head.json", HeadAddress(address=address))

    def head(self) -> str | None:
        """Return Ray's address on the head; None while it is not up."""
        noun = get_noun(
            self.store, f"{self.prefix}/head.json", HeadAddress, limit_bytes=SMALL_BYTES
        )
        return noun.address if noun is not None else None

    def put_node(self, node: NodeRecord) -> None:
        put_noun(self.store, f"{self.prefix}/nodes/{check_id(node.name, 'node')}.json", node)

    def nodes(self) -> list[NodeRecord]:
        """Return the last words of each node that has said something, by name."""
        folder = f"{self.prefix}/nodes"
        nodes: list[NodeRecord] = []
        for name in ids_in(self.store, folder):
            key = f"{folder}/{name}.json"
            node = get_noun(self.store, key, NodeRecord, limit_bytes=SMALL_BYTES)
            if node is not None:
                check_named(key, node.name, name)
                nodes.append(node)
        return nodes

    def put_key(self, public: str) -> None:
        put_noun(self.store, f"{self.prefix}/key.json", SealingKey(public=public))

    def key(self) -> str | None:
        """Return the key that values are sealed to; None while the keeper has not made it."""
        key = f"{self.prefix}/key.json"
        noun = get_noun(self.store, key, SealingKey, limit_bytes=SMALL_BYTES)
        return noun.public if noun is not None else None

    def put_sealed(self, session: str, sealed: bytes) -> None:
        self.store.put(self._sealed(session), sealed)

    def take_sealed(self, session: str) -> bytes | None:
        """Return what a client has sealed for a session, once; None while it is not there."""
        key = self._sealed(session)
        sealed = self.store.get(key, limit_bytes=DOCUMENT_BYTES)
        if sealed is not None:
            self.store.delete([key])
        return sealed

    def offer(self, session: str, *, first: int = 1) -> None:
        """Ask the cluster to serve a session. Begin with the number `first`, which is announced.

        Raises StoreError: no number is free.
        """
        offer = Offer(session=check_id(session, "session"), nonce=self._nonce)
        body = json.dumps(offer.to_json()).encode()
        for number in range(first, first + OFFERS):
            if self.store.create(self._inbox(number), body):
                return
        raise damaged(self.store.url, f"{self.prefix}/inbox", f"it has {OFFERS:,} offers")

    def offers(self, first: int = 1) -> Iterator[tuple[int, str]]:
        """Yield the offers from a number on: each a number and a session, oldest first.

        An object that is no offer is passed over.
        """
        for number in range(first, first + OFFERS):
            with contextlib.suppress(UnreadableRecordError):
                offer = get_noun(self.store, self._inbox(number), Offer, limit_bytes=SMALL_BYTES)
                if offer is None:
                    return
                if is_id(offer.session):
                    yield number, offer.session

    def wanted_by(self) -> str:
        """Return the session that it serves, or that a new cluster waits for; "" where none is."""
        return self.announcement().session or next((name for _, name in self.offers()), "")

    def has_offer(self, session: str) -> bool:
        return any(offered == session for _, offered in self.offers())

    def decide(self, session: str, *, taken: bool) -> bool:
        """Decide once whether the cluster serves a session.

        Return False when the decision had been made.
        """
        decision = Decision(taken=taken, nonce=self._nonce)
        key = self._decision(session)
        return self.store.create(key, json.dumps(decision.to_json()).encode())

    def decision(self, session: str) -> bool | None:
        """Return True when the cluster has taken the session, None while nothing is decided."""
        key = self._decision(session)
        noun = get_noun(self.store, key, Decision, limit_bytes=SMALL_BYTES)
        return noun.taken if noun is not None else None

    def _inbox(self, number: int) -> str:
        return f"{self.prefix}/inbox/{number:08d}"

    def _sealed(self, session: str) -> str:
        return f"{self.prefix}/sealed/{check_id(session, 'session')}"

    def _decision(self, session: str) -> str:
        return f"{self.prefix}/decision/{check_id(session, 'session')}"

    def delete(self) -> None:
        """Strike the cluster off the store's list."""
        self.store.delete(list(self.store.list(f"{self.prefix}/")))


def clusters(store: Store) -> Iterator[tuple[ClusterDescription, Announcement]]:
    """Yield each cluster of the store with its keeper's last word, all read at the same time.

    A record of another version is passed over: its cluster is none that this one can speak to. So
    is one that names another cluster than its key does.
    """
    records = [ClusterRecord(store, cluster) for cluster in cluster_ids(store)]
    yield from filter(None, together(partial(_with_announcement, record) for record in records))


def _with_announcement(record: ClusterRecord) -> tuple[ClusterDescription, Announcement] | None:
    announcement = Background(record.announcement)
    with contextlib.suppress(UnreadableRecordError):
        if (description := record.description()) is not None:
            return description, announcement.result()
    return None


def cluster_ids(store: Store) -> list[str]:
    """Return the ids of all clusters on the store's list, those of another version too.

    A name that is no id is passed over.
    """
    return [*filter(is_id, store.folders("clusters"))]

"""The partitions of a system, and the names of the keys that the runs of one partition share.

    one server          sb:queue       sb:runs:acme       arq:job:01J9…          one partition, without a tag
    with partitions     sb:queue:{CE}  sb:runs:{CE}:acme  arq:job:{01J9…CE}      32 partitions, each with its tag

A client of Redis has `partitioning`, which knows the mode. The id of a run alone does not tell its partition: on one
server runs of threads have ids with tags, too, but all runs share one queue.
"""

from binascii import crc32
from dataclasses import dataclass
from typing import Final

from stagebus.shared.domain.partitions import TAGS, partition_of, tag_of
from stagebus.shared.storage import keys


@dataclass(frozen=True, slots=True)
class Partition:
    """The key names of one partition. On a cluster all of them, and all keys of its runs, have one slot."""

    tag: str = ""

    @property
    def queue(self) -> str:
        """The queue."""
        return keys.tagged(keys.QUEUE, self.tag)

    @property
    def wakeup(self) -> str:
        """The list that wakes waiting workers."""
        return keys.tagged(keys.WAKEUP, self.tag)

    @property
    def active(self) -> str:
        """The set of the runs that have not ended."""
        return keys.tagged(keys.ACTIVE, self.tag)

    @property
    def running(self) -> str:
        """The set of the running runs by tenant."""
        return keys.tagged(keys.RUNNING, self.tag)

    @property
    def throttled(self) -> str:
        """The set of the throttled runs by tenant."""
        return keys.tagged(keys.THROTTLED, self.tag)

    @property
    def limits(self) -> str:
        """The hash of the tenants' own limits: the operator's, or this partition's copy."""
        return keys.tagged(keys.LIMITS, self.tag)

    @property
    def reserved(self) -> str:
        """The hash of the tokens reserved for runs."""
        return keys.tagged(keys.RESERVED, self.tag)

    @property
    def virtual_time(self) -> str:
        """The virtual time of the run that was acquired last."""
        return keys.tagged(keys.VIRTUAL_TIME, self.tag)

    @property
    def totals(self) -> str:
        """The totals over all ended runs."""
        return keys.tagged(keys.TOTALS, self.tag)

    @property
    def sweep(self) -> str:
        """The key that elects the process that sweeps."""
        return keys.tagged(keys.SWEEP, self.tag)

    @property
    def sweep_position(self) -> str:
        """Up to where the sweeps have looked."""
        return keys.tagged(keys.SWEEP_POSITION, self.tag)

    @property
    def outbox(self) -> str:
        """The stream of what webhooks have to be told of."""
        return keys.outbox(self.tag)

    @property
    def outbox_bell(self) -> str:
        """The list that wakes a worker when the outbox has entries."""
        return keys.outbox_bell(self.tag)

    def feed(self, tenant: str) -> str:
        """Returns the stream of what happened to a tenant's runs."""
        return keys.feed(tenant, self.tag)

    def told_keys(self, tenant: str) -> tuple[str, ...]:
        """Returns the keys by which others are told of a run: the outbox, its bell and, if the tenant is known, its feed."""
        return (self.outbox, self.outbox_bell, *([self.feed(tenant)] if tenant else []))

    def totals_of_minute(self, minute: int) -> str:
        """Returns the totals over the runs that ended in one minute."""
        return keys.totals_of_minute(minute, self.tag)

    def runs(self, tenant: str, user: str = "") -> str:
        """Returns the set of a tenant's runs, or of those of one user."""
        return keys.runs(tenant, user, self.tag)

    def active_of_tenant(self, tenant: str) -> str:
        """Returns the set of a tenant's runs that have not ended."""
        return keys.active_of_tenant(tenant, self.tag)

    def tenant_virtual_time(self, tenant: str) -> str:
        """Returns the key of the virtual time of a tenant's next run."""
        return keys.tenant_virtual_time(tenant, self.tag)

    def tokens(self, tenant: str) -> str:
        """Returns the hash of a tenant's tokens."""
        return keys.tokens(tenant, self.tag)

    def rate(self, tenant: str, ticket_id: str = "") -> str:
        """Returns the key of the request quota of a tenant, or of one ticket."""
        return keys.rate(tenant, ticket_id, self.tag)

    def streams(self, tenant: str) -> str:
        """Returns the hash of a tenant's open streams."""
        return keys.streams(tenant, self.tag)

    def idempotency(self, tenant: str, key: str, user: str = "") -> str:
        """Returns the key that binds an Idempotency-Key to a run."""
        return keys.idempotency(tenant, key, user, self.tag)

    def has(self, key: str) -> bool:
        """Returns whether a key that has a tag, if there are partitions, is of this partition."""
        return not self.tag or keys.tag_of(key) == self.tag

    def job_id(self, run_id: str) -> str:
        """Returns arq's id of a run's job."""
        return keys.job_id(run_id, self.tag)

    def job(self, run_id: str) -> str:
        """Returns the key of arq's job."""
        return keys.job(run_id, self.tag)

    def lease(self, run_id: str) -> str:
        """Returns the key of a run's lease."""
        return keys.lease(run_id, self.tag)

    def arq_retry(self, run_id: str) -> str:
        """Returns the key of arq's count of starts."""
        return keys.arq_retry(run_id, self.tag)

    def all_of_run(self, run_id: str, idempotency: str = "") -> list[str]:
        """Returns every key that a run may have in this partition."""
        is_own = bool(idempotency) and self.has(idempotency)
        return keys.all_of_run(run_id, idempotency if is_own else "", self.tag)


@dataclass(frozen=True, slots=True)
class Partitioning:
    """The partitions of a system.

    Attributes:
        partitions: all of them; those without a tag come first.
    """

    partitions: tuple[Partition, ...]

    @property
    def tags(self) -> tuple[str, ...]:
        """The tags of the partitions for new runs; empty if the system has one partition without a tag."""
        return TAGS if len(self.partitions) > 1 else ()

    def seen(self, kind: str) -> str:
        """Returns the set of the members of keys.WORKERS, keys.GATEWAYS or keys.TOOLS by when they were last seen."""
        return keys.seen(kind, is_partitioned=len(self.partitions) > 1)

    def of_tag(self, tag: str) -> Partition:
        """Returns the partition of the runs whose ids have this tag, or none."""
        return self.partitions[0] if len(self.partitions) == 1 else _PARTITION_BY_TAG[tag]

    def of_run(self, run_id: str) -> Partition:
        """Returns the partition of a run."""
        return self.partitions[0] if len(self.partitions) == 1 else _PARTITION_BY_TAG[partition_of(run_id)]

    def of_name(self, name: str) -> Partition:
        """Returns the partition in which something with this name is kept, such as a tenant's request quota."""
        return self.of_tag(tag_of(crc32(name.encode())))


UNTAGGED: Final = Partition()
_PARTITION_BY_TAG: Final = {"": UNTAGGED} | {tag: Partition(tag) for tag in TAGS}
ONE_PARTITION: Final = Partitioning((UNTAGGED,))
# Partitions on one server, to test with them or to move to a cluster. The runs of before have no tag.
PARTITIONED: Final = Partitioning(tuple(_PARTITION_BY_TAG.values()))
# No partition of a cluster is without a tag: its keys would have many slots.
CLUSTER: Final = Partitioning(tuple(_PARTITION_BY_TAG[tag] for tag in TAGS))


def partitioning_of(connection: object) -> Partitioning:
    """Returns the partitions of the system that a client or a connection leads to."""
    partitioning: Partitioning = getattr(connection, "partitioning", ONE_PARTITION)
    return partitioning


def partition_of_run(connection: object, run_id: str) -> Partition:
    """Returns the partition of a run in the system that a client or a connection leads to."""
    return partitioning_of(connection).of_run(run_id)

"""Opens the client of Redis and what reads and writes beside it, for one server or for a cluster."""

from stagebus.shared.config.redis_url import RedisUrl
from stagebus.shared.config.settings import Settings
from stagebus.shared.domain.partitions import partition_of
from stagebus.shared.errors import StorageUnfit
from stagebus.shared.storage import keys, redis_client
from stagebus.shared.storage.cluster_connection import ClusterConnection
from stagebus.shared.storage.cluster_redis import ClusterRedis, check_cluster, connect_cluster
from stagebus.shared.storage.partition_keys import PARTITIONED, partitioning_of
from stagebus.shared.storage.pipelined import PipelinedConnection
from stagebus.shared.storage.pubsub import Channels
from stagebus.shared.storage.redis_client import Redis, check_server
from stagebus.shared.storage.sharded_pubsub import ShardedChannels

# A connection for the commands of many runs at a time.
SharedConnection = PipelinedConnection | ClusterConnection


def connect(settings: Settings) -> Redis:
    """Returns a client of the server, or of the cluster, which connects at the first command."""
    url = RedisUrl.parse(settings.redis_url.get_secret_value())
    return connect_cluster(url, settings) if url.nodes else redis_client.connect(settings)


async def check_storage(redis: Redis) -> None:
    """Checks that the server or the cluster is fit to store runs.

    Raises:
        StorageUnfit: it is not; the message says what to do.
    """
    if isinstance(redis, ClusterRedis):
        await check_cluster(redis)
        return
    await check_server(redis)
    if partitioning_of(redis) is PARTITIONED and any(
        partition_of(run_id.decode()) for run_id in await redis.zrange(keys.ACTIVE, 0, -1)
    ):
        raise StorageUnfit(
            "runs of conversations from before STAGEBUS_PARTITIONED have not ended, and would not be found: start without "
            "it until they have"
        )


def open_pipelined(redis: Redis, timeout_s: float) -> SharedConnection:
    """Returns a connection for many commands at a time. A server without a reply for `timeout_s` counts as away."""
    if isinstance(redis, ClusterRedis):
        return ClusterConnection(redis.slots, redis.client_of, timeout_s)
    return PipelinedConnection(redis, timeout_s)


def open_channels(redis: Redis) -> Channels | ShardedChannels:
    """Returns the channels of this process; `start` connects them."""
    return ShardedChannels(redis) if isinstance(redis, ClusterRedis) else Channels(redis)

"""Opens what reads and writes in Redis beside the client itself, for one server or for a cluster."""

from stagebus.shared.storage.cluster_connection import ClusterConnection
from stagebus.shared.storage.cluster_redis import ClusterRedis
from stagebus.shared.storage.pipelined import PipelinedConnection
from stagebus.shared.storage.pubsub import Channels
from stagebus.shared.storage.redis_client import Redis
from stagebus.shared.storage.sharded_pubsub import ShardedChannels


def open_pipelined(redis: Redis, timeout_s: float) -> PipelinedConnection | ClusterConnection:
    """Returns a connection for many commands at a time. A server without a reply for `timeout_s` counts as away."""
    if isinstance(redis, ClusterRedis):
        return ClusterConnection(redis.slots, redis.client_of, timeout_s)
    return PipelinedConnection(redis, timeout_s)


def open_channels(redis: Redis) -> Channels | ShardedChannels:
    """Returns the channels of this process; `start` connects them."""
    return ShardedChannels(redis) if isinstance(redis, ClusterRedis) else Channels(redis)

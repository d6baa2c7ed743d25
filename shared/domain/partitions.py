"""The slots of a Redis Cluster, and the 32 partitions into which runs are divided.

    01J9ZK3V7Q8E5W2R4T6Y8U14CE      a run of partition CE: `sb:run:{01J9…CE}` and `{CE}` hash to one slot

Redis Cluster assigns each key to one of 16384 slots by the CRC16 of its hash tag, and a script may only touch keys of one
slot. A partition is one slot. All keys of its runs are in that slot, because the runs' ids are chosen so (see `ids`), and
so are the keys with the hash tag `{CE}` that its runs share.

Ids without a partition are those of a system that keeps all its runs on one server.
Spec: https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/#key-distribution-model
"""

from binascii import crc_hqx
from typing import Final

SLOTS: Final = 16384

# The tag of each partition: of all pairs of an id's characters, the one whose slot is closest to the middle of the
# partition's 32nd of the slots. So nodes that share the slots evenly share the partitions evenly, which single characters
# would not do. Ids and keys in Redis contain them: a change would lose them.
TAGS: Final = (
    *("CE", "SA", "25", "PD", "ZJ", "2N", "VN", "1K", "RG", "06", "6V", "AF", "KH", "DX", "0M", "WH"),
    *("RH", "G8", "AX", "6H", "63", "TB", "GC", "0S", "4K", "4Z", "PZ", "PK", "2P", "ZT", "VA", "40"),
)


def key_slot(key: str | bytes) -> int:
    """Returns the slot of a key: of the text in its first braces, or of the whole key if there is none."""
    name = key.encode() if isinstance(key, str) else key
    start = name.find(b"{") + 1
    end = name.find(b"}", start) if start else 0
    return crc_hqx(name[start:end] if end > start else name, 0) % SLOTS


SLOT_BY_TAG: Final = {tag: key_slot(tag) for tag in TAGS}


def tag_of(number: int) -> str:
    """Returns the tag of one partition for any number, such as a hash: equal numbers get the same one."""
    return TAGS[number % len(TAGS)]


def partition_of(run_id: str) -> str:
    """Returns the tag of a run's partition; '' for a run without one."""
    tag = run_id[-2:]
    slot = SLOT_BY_TAG.get(tag)
    return tag if slot is not None and slot == crc_hqx(run_id.encode(), 0) % SLOTS else ""

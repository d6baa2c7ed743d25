"""Run ids. They are ULIDs, so they sort by creation time.

    01J9ZK3V7Q8E5W2R4T6Y8U0P1A
    |--------||--------------|
     time, ms     randomness

The id of a run in a partition ends with the partition's tag, and hashes to the tag's slot:

    01J9ZK3V7Q8E5W2R4T6Y8U14CE
    |--------||--------||--|||
     time, ms  random   |   tag
                        chosen so that the whole id hashes to the slot

Spec: https://github.com/ulid/spec
"""

import re
import secrets
from binascii import crc_hqx
from itertools import product
from typing import Final

from ulid import ULID

from stagebus.shared.domain.partitions import SLOT_BY_TAG, SLOTS, partition_of
from stagebus.shared.domain.run_id_pattern import PATTERN

_RUN_ID: Final = re.compile(PATTERN)

_ALPHABET: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_TIME_CHARACTERS: Final = 10
_RANDOM_CHARACTERS: Final = 10
_PAIRS: Final = [(first + second).encode() for first, second in product(_ALPHABET, repeat=2)]
# CRC16 is linear: what characters contribute depends on their place in the id, and not on the other characters. These are
# the contributions of the two pairs before the tag. Together they reach each slot in more than forty ways.
_FIRST_PAIRS: Final = [(crc_hqx(pair + bytes(4), 0) % SLOTS, pair) for pair in _PAIRS]
_SECOND_PAIR: Final = {crc_hqx(pair + bytes(2), 0) % SLOTS: pair for pair in _PAIRS}


def new_run_id() -> str:
    """Creates the id of a run without a partition, by this machine's clock, which only affects the order of ids."""
    run_id = str(ULID())
    while partition_of(run_id):  # by chance, for two ids of a million
        run_id = str(ULID())
    return run_id


def new_run_id_in(tag: str) -> str:
    """Creates the id of a run in the partition with this tag."""
    # A ULID's own randomness counts up within a millisecond, so only characters that are not kept here would differ.
    bits = secrets.randbits(5 * (_RANDOM_CHARACTERS + 2))
    random = "".join(_ALPHABET[bits >> 5 * place & 31] for place in range(_RANDOM_CHARACTERS))
    start = (str(ULID())[:_TIME_CHARACTERS] + random).encode()
    missing = (crc_hqx(start + bytes(4) + tag.encode(), 0) ^ SLOT_BY_TAG[tag]) % SLOTS
    offset = bits >> 5 * _RANDOM_CHARACTERS
    for place in range(len(_FIRST_PAIRS)):
        contribution, first = _FIRST_PAIRS[(offset + place) % len(_FIRST_PAIRS)]
        second = _SECOND_PAIR.get(missing ^ contribution)
        if second is not None:
            return (start + first + second).decode() + tag
    raise AssertionError("two pairs reach every slot")


def is_run_id(text: str) -> bool:
    """Returns whether `text` has the form of a run id, and so is safe in a Redis key."""
    return _RUN_ID.fullmatch(text) is not None


def created_ms(run_id: str) -> int:
    """Returns the creation time in a run id, in Unix ms."""
    return ULID.from_str(run_id).milliseconds

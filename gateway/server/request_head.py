"""Checks the head of a request where the parser (llhttp) is lenient and two servers could read it differently; sans-IO.

Source: https://www.rfc-editor.org/rfc/rfc9112
"""

import re
from collections.abc import Sequence
from typing import Final

BAD_REQUEST: Final = b"400 Bad Request"
NOT_IMPLEMENTED: Final = b"501 Not Implemented"
VERSION_NOT_SUPPORTED: Final = b"505 HTTP Version Not Supported"

_VERSIONS: Final = frozenset({"1.0", "1.1"})
# A name or an address with a port. An empty host is allowed.
_HOST: Final = re.compile(rb"([A-Za-z0-9._~%-]*|\[[0-9A-Fa-f:.%A-Za-z_-]*\])(:[0-9]{0,5})?")
_ABSOLUTE: Final = re.compile(rb"https?://([^/?#]*)", re.IGNORECASE)

Fields = Sequence[tuple[bytes, bytes]]


def refusal_of(version: str, target: bytes, fields: Fields) -> bytes | None:
    """Returns the status line by which a request must be refused, or None.

    - 505: a version other than 1.0 and 1.1.
    - 400: no `Host`, more than one, or one that is not a host; a target with another host, or without a path.
    - 501: a transfer coding other than `chunked`, since a proxy could decode it.

    Args:
        version: as the parser reports it, such as `1.1`.
        target: the request target, such as `/runs?limit=5`.
        fields: the names, in lower case, and the values.
    """
    if version not in _VERSIONS:
        return VERSION_NOT_SUPPORTED
    hosts = [value for name, value in fields if name == b"host"]
    if len(hosts) > 1 or (not hosts and version == "1.1") or not all(map(_HOST.fullmatch, hosts)):
        return BAD_REQUEST
    if not target.startswith((b"/", b"*")) and not _names_host(target, hosts):
        return BAD_REQUEST
    codings = [value for name, value in fields if name == b"transfer-encoding"]
    return NOT_IMPLEMENTED if codings and [value.strip().lower() for value in codings] != [b"chunked"] else None


def _names_host(target: bytes, hosts: Sequence[bytes]) -> bool:
    """Returns whether an absolute target names the same host as the header, which alone is used."""
    absolute = _ABSOLUTE.match(target)
    return absolute is not None and [absolute[1].lower()] == [host.lower() for host in hosts]

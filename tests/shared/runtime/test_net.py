from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagebus.shared.runtime.net import AddressPolicy, AllowedTarget, is_public

NOT_PUBLIC = """
    127.0.0.1  127.255.0.9  0.0.0.0  10.0.0.1  172.16.0.1  172.31.255.255  192.168.1.1  100.64.0.1  100.100.100.200
    169.254.169.254  169.254.170.2  192.0.0.192  192.0.2.1  198.18.0.1  203.0.113.5  224.0.0.1  239.1.1.1  240.0.0.1
    255.255.255.255  168.63.129.16  192.88.99.1
    ::1  ::  fe80::1  fec0::1  fc00::1  fd00:ec2::254  ff02::1  ff0e::1  2001:db8::1  3fff::1  2001::1  5f00::1
    ::ffff:127.0.0.1  ::ffff:10.0.0.1  ::ffff:169.254.169.254  ::127.0.0.1  ::ffff:0:127.0.0.1
    64:ff9b::7f00:1  64:ff9b::a9fe:a9fe  64:ff9b:1::808:808  2002:7f00:1::1  2002:a9fe:a9fe::
"""
PUBLIC = "1.1.1.1 8.8.8.8 93.184.215.14 2606:4700::1111 ::ffff:8.8.8.8 64:ff9b::808:808 2002:808:808::1"


@pytest.mark.parametrize("text", NOT_PUBLIC.split())
def test_address_within_is_not_public(text):
    assert not is_public(ip_address(text))
    assert not AddressPolicy().permits("good.example", 443, text)


@pytest.mark.parametrize("text", PUBLIC.split())
def test_address_outside_is_public(text):
    assert is_public(ip_address(text))
    assert AddressPolicy().permits("good.example", 443, text)


@given(st.ip_addresses(v=4))
def test_an_address_in_disguise_is_judged_like_itself(address: IPv4Address):
    number = int(address)
    disguises = [0xFFFF << 32 | number, 0x0064FF9B << 96 | number, 0x2002 << 112 | number << 80]

    assert {is_public(IPv6Address(disguise)) for disguise in disguises} == {is_public(address)}


@given(st.ip_addresses(v=6))
def test_no_private_address_of_version_six_passes(address: IPv6Address):
    if address.is_private or address.is_multicast or address.is_link_local:
        inner = address.ipv4_mapped or address.sixtofour  # private themselves, from Python 3.12.4 on 6to4 addresses too
        assert not is_public(address) or (inner is not None and is_public(inner))


@pytest.mark.parametrize(
    ("entry", "host", "port", "address"),
    [
        ("10.0.0.0/8", "any.example", 80, "10.1.2.3"),
        ("10.0.0.0/8", "any.example", 80, "::ffff:10.1.2.3"),
        ("127.0.0.1", "127.0.0.1", 9, "127.0.0.1"),
        ("127.0.0.1:8001", "localhost", 8001, "127.0.0.1"),
        ("::1", "localhost", 1, "::1"),
        ("[::1]:80", "localhost", 80, "::1"),
        ("fd00::/8", "a", 80, "fd12::1"),
        ("fe80::/10", "a", 80, "fe80::1%eth0"),
        ("wiki.internal", "WIKI.internal.", 443, "10.0.0.1"),
        ("Wiki.Internal.:443", "wiki.internal", 443, "10.0.0.1"),
        ("demo-model:8001", "demo-model", 8001, "172.18.0.3"),
    ],
)
def test_operator_may_allow_what_is_private(entry, host, port, address):
    assert AddressPolicy([entry]).permits(host, port, address)
    assert not AddressPolicy(["192.168.0.0/16", "other.internal"]).permits(host, port, address)


@pytest.mark.parametrize(
    ("entry", "host", "port", "address"),
    [
        ("127.0.0.1:8001", "localhost", 8002, "127.0.0.1"),
        ("127.0.0.1", "localhost", 80, "127.0.0.2"),
        ("wiki.internal:443", "wiki.internal", 80, "10.0.0.1"),
        ("wiki.internal", "evil.wiki.internal", 443, "10.0.0.1"),
        ("wiki.internal", "wiki.internal.evil.example", 443, "10.0.0.1"),
    ],
)
def test_egress_allow_list_admits_only_its_entries(entry, host, port, address):
    assert not AddressPolicy([entry]).permits(host, port, address)


@pytest.mark.parametrize(
    "text", ["", "10.0.0.1/8", "10.0.0.0/33", "a b", "http://x", "x:0", "x:65536", "x:", "[::1", "*", "a..b", "x" * 254]
)
def test_invalid_allowed_target_is_refused(text):
    with pytest.raises(ValueError, match=r"."):
        AllowedTarget.parse(text)

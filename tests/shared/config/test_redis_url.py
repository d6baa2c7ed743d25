"""URLs of Redis: which forms are accepted, and what they say."""

import pytest

from stagebus.shared.config.redis_url import Address, RedisUrl
from stagebus.shared.config.settings import Settings
from stagebus.shared.observability.redaction import redact

PASSWORD = "Pa55-that-must-not-show"


@pytest.mark.parametrize("url", ["redis://h", "rediss://u:p@h:1/2?ssl_ca_certs=ca.pem", "unix:///tmp/s?db=1"])
def test_url_of_a_server_is_that_of_redis_py(url: str) -> None:
    assert RedisUrl.parse(url) == RedisUrl(url)


def test_url_of_sentinels_names_them_and_the_service() -> None:
    url = RedisUrl.parse("redis+sentinel://a,b:1,[::1]:2,[fe80::2]/stage%20bus/5")

    assert url.sentinels == (Address("a", 26379), Address("b", 1), Address("::1", 2), Address("fe80::2", 26379))
    assert url.service == "stage bus"
    assert url.server == "redis://node.invalid/5"
    assert [str(address) for address in url.sentinels[1:3]] == ["b:1", "[::1]:2"]


def test_url_of_sentinels_has_two_users_and_the_options_of_redis_py() -> None:
    url = RedisUrl.parse(
        "rediss+sentinel://me:p%2Fp@a/s?ssl_ca_certs=/ca.pem&sentinel_username=watch&sentinel_password=s%2Fs"
    )

    assert url.server == "rediss://me:p%2Fp@node.invalid/0?ssl_ca_certs=%2Fca.pem"
    assert url.scheme == "rediss"
    assert (url.sentinel_username, url.sentinel_password) == ("watch", "s/s")
    assert set(url.secrets) == {"p%2Fp", "p/p", "s/s"}


def test_url_of_a_cluster_names_nodes_and_how_to_connect_to_any() -> None:
    url = RedisUrl.parse("rediss+cluster://me:p%2Fp@a,[::1]:1/?ssl_ca_certs=/ca.pem")

    assert url.nodes == (Address("a", 6379), Address("::1", 1))
    assert url.server_at(url.nodes[1]) == "rediss://me:p%2Fp@[::1]:1/0?ssl_ca_certs=/ca.pem"
    assert RedisUrl.parse("redis+cluster://a").server_at(Address("b", 2)) == "redis://b:2/0"
    assert url.secrets[:2] == ("p%2Fp", "p/p")


@pytest.mark.parametrize(
    "url",
    [
        "", "h:6379", "http://h", "redis://h:port", "redis://h:0", "redis+sentinel://a,b", "redis+sentinel://a,b/",
        "redis+sentinel:///s", "redis+sentinel://a,,b/s", "redis+sentinel://a:0/s", "redis+sentinel://a:x/s",
        "redis+sentinel://a/s/x", "redis+sentinel://a/s/0/1", "redis+sentinel://[::1/s", "redis+sentinel://a/s?ssl",
        "redis+sentinel://a,u:p@b/s/0x", "sentinel://a/s", "redis+cluster://", "redis+cluster://a,,b", "redis+cluster://a/1", "redis+cluster://a:0",
    ],
)  # fmt: skip
def test_other_url_is_refused_without_its_text(url: str) -> None:
    with pytest.raises(ValueError, match="must be a URL such as") as raised:
        RedisUrl.parse(f"{url}#{PASSWORD}" if url else url)

    assert PASSWORD not in str(raised.value)
    assert raised.value.__suppress_context__ or raised.value.__context__ is None


def test_passwords_of_server_and_sentinels_are_masked_in_logs() -> None:
    Settings(redis_url=f"redis+sentinel://u:{PASSWORD}-1@a/s?sentinel_password={PASSWORD}-2")

    assert PASSWORD not in redact(f"{PASSWORD}-1 and {PASSWORD}-2")


def test_setting_takes_a_cluster() -> None:
    settings = Settings(redis_url="redis+cluster://a,b:7000")

    assert len(RedisUrl.parse(settings.redis_url.get_secret_value()).nodes) == 2

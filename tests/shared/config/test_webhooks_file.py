"""The webhooks file: valid ones, the errors of others, and who is told."""

from pathlib import Path

import pytest

from stagebus.shared.config.settings import Settings
from stagebus.shared.config.webhooks_file import WebhookConfig, decode_secret, origin_of
from stagebus.shared.errors import KeyMissing
from stagebus.shared.webhook_errors import BadWebhooks

SECRET = "whsec_" + "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
ENDPOINT = f'[endpoints.billing]\nurl = "https://billing.example/hooks"\nsecret = "{SECRET}"\n'
RUN_URLS = f'[run_urls]\norigins = ["https://app.example", "http://10.0.0.7:8080"]\nsecret = "{SECRET}"\n'


def load(tmp_path: Path, text: str, *, reads_secrets: bool = True) -> WebhookConfig:
    path = tmp_path / "webhooks.toml"
    path.write_text(text)
    return WebhookConfig.from_settings(Settings(webhooks=path), reads_secrets=reads_secrets)


def test_without_a_file_nobody_is_told() -> None:
    webhooks = WebhookConfig.from_settings(Settings())

    assert webhooks.receivers("run.ended", "t", "https://app.example/x") == []
    assert not webhooks.allows_url("https://app.example/x")


def test_endpoints_get_the_events_and_tenants_that_they_want(tmp_path: Path) -> None:
    text = ENDPOINT + 'events = ["run.ended"]\ntenants = ["acme"]\n' + ENDPOINT.replace("billing]", "all]") + RUN_URLS
    webhooks = load(tmp_path, text)

    assert webhooks.receivers("run.ended", "acme", "") == ["billing", "all"]
    assert webhooks.receivers("run.waiting", "acme", "") == ["all"]
    assert webhooks.receivers("run.ended", "other", "https://app.example/a?b=c") == [
        "all",
        "run-url https://app.example",
    ]
    assert webhooks.receivers("run.ended", "other", "https://evil.example/") == ["all"]


def test_target_follows_the_present_file(tmp_path: Path) -> None:
    webhooks = load(tmp_path, ENDPOINT)
    target = webhooks.target_of("billing", "")

    assert target is not None
    assert target.url == "https://billing.example/hooks"
    assert len(target.signing.read_keys()) == 1
    assert webhooks.target_of("removed", "") is None
    assert webhooks.target_of("run-url https://app.example", "https://app.example/x") is None


def test_two_secrets_sign_while_a_receiver_changes(tmp_path: Path) -> None:
    webhooks = load(tmp_path, ENDPOINT + f'previous_secret = "{SECRET[:-4]}AAAA"\n')

    assert len(webhooks.endpoints["billing"].read_keys()) == 2


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("https://app.example/x?y", "https://app.example"),
        ("https://APP.example:443", "https://app.example"),
        ("http://app.example:443/", "http://app.example:443"),
        ("http://[::1]:80/", "http://[::1]"),
    ],
)
def test_origin_of_a_url(url: str, origin: str) -> None:
    assert origin_of(url) == origin


@pytest.mark.parametrize(
    "url",
    [
        "ftp://app.example/", "app.example", "https://", "https://user:pw@app.example/", "https://app.example\\@evil/",
        "https://app.example/#x", "https://app.example /", "https://app.example:0/", "https://app.exämple/",
        "https://app.example:99999/", "https://app.example/" + "a" * 2048, "//app.example/", "https://app.example\n/",
    ],
)  # fmt: skip
def test_malformed_urls_are_rejected(url: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        origin_of(url)


def test_urls_that_only_resemble_an_allowed_origin_are_rejected(tmp_path: Path) -> None:
    webhooks = load(tmp_path, RUN_URLS)
    assert webhooks.allows_url("https://app.example/hooks")
    assert webhooks.allows_url("http://10.0.0.7:8080/hooks")

    for url in ("https://app.example.evil/", "http://app.example/", "https://app.example:444/", "http://10.0.0.7/"):
        assert not webhooks.allows_url(url), url


@pytest.mark.parametrize(
    "secret", ["", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_short", "whsec_%%%", "whsec_" + "A" * 100]
)
def test_malformed_secrets_are_rejected(secret: str) -> None:
    with pytest.raises(KeyMissing, match="openssl rand"):
        decode_secret(secret)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "neither endpoints nor run_urls"),
        (ENDPOINT.replace("https:", "ftp:"), "endpoints.billing.url: must be an http or https URL"),
        (ENDPOINT + 'events = ["run.begun"]\n', "endpoints.billing.events.0"),
        (ENDPOINT + "events = []\n", "endpoints.billing.events"),
        (ENDPOINT + 'tenants = ["a b"]\n', "endpoints.billing.tenants.0"),
        (ENDPOINT + 'header = "x"\n', "unknown key; docs/webhooks.md"),
        (ENDPOINT.replace("billing]", "Bill ing]".replace(" ", "_")), "endpoints.Bill_ing"),
        (ENDPOINT.replace(SECRET, "short"), "endpoints.billing: a webhook's secret must be whsec_"),
        (ENDPOINT.replace(f'"{SECRET}"', '{ env = "NO_SUCH_VARIABLE" }'), "NO_SUCH_VARIABLE is empty or not set"),
        (RUN_URLS.replace("app.example", "app.example/x"), "must be written as an origin, https://app.example"),
        ('[run_urls]\norigins = ["https://app.example"]\n', "run_urls.secret"),
    ],
)
def test_errors_of_a_file_name_the_place(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(BadWebhooks) as caught:
        load(tmp_path, text)

    assert message in str(caught.value)
    assert SECRET not in str(caught.value)


def test_gateways_need_no_secrets(tmp_path: Path) -> None:
    text = ENDPOINT.replace(f'"{SECRET}"', '{ env = "NO_SUCH_VARIABLE" }')

    assert load(tmp_path, text, reads_secrets=False).receivers("run.ended", "t", "") == ["billing"]


def test_digest_shows_different_files_but_not_different_secrets(tmp_path: Path) -> None:
    one = load(tmp_path, ENDPOINT).digest

    assert load(tmp_path, ENDPOINT.replace(SECRET, SECRET[:-4] + "AAAA")).digest == one
    assert load(tmp_path, ENDPOINT + RUN_URLS).digest != one
    assert load(tmp_path, ENDPOINT.replace("/hooks", "/other")).digest != one

import time

from stagebus.gateway.auth.signing import Signer, expiry

OLD, NEW = "the old secret, which was long enough", "the new secret, which is long enough"
LATER = time.time() + 86400  # the suite takes its time between collecting and running


def test_what_was_signed_can_be_read_until_its_time_is_over() -> None:
    signer = Signer("ticket", [NEW])

    assert (signer.verify(signer.sign({"a": 1}, LATER)) or {})["a"] == 1
    assert signer.verify(signer.sign({"a": 1}, time.time() - 2)) is None


def test_secrets_are_changed_one_after_the_other() -> None:
    """The old one stays as the second as long as what it signed is to hold."""
    signed = Signer("ticket", [OLD]).sign({}, LATER)

    assert Signer("ticket", [NEW, OLD]).verify(signed) is not None
    assert Signer("ticket", [NEW]).verify(signed) is None
    assert Signer("ticket", [OLD]).verify(Signer("ticket", [NEW, OLD]).sign({}, LATER)) is None


def test_each_purpose_has_a_key_of_its_own() -> None:
    assert Signer("session", [NEW]).verify(Signer("ticket", [NEW]).sign({}, LATER)) is None


def test_without_a_secret_only_the_signer_itself_reads_it() -> None:
    one, other = Signer("ticket", []), Signer("ticket", [])

    assert one.verify(one.sign({}, LATER)) is not None
    assert other.verify(one.sign({}, LATER)) is None


def test_nothing_outlives_what_it_rests_on() -> None:
    assert expiry(3600) > time.time() + 3500
    assert expiry(3600, 7.0) == 7.0

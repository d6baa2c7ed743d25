import time

from stagebus.shared.runtime.signing import Signer, expiry

OLD, NEW = "the old secret, which was long enough", "the new secret, which is long enough"
LATER = time.time() + 86400  # the suite may take minutes between collection and this test


def test_signer_verifies_a_token_until_it_expires() -> None:
    signer = Signer("ticket", [NEW])

    assert (signer.verify(signer.sign({"a": 1}, LATER)) or {})["a"] == 1
    assert signer.verify(signer.sign({"a": 1}, time.time() - 2)) is None


def test_signer_accepts_the_old_secret_during_rotation() -> None:
    """The old secret stays in second place until what it signed has expired."""
    signed = Signer("ticket", [OLD]).sign({}, LATER)

    assert Signer("ticket", [NEW, OLD]).verify(signed) is not None
    assert Signer("ticket", [NEW]).verify(signed) is None
    assert Signer("ticket", [OLD]).verify(Signer("ticket", [NEW, OLD]).sign({}, LATER)) is None


def test_signer_refuses_tokens_of_another_purpose() -> None:
    assert Signer("session", [NEW]).verify(Signer("ticket", [NEW]).sign({}, LATER)) is None


def test_signer_without_a_secret_verifies_only_its_own_tokens() -> None:
    one, other = Signer("ticket", []), Signer("ticket", [])

    assert one.verify(one.sign({}, LATER)) is not None
    assert other.verify(one.sign({}, LATER)) is None


def test_expiry_is_capped_by_the_limit() -> None:
    assert expiry(3600) > time.time() + 3500
    assert expiry(3600, 7.0) == 7.0

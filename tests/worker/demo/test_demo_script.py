import pytest

from stagebus.worker.demo.demo_script import BadScript, DemoScript, parse_script


@pytest.mark.parametrize("model", ["demo", "demo:", "gpt-4o", "qwen2.5:7b", "demolition:delay_ms=0"])
def test_plain_model_name_has_the_default_script(model):
    assert parse_script(model) == DemoScript()


def test_every_script_key_is_parsed():
    text = (
        "demo:delay_ms=1,first_token_ms=2,tokens=3,calls=4,stall_after=5,cut_after=6,garbage_after=7,error_after=8,"
        "endless=1,no_done,status=503,retry_after=9,fail_times=10,on=synthesis,reasoning"
    )

    assert parse_script(text) == DemoScript(1, 2, 3, 4, 5, 6, 7, 8, True, True, 503, 9, 10, "synthesis", True)


@pytest.mark.parametrize(
    "text",
    [
        "speed=1",
        "delay_ms",
        "delay_ms=-1",
        "delay_ms=1.5",
        "status=200",
        "on=tools",
        "endless=yes",
        "tokens=99999999",
    ],
)
def test_unknown_script_key_or_value_is_named(text):
    with pytest.raises(BadScript, match=f"'{text.partition('=')[0]}'"):
        parse_script(f"demo:{text}")


def test_faults_can_be_removed():
    script = parse_script("demo:delay_ms=1,first_token_ms=2,tokens=3,calls=4,cut_after=6,on=extraction")

    assert script.without_faults() == DemoScript(delay_ms=1, first_token_ms=2, tokens=3, calls=4)
    assert script.applies_to("extraction")
    assert not script.applies_to("synthesis")

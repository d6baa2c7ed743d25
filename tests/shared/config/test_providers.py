"""The providers file: what it may say, where a name leads, and what is said of a file that does not hold."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from stagebus.shared.config.config_file import Secret
from stagebus.shared.config.provider_schema import ProvidersFile
from stagebus.shared.config.providers import DEFAULT_PROVIDER, ModelRoute, Providers, read_file
from stagebus.shared.config.settings import Settings
from stagebus.shared.domain.usage import Cost, Usage
from stagebus.shared.errors import BadProviders, KeyMissing, UnknownModel

KEY = "sk-never-to-be-seen"
TWO = f"""
[providers.openai]
base_url = "https://api.openai.com/v1"
key = "{KEY}"
max_tokens_parameter = "max_completion_tokens"
extra_body = {{ seed = 1, user = "us" }}
models = [
    "gpt-4.1",
    {{ name = "fast", id = "gpt-4.1-mini", fallbacks = ["local/qwen3"], extra_body = {{ seed = 2 }} }},
]

[providers.ollama]
base_url = "http://127.0.0.1:11434/v1"
tools = "prompted"
models = [{{ name = "local/*", id = "*" }}, {{ name = "local/big-*", id = "big-*", tools = "native" }}]

[aliases]
best = ["gpt-4.1", "local/qwen3"]
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "providers.toml"
    path.write_text(text)
    return path


@pytest.fixture
def two(tmp_path: Path) -> Providers:
    return Providers(read_file(write(tmp_path, TWO)))


def test_model_name_is_routed_to_the_provider_with_its_id(two: Providers) -> None:
    route, fallback = two.routes("fast")

    assert (route.provider, route.model_id, route.extra_body) == ("openai", "gpt-4.1-mini", {"seed": 2, "user": "us"})
    assert (fallback.provider, fallback.model_id) == ("ollama", "qwen3")


def test_alias_leads_to_its_models_in_order(two: Providers) -> None:
    assert [route.name for route in two.routes("best")] == ["gpt-4.1", "local/qwen3"]


PRICED = """
currency = "EUR"

[providers.p]
base_url = "http://127.0.0.1:1/v1"
models = [
    { name = "cheap", price = { input = 2, output = 8 } },
    { name = "cached/*", id = "*", price = { input = 2, output = 8, cached = 0.5 } },
    { name = "written", price = { input = 2, output = 8, cached = 0.5, cache_write = 4 } },
    "free",
]
"""


@pytest.mark.parametrize(
    ("name", "usage", "amount"),
    [
        ("cheap", Usage(prompt_tokens=1000, completion_tokens=100, total_tokens=1100), 0.0028),
        ("cheap", Usage(prompt_tokens=1000, completion_tokens=100, total_tokens=1100, cached_tokens=400), 0.0028),
        ("cached/x", Usage(prompt_tokens=1000, completion_tokens=100, total_tokens=1100, cached_tokens=400), 0.0022),
        ("cached/x", Usage(prompt_tokens=1, completion_tokens=0, total_tokens=1, cached_tokens=99), 0.0000005),
        (
            "written",
            Usage(
                prompt_tokens=1000, completion_tokens=0, total_tokens=1000, cached_tokens=400, cache_write_tokens=100
            ),
            0.0016,
        ),
        ("cheap", Usage(prompt_tokens=1000, total_tokens=1000, cache_write_tokens=100), 0.002),
        # Reasoning that is counted in the total alone is written as well.
        ("cheap", Usage(prompt_tokens=1000, completion_tokens=100, total_tokens=2100), 0.0108),
        ("cheap", Usage(), 0),
    ],
)
def test_cost_is_by_the_model_s_own_price(tmp_path: Path, name: str, usage: Usage, amount: float) -> None:
    (route,) = Providers(read_file(write(tmp_path, PRICED))).routes(name)

    assert route.cost(usage) == Cost(amount=amount, currency="EUR")


def test_model_without_a_price_has_no_cost(tmp_path: Path) -> None:
    (route,) = Providers(read_file(write(tmp_path, PRICED))).routes("free")

    assert route.cost(Usage(prompt_tokens=1, total_tokens=1)) is None


@pytest.mark.parametrize("price", ["{ input = -1, output = 1 }", "{ input = 1 }", "{ input = 1, output = nan }", "3"])
def test_invalid_price_is_refused(tmp_path: Path, price: str) -> None:
    with pytest.raises(BadProviders, match="price"):
        read_file(write(tmp_path, PRICED.replace("{ input = 2, output = 8 }", price)))


def test_model_inherits_unset_fields_from_its_provider(two: Providers) -> None:
    assert two.abilities("gpt-4.1").max_tokens_parameter == "max_completion_tokens"
    assert two.abilities("gpt-4.1").tools == "native"
    assert two.abilities("local/qwen3").tools == "prompted"
    assert two.abilities("local/qwen3").max_tokens_parameter == "max_tokens"


def test_first_matching_pattern_wins_and_star_is_not_empty(two: Providers) -> None:
    assert two.routes("local/big-one")[0].model_id == "big-one"
    with pytest.raises(UnknownModel):
        two.routes("local/")


def test_unknown_model_error_lists_the_available_models(two: Providers) -> None:
    with pytest.raises(UnknownModel, match=r"'gpt-5'; available models: best, gpt-4\.1, fast, local/"):
        two.routes("gpt-5")


def test_without_a_file_every_name_goes_to_the_one_provider() -> None:
    (route,) = Providers.from_settings(Settings(openai_base_url="http://127.0.0.1:1/v1")).routes("demo:delay_ms=0,x=*")

    assert (route.provider, route.model_id) == (DEFAULT_PROVIDER, "demo:delay_ms=0,x=*")


def test_first_model_of_the_file_is_the_default(tmp_path: Path) -> None:
    path = write(tmp_path, TWO)

    assert Providers.from_settings(Settings(providers=path)).default_model == "best"
    assert Providers.from_settings(Settings(providers=path, model="fast")).default_model == "fast"
    with pytest.raises(BadProviders, match=r"STAGEBUS_MODEL does not fit .*'gpt-9'"):
        Providers.from_settings(Settings(providers=path, model="gpt-9"))


def test_invalid_base_url_error_names_the_variable() -> None:
    with pytest.raises(BadProviders, match=r"^OPENAI_BASE_URL must be an http"):
        Providers.from_settings(Settings(openai_base_url="localhost:8000/v1"))


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ('base_url = "https://api.openai.com/v1"', "", "providers.openai.base_url: Field required"),
        ("https://api.openai.com/v1", "ftp://x", "providers.openai.base_url: must be an http"),
        ("https://api", "https://me:pw@api", "base_url: must not contain a password"),
        ("openai.com/v1", "openai.com/v1?key=1", "base_url: must not contain ?"),
        ("openai.com/v1", "openai.com/v1/chat/completions", "base_url: must not end in"),
        (f'key = "{KEY}"', "key = { environment = 'X' }", "providers.openai.key.environment: unknown key"),
        (f'key = "{KEY}"', "key = {}", "providers.openai.key: must be one of"),
        (f'key = "{KEY}"', "key = 7", "providers.openai.key: must be a text"),
        (f'key = "{KEY}"', f'kye = "{KEY}"', "providers.openai.kye: unknown key"),
        ("seed = 1", "stream = false", "providers.openai.extra_body: must not set stream"),
        ('tools = "prompted"', 'tools = "maybe"', "providers.ollama.tools: Input should be 'native', 'prompted'"),
        ('"gpt-4.1",', '"gpt-4.1", "gpt-4.1",', "'gpt-4.1' is already served by 'openai'"),
        ('"gpt-4.1",', '{ name = "a", id = "*" },', "id has a * but name has none"),
        ('"gpt-4.1",', '"a*b*",', "must have at most one *"),
        ('fallbacks = ["local/qwen3"]', 'fallbacks = ["nope"]', "models.fast.fallbacks: no provider serves 'nope'"),
        ("best = [", "fast = [", "aliases.fast: is also the name of a model"),
        ('best = ["gpt-4.1"', 'best = ["gpt-9"', "aliases.best: no provider serves 'gpt-9'"),
        ("best = [", "best = ", "not valid TOML: "),
    ],
)  # fmt: skip
def test_invalid_providers_file_error_names_the_key_without_its_value(
    tmp_path, before: str, after: str, words: str
) -> None:
    assert before in TWO
    path = write(tmp_path, TWO.replace(before, after, 1))
    with pytest.raises(BadProviders) as failure:
        read_file(path)

    assert words in str(failure.value)
    assert str(path) in str(failure.value)
    assert KEY not in str(failure.value)
    assert failure.value.__cause__ is None


def test_missing_providers_file_error_names_the_variable(tmp_path: Path) -> None:
    with pytest.raises(BadProviders, match=r"none\.toml, named by STAGEBUS_PROVIDERS, cannot be read"):
        read_file(tmp_path / "none.toml")


def test_key_never_shows(two: Providers) -> None:
    assert KEY not in repr(two.by_name)
    assert KEY not in str(two.by_name["openai"].model_dump())


def test_key_of_a_file_is_read_at_each_use(tmp_path: Path) -> None:
    """A key that is rotated needs no restart."""
    secret = Secret(file=tmp_path / "key")
    for key in ("one", "two"):
        (tmp_path / "key").write_text(f"{key}\n")
        assert secret.read() == key


@pytest.mark.parametrize(
    ("secret", "words"),
    [
        (Secret(env="STAGEBUS_NO_SUCH_KEY"), "the environment variable STAGEBUS_NO_SUCH_KEY is empty or not set"),
        (Secret(file=Path("no/such/file")), "the file no/such/file cannot be read (FileNotFoundError)"),
        (Secret.model_validate("a\nb"), "not printable ASCII"),
    ],
)
def test_missing_secret_error_names_its_place(secret: Secret, words: str) -> None:
    with pytest.raises(KeyMissing) as failure:
        secret.read()

    assert words in str(failure.value)


@pytest.mark.parametrize(
    ("base_url", "model", "api"),
    [
        ("https://api.openai.com/v1", "gpt-5.4", "responses"),
        ("https://eu.api.openai.com/v1", "gpt-5.6-sol", "responses"),
        ("https://api.openai.com/v1", "gpt-5.10", "responses"),
        ("https://api.openai.com/v1", "gpt-6", "responses"),
        ("https://api.openai.com/v1", "gpt-5.1-codex-max", "responses"),
        ("https://api.openai.com/v1", "o3-pro", "responses"),
        ("https://api.openai.com/v1", "gpt-5.3", "chat"),
        ("https://api.openai.com/v1", "gpt-4.1", "chat"),
        ("https://api.openai.com/v1", "gpt-5-mini", "chat"),
        ("https://api.openai.com.example/v1", "gpt-5.6", "chat"),
        ("http://127.0.0.1:8000/v1", "gpt-5.6", "chat"),
    ],
)
def test_models_of_openai_that_need_responses_get_it_by_default(base_url: str, model: str, api: str) -> None:
    def route(**entry: Any) -> ModelRoute:
        models = [{"name": "m", "id": model, **entry}]
        file = {"providers": {"p": {"base_url": base_url, "models": models}}}
        return Providers(ProvidersFile.model_validate(file)).routes("m")[0]

    assert (route().api, route().is_api_stated) == (api, False)
    assert (route(api="messages").api, route(api="messages").is_api_stated) == ("messages", True)
    settings = Settings(openai_base_url=base_url, provider_api="responses")
    assert Providers.from_settings(settings).routes(model)[0].api == "responses"


def test_api_of_a_model_takes_precedence_over_its_provider_s() -> None:
    models = ["a", {"name": "b", "api": "chat"}]
    file = {"providers": {"p": {"base_url": "http://x/v1", "api": "messages", "models": models}}}
    providers = Providers(ProvidersFile.model_validate(file))

    assert [providers.routes(name)[0].api for name in "ab"] == ["messages", "chat"]
    assert providers.apis() == {"messages", "chat"}
    assert providers.abilities("a").api == "messages"
    assert providers.routes("a")[0].ignored(["seed", "top_p", "verbosity"]) == ["seed", "verbosity"]


@pytest.mark.parametrize(
    "entry", [{"base_url": "http://x/v1/messages"}, {"path": "x"}, {"path": "/x?key=y"}, {"path": "/x#y"}, {"api": "x"}]
)
def test_invalid_path_or_api_is_refused(entry: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        ProvidersFile.model_validate({"providers": {"p": {"base_url": "http://x/v1", "models": ["m"], **entry}}})

"""Reads and validates TOML configuration files, and the secrets in them.

Messages contain no values of a file, since a value may be a key.
Spec: https://toml.io/en/v1.0.0
"""

import os
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator
from pydantic_core import ErrorDetails

from stagebus.shared.errors import KeyMissing, StagebusError
from stagebus.shared.observability.redaction import remember

FILE_MAX_BYTES: Final = 2**20
ERRORS_MAX: Final = 20
KEY_MAX_BYTES: Final = 16 * 2**10

M = TypeVar("M", bound=BaseModel)


class ConfigEntry(BaseModel):
    """A table of a file. Unknown keys are rejected, and errors never contain its values."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, allow_inf_nan=False)


class Secret(ConfigEntry):
    """A secret value, or the place where it is."""

    value: SecretStr | None = None
    env: str | None = Field(default=None, min_length=1, description="name of an environment variable of the worker")
    file: Path | None = Field(default=None, description="file on the worker's machine; read at each use")

    @model_validator(mode="before")
    @classmethod
    def _take_text(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"value": value}
        if isinstance(value, dict | Secret):
            return value
        raise ValueError('must be a text, { env = "NAME" } or { file = "path" }')

    @model_validator(mode="after")
    def _check_one(self) -> Self:
        if sum(part is not None for part in (self.value, self.env, self.file)) != 1:
            raise ValueError('must be one of: a text, { env = "NAME" }, { file = "path" }')
        return self

    def read(self) -> str:
        """Returns the current value, which logs mask from now on. Reads a file each time, so a key can change.

        Raises:
            KeyMissing: the variable is not set, or the file cannot be read.
        """
        if self.env is not None:
            text = os.environ.get(self.env, "")
            where = f"the environment variable {self.env}"
        elif self.file is not None:
            where = f"the file {self.file}"
            try:
                with self.file.open("rb") as file:
                    text = file.read(KEY_MAX_BYTES).decode()
            except (OSError, UnicodeDecodeError) as exc:
                raise KeyMissing(f"{where} cannot be read ({type(exc).__name__})") from None
        else:
            assert self.value is not None, "one of three is set"
            text, where = self.value.get_secret_value(), "the value in the file"
        text = text.strip()
        if not text or not text.isascii() or not text.isprintable():
            raise KeyMissing(f"{where} is {'empty or not set' if not text else 'not printable ASCII'}")
        remember(text)
        return text


def find_unset(value: object, where: str = "") -> Iterator[str]:
    """Yields a line for each secret of a file's content whose environment variable is empty or not set."""
    if isinstance(value, Secret):
        if value.env is not None and not os.environ.get(value.env, "").strip():
            yield f"{where}: the environment variable {value.env} is empty or not set"
        return
    if isinstance(value, BaseModel):
        value = {name: getattr(value, name) for name in type(value).model_fields}
    elif isinstance(value, list | tuple):
        value = dict(enumerate(value))
    for name, part in value.items() if isinstance(value, Mapping) else ():
        yield from find_unset(part, f"{where}.{name}" if where else str(name))


class ConfigKind(NamedTuple):
    """A kind of file: the variable with its path, the page about it, and the error for an invalid file."""

    variable: str
    page: str
    error: type[StagebusError]

    def read(self, path: Path, model: type[M]) -> M:
        """Reads and validates a file; raises `error` if it is invalid."""
        try:
            with path.open("rb") as file:
                raw = file.read(FILE_MAX_BYTES + 1)
            if len(raw) > FILE_MAX_BYTES:
                raise self.error(f"{path} is larger than {FILE_MAX_BYTES} bytes; is it the right file?")
            return model.model_validate(tomllib.loads(raw.decode()))
        except OSError as exc:
            reason = exc.strerror or type(exc).__name__
            raise self.error(f"{path}, named by {self.variable}, cannot be read ({reason})") from None
        except ValidationError as exc:
            errors = exc.errors(include_input=False, include_url=False)
            raise self.invalid(path, (self._in_words(error) for error in errors)) from None
        except ValueError as exc:  # errors of TOML and UTF-8 contain a position, but no value
            reason = "not UTF-8" if isinstance(exc, UnicodeDecodeError) else str(exc)
            raise self.invalid(path, [f"not valid TOML: {reason}"]) from None

    def check_variables(self, path: Path, content: BaseModel) -> None:
        """Raises `error` if environment variables that the file names are empty or not set."""
        if faults := list(find_unset(content)):
            raise self.invalid(path, faults)

    def invalid(self, path: Path, reasons: Iterable[str]) -> StagebusError:
        """Creates the error that lists the faults of a file."""
        lines = list(reasons)
        more = [f"and {len(lines) - ERRORS_MAX} more"] if len(lines) > ERRORS_MAX else []
        return self.error("\n  ".join([f"{path} is invalid:", *lines[:ERRORS_MAX], *more]))

    def _in_words(self, error: ErrorDetails) -> str:
        """Returns a line such as `providers.openai.models.1.id: …`, with the message of pydantic or of our validator."""
        where = ".".join(str(part) for part in error["loc"])
        if error["type"] == "extra_forbidden":
            return f"{where}: unknown key; {self.page} lists the keys"
        text = str(error["msg"]).removeprefix("Value error, ")
        return f"{where}: {text}" if where else text

"""Files in which an operator describes what is too much for a variable, and secrets in them.

No value out of such a file gets into a message: it may be a key.
Spec: https://toml.io/en/v1.0.0
"""

import os
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, NamedTuple, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator
from pydantic_core import ErrorDetails

from stagebus.shared.errors import KeyMissing, StagebusError

FILE_MAX_BYTES: Final = 2**20
ERRORS_MAX: Final = 20
KEY_MAX_BYTES: Final = 16 * 2**10

M = TypeVar("M", bound=BaseModel)


class ConfigEntry(BaseModel):
    """A table of a file: unknown keys are refused, and what stands in it is never repeated in an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, allow_inf_nan=False)


class Secret(ConfigEntry):
    """A value that is not for eyes: itself, or where it is."""

    value: SecretStr | None = None
    env: str | None = Field(default=None, min_length=1, description="an environment variable of the worker's")
    file: Path | None = Field(default=None, description="a file of the worker's machine; read at each use")

    @model_validator(mode="before")
    @classmethod
    def _take_text(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"value": value}
        if isinstance(value, dict | Secret):
            return value
        raise ValueError('is a text, { env = "NAME" } or { file = "path" }')

    @model_validator(mode="after")
    def _check_one(self) -> Self:
        if sum(part is not None for part in (self.value, self.env, self.file)) != 1:
            raise ValueError('is one of: a text, { env = "NAME" }, { file = "path" }')
        return self

    def read(self) -> str:
        """The value as it is now: a file is read each time, so that a key can change while workers run.

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
            text, where = self.value.get_secret_value(), "the file's value"
        text = text.strip()
        if not text or not text.isascii() or not text.isprintable():
            raise KeyMissing(f"{where} is {'empty or not set' if not text else 'no printable ASCII text'}")
        return text


class ConfigKind(NamedTuple):
    """A kind of file: the variable that names it, the page about it, and the error of one that does not hold."""

    variable: str
    page: str
    error: type[StagebusError]

    def read(self, path: Path, model: type[M]) -> M:
        """Read and check a file; raises `error` where it does not hold."""
        try:
            with path.open("rb") as file:
                raw = file.read(FILE_MAX_BYTES + 1)
            if len(raw) > FILE_MAX_BYTES:
                raise self.error(f"{path} has more than {FILE_MAX_BYTES} bytes; is it the file that you meant?")
            return model.model_validate(tomllib.loads(raw.decode()))
        except OSError as exc:
            reason = exc.strerror or type(exc).__name__
            raise self.error(f"{path} cannot be read ({reason}); {self.variable} names it") from None
        except ValidationError as exc:
            errors = exc.errors(include_input=False, include_url=False)
            raise self.bad(path, (self._in_words(error) for error in errors)) from None
        except ValueError as exc:  # TOML's own errors and those of UTF-8 name a place, and no value
            place = "it is no UTF-8" if isinstance(exc, UnicodeDecodeError) else str(exc)
            raise self.bad(path, [f"no TOML: {place}"]) from None

    def bad(self, path: Path, wrong: Iterable[str]) -> StagebusError:
        """The error that says all that is wrong with a file."""
        lines = list(wrong)
        more = [f"and {len(lines) - ERRORS_MAX} more"] if len(lines) > ERRORS_MAX else []
        return self.error("\n  ".join([f"{path} does not hold:", *lines[:ERRORS_MAX], *more]))

    def _in_words(self, error: ErrorDetails) -> str:
        """`providers.openai.models.1.id: …`; pydantic's own sentence, or ours out of a validator."""
        where = ".".join(str(part) for part in error["loc"])
        if error["type"] == "extra_forbidden":
            return f"{where}: there is no such key; {self.page} lists those that there are"
        text = str(error["msg"]).removeprefix("Value error, ")
        return f"{where}: {text}" if where else text

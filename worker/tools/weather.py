"""The built-in tool `get_weather`. It uses Open-Meteo, which needs no API key.

    GET /v1/search?name=Paris&count=1…                     finds the place
    GET /v1/forecast?latitude=…&longitude=…&current=…      current weather there

Spec: https://open-meteo.com/en/docs/geocoding-api
Spec: https://open-meteo.com/en/docs
"""

from collections.abc import Mapping
from typing import Any, Final

import httpx2
import orjson

from stagebus.shared.config.settings import Settings
from stagebus.shared.errors import BadTool
from stagebus.worker.tools.egress import Egress, EgressRefused
from stagebus.worker.tools.tool import ToolError

_TIMEOUT_S: Final = 10.0
# The number of places to search if the model also names a country or region.
_CANDIDATES: Final = 10
_CITY_MAX_CHARS: Final = 200

_CURRENT: Final = "temperature_2m,relative_humidity_2m,apparent_temperature,weather_code,wind_speed_10m"

# The codes of WMO table 4677 that Open-Meteo uses.
_CONDITIONS: Final[Mapping[int, str]] = {
    0: "clear sky",
    1: "mostly clear sky",
    2: "partly cloudy sky",
    3: "overcast sky",
    45: "fog",
    48: "fog with rime",
    51: "light drizzle",
    53: "drizzle",
    55: "heavy drizzle",
    56: "light freezing drizzle",
    57: "freezing drizzle",
    61: "light rain",
    63: "rain",
    65: "heavy rain",
    66: "light freezing rain",
    67: "freezing rain",
    71: "light snow",
    73: "snow",
    75: "heavy snow",
    77: "snow grains",
    80: "light rain showers",
    81: "rain showers",
    82: "violent rain showers",
    85: "light snow showers",
    86: "heavy snow showers",
    95: "thunderstorm",
    96: "thunderstorm with light hail",
    99: "thunderstorm with heavy hail",
}


class Weather:
    """A client of Open-Meteo, or of a service with the same API."""

    def __init__(self, geocoding_url: str, forecast_url: str, egress: Egress) -> None:
        """Raises BadTool if one of the URLs is invalid."""
        self._geocoding_url = geocoding_url.rstrip("/")
        self._forecast_url = forecast_url.rstrip("/")
        try:
            self._client = egress.client([geocoding_url, forecast_url], timeout_s=_TIMEOUT_S)
        except ValueError as exc:
            raise BadTool(f"STAGEBUS_WEATHER_GEOCODING_URL or STAGEBUS_WEATHER_FORECAST_URL: {exc}") from exc

    @classmethod
    def from_settings(cls, settings: Settings, egress: Egress) -> "Weather":
        """Creates a client for the URLs of the settings."""
        return cls(settings.weather_geocoding_url, settings.weather_forecast_url, egress)

    async def aclose(self) -> None:
        """Closes the connections."""
        await self._client.aclose()

    async def get_weather(self, city: str) -> dict[str, Any]:
        """Get the current weather in a city: temperature, conditions, humidity and wind.

        Args:
            city: The city's name, such as "Paris"; a country may follow, as in "Paris, France".
        """
        place = await self._find(city.strip()[:_CITY_MAX_CHARS])
        where = {"latitude": place["latitude"], "longitude": place["longitude"]}
        answer = await self._get(f"{self._forecast_url}/v1/forecast", where | {"current": _CURRENT, "timezone": "auto"})
        current = answer.get("current")
        if not isinstance(current, dict) or "temperature_2m" not in current:
            raise ToolError(f"the weather service has no current weather for {city!r}")
        return {
            "place": ", ".join(str(place[part]) for part in ("name", "country") if place.get(part)),
            "conditions": _CONDITIONS.get(current.get("weather_code", -1), "unknown conditions"),
            "temperature_c": current["temperature_2m"],
            "feels_like_c": current.get("apparent_temperature"),
            "humidity_percent": current.get("relative_humidity_2m"),
            "wind_kmh": current.get("wind_speed_10m"),
            "local_time": current.get("time"),
        }

    async def _find(self, city: str) -> dict[str, Any]:
        """Returns the largest place of this name, or the one in the named country or region."""
        name, _, region = (part.strip() for part in city.partition(","))
        query = {"name": name, "count": _CANDIDATES if region else 1, "language": "en", "format": "json"}
        places = (await self._get(f"{self._geocoding_url}/v1/search", query)).get("results")
        if not isinstance(places, list) or not places:
            raise ToolError(f"there is no place called {city!r}")
        wanted = region.casefold()
        named = (place for place in places if wanted and wanted in _regions_of(place))
        found = next(named, places[0])
        if not isinstance(found, dict) or not {"latitude", "longitude"} <= found.keys():
            raise ToolError("the weather service returned an unexpected response")
        return found

    async def _get(self, url: str, query: Mapping[str, str | int | float]) -> dict[str, Any]:
        try:
            response = await self._client.get(url, params=query)
            response.raise_for_status()
            answer = orjson.loads(response.content)
        except httpx2.HTTPStatusError as exc:
            raise ToolError(f"the weather service answered {exc.response.status_code}") from exc
        except httpx2.TimeoutException as exc:
            raise ToolError(f"the weather service did not answer within {_TIMEOUT_S:g} s") from exc
        except EgressRefused as exc:
            raise ToolError(f"the weather service may not be reached: {exc}") from exc
        except httpx2.HTTPError as exc:
            raise ToolError("the weather service cannot be reached") from exc
        except orjson.JSONDecodeError as exc:
            raise ToolError("the weather service returned an unexpected response") from exc
        return answer if isinstance(answer, dict) else {}


def _regions_of(place: Mapping[str, Any]) -> set[str]:
    names = ("country", "country_code", "admin1", "admin2")
    return {str(place[name]).casefold() for name in names if place.get(name)}

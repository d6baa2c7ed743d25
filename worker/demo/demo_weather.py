"""The demo weather: a server with Open-Meteo's API and values that depend only on the place.

    GET /v1/search?name=Paris&count=1      {"results": [{"name": "Paris", "latitude": 48.85341, …}]}
    GET /v1/forecast?latitude=…&current=…  {"current": {"temperature_2m": 14.2, …}, "current_units": {…}}

A name in `UNKNOWN` has no results, in the form in which Open-Meteo answers.
Spec: https://open-meteo.com/en/docs/geocoding-api
Spec: https://open-meteo.com/en/docs
"""

from collections.abc import Callable, Mapping
from hashlib import blake2s
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

UNKNOWN: Final = frozenset({"atlantis", "nowhere", "xanadu"})

# Well-known places have real coordinates: latitude, longitude, country.
_PLACES: Final[Mapping[str, tuple[float, float, str]]] = {
    "berlin": (52.52437, 13.41053, "Germany"),
    "lima": (-12.04318, -77.02824, "Peru"),
    "london": (51.50853, -0.12574, "United Kingdom"),
    "mumbai": (19.07283, 72.88261, "India"),
    "nairobi": (-1.28333, 36.81667, "Kenya"),
    "new york": (40.71427, -74.00597, "United States"),
    "oslo": (59.91273, 10.74609, "Norway"),
    "paris": (48.85341, 2.3488, "France"),
    "sydney": (-33.86785, 151.20732, "Australia"),
    "tokyo": (35.6895, 139.69171, "Japan"),
}
_WEATHER_CODES: Final = (0, 1, 2, 3, 45, 51, 61, 63, 71, 80, 95)
_NAME_CHARS_MIN: Final = 2  # as Open-Meteo requires


def _derive(seed: str, low: float, high: float, digits: int = 1) -> float:
    """Returns a number between two bounds. The same seed always gives the same number."""
    share = int.from_bytes(blake2s(seed.encode(), digest_size=4).digest()) / 2**32
    return round(low + share * (high - low), digits)


# The variables of the forecast: unit, and value at a place.
_VARIABLES: Final[Mapping[str, tuple[str, Callable[[str], float]]]] = {
    "temperature_2m": ("°C", lambda place: _derive(f"t{place}", -5, 30)),
    "apparent_temperature": ("°C", lambda place: round(_derive(f"t{place}", -5, 30) - _derive(f"a{place}", 0, 3), 1)),
    "relative_humidity_2m": ("%", lambda place: _derive(f"h{place}", 30, 95, 0)),
    "weather_code": (
        "wmo code",
        lambda place: _WEATHER_CODES[int(_derive(f"c{place}", 0, len(_WEATHER_CODES) - 1, 0))],
    ),
    "wind_speed_10m": ("km/h", lambda place: _derive(f"w{place}", 0, 40)),
}


async def _search(request: Request) -> Response:
    """GET /v1/search: one place of that name."""
    name = request.query_params.get("name", "").strip()
    if len(name) < _NAME_CHARS_MIN or name.lower() in UNKNOWN:
        return JSONResponse({"generationtime_ms": 0.1})
    seed = name.lower()
    latitude, longitude, country = _PLACES.get(
        seed, (_derive(f"lat{seed}", -55, 65, 5), _derive(f"lon{seed}", -180, 180, 5), "Demoland")
    )
    result = {
        "id": int.from_bytes(blake2s(seed.encode(), digest_size=4).digest()),
        "name": name if any(map(str.isupper, name)) else name.title(),
        "latitude": latitude,
        "longitude": longitude,
        "country": country,
        "timezone": "GMT",
    }
    return JSONResponse({"results": [result], "generationtime_ms": 0.1})


async def _forecast(request: Request) -> Response:
    """GET /v1/forecast: the current weather, always the same for a place."""
    query = request.query_params
    try:
        latitude, longitude = float(query["latitude"]), float(query["longitude"])
    except (KeyError, ValueError):
        return _bad_request("Parameter 'latitude' and 'longitude' must be numbers")
    asked = [name for name in query.get("current", "").split(",") if name]
    unknown = [name for name in asked if name not in _VARIABLES]
    if unknown:
        return _bad_request(
            f"Cannot initialize SurfacePressureAndHeightVariable from invalid String value {unknown[0]}"
        )
    place = f"{latitude:.2f},{longitude:.2f}"
    units = {"time": "iso8601", "interval": "seconds"} | {name: _VARIABLES[name][0] for name in asked}
    current: dict[str, Any] = {"time": "2025-01-01T12:00", "interval": 900}
    current |= {name: _VARIABLES[name][1](place) for name in asked}
    return JSONResponse(
        {
            "latitude": latitude,
            "longitude": longitude,
            "generationtime_ms": 0.1,
            "utc_offset_seconds": 0,
            "timezone": "GMT",
            "timezone_abbreviation": "GMT",
            "elevation": 38.0,
            "current_units": units,
            "current": current,
        }
    )


def _bad_request(reason: str) -> Response:
    return JSONResponse({"error": True, "reason": reason}, status_code=400)


ROUTES: Final = [Route("/v1/search", _search), Route("/v1/forecast", _forecast)]

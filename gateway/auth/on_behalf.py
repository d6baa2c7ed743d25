"""The user for whom a request is made, as a header names it.

    Authorization: Bearer sbk_…
    Stagebus-User: alice@example.com       UTF-8

An application's server has one key and many users. The scope `on_behalf` lets it say which of them makes a request.
"""

from starlette.requests import Request

from stagebus.gateway.auth.principal import Principal
from stagebus.shared.access_errors import USER_HEADER, BadUser, NotOnBehalf
from stagebus.shared.domain.tenants import USER_MAX_CHARS, Scope, is_user


def act_for_user(principal: Principal, request: Request) -> Principal:
    """Returns the principal with the user that the request names, if it names one.

    Raises:
        NotOnBehalf: the principal may not act for others.
        BadUser: the header is no user's name.
    """
    values = request.headers.getlist(USER_HEADER)
    if not values:
        return principal
    if Scope.ON_BEHALF not in principal.scopes:
        raise NotOnBehalf
    user = _decode(values[0]) if len(values) == 1 else ""
    if not is_user(user):
        raise BadUser(USER_MAX_CHARS)
    return principal.acting_for(user)


def _decode(value: str) -> str:
    try:
        return value.encode("latin-1").decode()  # Starlette reads headers as Latin-1
    except UnicodeDecodeError:
        return ""

"""A cookie jar for HTTP clients whose requests belong to several tenants."""

from http.cookiejar import CookieJar, DefaultCookiePolicy


class RefusingCookieJar(CookieJar):
    """Keeps no cookie: the session that a server opens for one tenant's request must not serve another's."""

    def __init__(self) -> None:
        super().__init__(DefaultCookiePolicy(allowed_domains=[]))

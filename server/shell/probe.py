"""`python -m server.shell.probe`: exits with 0 when the server of this container is healthy."""

import http.client
import ipaddress
import ssl
import sys
from collections.abc import Mapping

from server.settings import SettingsError, load_settings

_TIMEOUT_S = 4.0


def main(flags: Mapping[str, object]) -> int:
    """Ask `/health` of the server that the environment describes."""
    try:
        settings = load_settings(flags)
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    connection: http.client.HTTPConnection
    host = reachable(settings.host)
    if settings.ssl_certfile is None:
        connection = http.client.HTTPConnection(host, settings.port, timeout=_TIMEOUT_S)
    else:
        # The certificate is made out to the name that clients use, not to this address.
        unchecked = ssl._create_unverified_context()
        connection = http.client.HTTPSConnection(
            host, settings.port, timeout=_TIMEOUT_S, context=unchecked
        )
    try:
        connection.request("GET", "/health")
        return 0 if connection.getresponse().status == 200 else 1
    except OSError:
        return 1
    finally:
        connection.close()


def reachable(host: str) -> str:
    """The address at which a server that listens on `host` can be asked from its own machine."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host or "127.0.0.1"
    if not address.is_unspecified:
        return host
    return "::1" if address.version == 6 else "127.0.0.1"


if __name__ == "__main__":
    raise SystemExit(main({}))

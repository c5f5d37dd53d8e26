"""`python -m server.shell.probe`: exits with 0 when the server of this container is healthy."""

import http.client
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
    if settings.ssl_certfile is None:
        connection = http.client.HTTPConnection("127.0.0.1", settings.port, timeout=_TIMEOUT_S)
    else:
        # The certificate is made out to the name that clients use, not to this address.
        unchecked = ssl._create_unverified_context()
        connection = http.client.HTTPSConnection(
            "127.0.0.1", settings.port, timeout=_TIMEOUT_S, context=unchecked
        )
    try:
        connection.request("GET", "/health")
        return 0 if connection.getresponse().status == 200 else 1
    except OSError:
        return 1
    finally:
        connection.close()


if __name__ == "__main__":
    raise SystemExit(main({}))

"""The version of the installed package."""

from importlib.metadata import PackageNotFoundError, version


def package_version() -> str:
    """The version as package managers write it; `0+unknown` where the package is not installed."""
    try:
        return version("estuary-server")
    except PackageNotFoundError:
        return "0+unknown"

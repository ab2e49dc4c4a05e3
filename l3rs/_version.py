"""The version of l3rs that is installed."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("l3rs")
except PackageNotFoundError:  # a source tree that is not installed
    __version__ = "0"

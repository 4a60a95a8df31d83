"""Connect to a Ray cluster: its address, and the environment in which Ray reaches it.

Ray is imported when a cluster is requested.
"""

from __future__ import annotations

import importlib
import logging
import os
import socket
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from featuredb.errors import IngestError, MissingExtraError

_ANSWER_S = 10.0
"""How long a cluster may take to accept a connection. Ray itself retries for minutes."""

_LOCAL = "local"

_AUTO = "auto"

_LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")

LOOPBACK_ENVIRONMENT = {
    # Makes Ray stay on loopback. Otherwise it replaces 127.0.0.1 by the machine's address in its
    # network, to listen there and to connect to.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
}
"""For a cluster at a loopback address."""

LOCAL_ENVIRONMENT = LOOPBACK_ENVIRONMENT | {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
"""For starting a cluster of this machine."""


@contextmanager
def connection(address: str | None) -> Iterator[Any]:
    """Yield the module `ray`, connected for the duration of the block.

    Raises:
        MissingExtraError: If Ray is not installed.
        IngestError: If no cluster answers.
    """
    where = _resolve(address)
    with _environment(_variables(where)):
        try:
            ray = importlib.import_module("ray")
        except ModuleNotFoundError as error:
            raise MissingExtraError(
                "--engine ray needs ray, which is not installed: pip install 'featuredb[ray]'"
            ) from error
        if ray.is_initialized():
            yield ray
            return
        _apply_loopback_switch()
        _check_answer(ray, where)
        # Show only our own messages. Workers send theirs through the driver.
        quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
        alone = {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}
        try:
            with warnings.catch_warnings():
                # Ray forks, but its children exec other programs immediately.
                warnings.filterwarnings("ignore", "lancedb fork support", RuntimeWarning)
                ray.init(address=where, **quiet, **(alone if where == _LOCAL else {}))
        except (ConnectionError, RuntimeError, ValueError) as error:
            if "AuthenticationError" in str(error.__cause__):
                raise IngestError(
                    f"the Ray cluster at {where} wants a token: set RAY_AUTH_MODE=token, and "
                    "RAY_AUTH_TOKEN unless it is in ~/.ray/auth_token"
                ) from error
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise IngestError(
                f"no Ray cluster at {where} ({lines[0].rstrip('.')}): check --ray-address"
            ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _apply_loopback_switch() -> None:
    """Ray reads the switch when it is imported, which may have happened before it was set."""
    constants = vars(importlib.import_module("ray._private.ray_constants"))
    switch = os.environ.get("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER")
    if switch is not None and "ENABLE_RAY_CLUSTER" in constants:
        constants["ENABLE_RAY_CLUSTER"] = switch.lower() in ("1", "true")


def _resolve(address: str | None) -> str:
    """Host and port, ``local``, or an address that only Ray understands."""
    named = os.environ.get("RAY_ADDRESS")
    where = address or named or _LOCAL
    if where != _AUTO:
        return where
    if named and named != _AUTO:
        return named
    try:
        # Written by `ray start`. Ray cannot be asked, since the address decides how to import it.
        folder = Path(os.environ.get("RAY_TMPDIR") or "/tmp")
        return (folder / "ray" / "ray_current_cluster").read_text().strip() or where
    except OSError:
        return where


def _endpoint(where: str) -> tuple[str, int] | None:
    host, _, port = where.rpartition(":")
    if not host or "/" in host or not port.isdecimal():
        return None
    return host.strip("[]"), int(port)


def _variables(where: str) -> dict[str, str]:
    """Environment variables with which Ray reaches a cluster."""
    if where == _LOCAL:
        return LOCAL_ENVIRONMENT
    endpoint = _endpoint(where)
    if endpoint and endpoint[0] in _LOOPBACK_HOSTS and not _connect_error(*endpoint):
        return LOOPBACK_ENVIRONMENT
    return {}


def _connect_error(host: str, port: int) -> str | None:
    """Why a connection fails, or None if it succeeds."""
    try:
        socket.create_connection((host, port), _ANSWER_S).close()
    except (OSError, OverflowError) as error:
        return getattr(error, "strerror", None) or str(error)
    return None


def _check_answer(ray: Any, where: str) -> None:
    """Raise `IngestError` if nothing answers at the address."""
    endpoint = _endpoint(where)
    if endpoint is None:
        return
    host, port = endpoint
    if host in _LOOPBACK_HOSTS:
        # The address Ray connects to instead, unless the environment prevents it.
        host = ray.util.get_node_ip_address()
    if why := _connect_error(host, port):
        seen = "" if host == endpoint[0] else f" at {host}"
        raise IngestError(f"no Ray cluster at {where} ({why}{seen}): check --ray-address")


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

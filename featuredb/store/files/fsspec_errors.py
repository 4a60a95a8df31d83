"""fsspec's file system of a URL: opening it, and its errors as one clear `RemoteError`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from featuredb.errors import FeatureDBError, MissingExtraError, RemoteError, first_line


def open_file_system(url: str, options: Mapping[str, Any]) -> tuple[Any, str]:
    """The file system of a URL, made with `options`, and the URL's path in it.

    Raises `MissingExtraError` when the package for its scheme is not installed, `RemoteError` for
    a scheme that fsspec does not know.
    """
    scheme = url.partition("://")[0]
    try:
        from fsspec.core import url_to_fs

        with remote_errors(url):
            fs, base = url_to_fs(url, **options)
    except RemoteError as refused:
        cause = refused.__cause__
        if isinstance(cause, ImportError):
            raise _missing(url, scheme, cause) from cause
        if isinstance(cause, ValueError) and "Protocol not known" in str(cause):
            raise RemoteError(f"{url} cannot be read: fsspec knows no {scheme}://") from cause
        raise
    except ImportError as error:
        raise _missing(url, scheme, error) from error
    return fs, str(base).rstrip("/")


@contextmanager
def remote_errors(url: str) -> Iterator[None]:
    """Turn errors of the server and the network into one clear `RemoteError`.

    FileNotFoundError passes: only the caller knows what a missing file means.
    """
    try:
        yield
    except (FeatureDBError, FileNotFoundError):
        raise
    except Exception as error:  # every file system has its own classes
        raise _refused(url, error) from error


def _refused(url: str, error: Exception) -> RemoteError:
    names = {kind.__name__ for kind in type(error).__mro__}
    message = first_line(error)
    if names & {"NoCredentialsError", "PartialCredentialsError"}:
        return RemoteError(
            f"no credentials for {url} ({message}): set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; for a public bucket FSSPEC_S3_ANON=true"
        )
    if isinstance(error, PermissionError) or getattr(error, "status", None) in (401, 403):
        return RemoteError(
            f"{url} refuses access ({message}): check the credentials and their rights"
        )
    if isinstance(error, ConnectionError | TimeoutError) or names & {
        "EndpointConnectionError",
        "ClientConnectorError",
        "ConnectTimeoutError",
        "HTTPClientError",
        "ServerTimeoutError",
        "FSTimeoutError",
    }:
        return RemoteError(
            f"{url} cannot be reached ({message}): check the network, and AWS_ENDPOINT_URL for a "
            "server of your own"
        )
    if isinstance(error, NotImplementedError):
        return RemoteError(f"{url} cannot be used this way: its file system only reads")
    return RemoteError(f"{url} does not answer as it should ({type(error).__name__}: {message})")


def _missing(url: str, scheme: str, error: ImportError) -> MissingExtraError:
    if scheme in ("s3", "s3a") or scheme.endswith(("::s3", "::s3a")):
        return MissingExtraError(
            f"{url} needs s3fs, which is not installed: pip install 'featuredb[s3]'"
        )
    message = first_line(error)
    return MissingExtraError(f"{scheme}:// needs another package: {message}")

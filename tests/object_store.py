"""An object store on loopback that counts requests: moto's S3 server."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pytest

BUCKET = "shelf"


class Request(NamedTuple):
    """One request. range: the header, such as ``bytes=0-99``, or None."""

    method: str
    path: str
    range: str | None


@dataclass
class ObjectStore:
    """The server. requests: all since `counted` began."""

    endpoint: str
    requests: list[Request] = field(default_factory=list)

    def url(self, name: str) -> str:
        return f"s3://{BUCKET}/{name}"

    @contextmanager
    def counted(self) -> Iterator[list[Request]]:
        """The requests made inside the block."""
        self.requests.clear()
        asked: list[Request] = []
        yield asked
        asked += self.requests

    @staticmethod
    def forget() -> None:
        """Make fsspec read the environment again: it caches its file systems."""
        import s3fs

        s3fs.S3FileSystem.clear_instance_cache()

    def copy(self, folder: Path, name: str, access: str = "public-read") -> str:
        """Put a database's files there, without `featuredb push`. Returns its URL.

        access: the rights of unsigned requests.
        """
        for path in folder.rglob("*"):
            if path.is_file() and path.name != "LOCK":
                key = f"{name}/{path.relative_to(folder).as_posix()}"
                body = path.read_bytes()
                client(self.endpoint).put_object(Bucket=BUCKET, Key=key, Body=body, ACL=access)
        return self.url(name)

    def keys(self, name: str) -> dict[str, int]:
        """The files of a database there, with their sizes."""
        listed = client(self.endpoint).list_objects_v2(Bucket=BUCKET, Prefix=f"{name}/")
        return {o["Key"].removeprefix(f"{name}/"): o["Size"] for o in listed.get("Contents", [])}

    def remove(self, name: str, key: str) -> None:
        client(self.endpoint).delete_object(Bucket=BUCKET, Key=f"{name}/{key}")

    def write(self, name: str, key: str, data: bytes) -> None:
        client(self.endpoint).put_object(Bucket=BUCKET, Key=f"{name}/{key}", Body=data)


def client(endpoint: str) -> Any:
    import boto3

    return boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1")


@contextmanager
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    """A server with one empty bucket, set in the environment's AWS variables."""
    from moto.moto_server.werkzeug_app import (
        DomainDispatcherApplication,
        MotoRequestHandler,
        create_backend_app,
    )
    from werkzeug.serving import make_server

    store = ObjectStore("")
    application = DomainDispatcherApplication(create_backend_app)

    def counting(environ: dict[str, Any], start: Any) -> Any:
        asked = Request(environ["REQUEST_METHOD"], environ["PATH_INFO"], environ.get("HTTP_RANGE"))
        store.requests.append(asked)
        return application(environ, start)

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = make_server("127.0.0.1", 0, counting, True, request_handler=MotoRequestHandler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    store.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", store.endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    store.forget()
    client(store.endpoint).create_bucket(Bucket=BUCKET)
    try:
        yield store
    finally:
        store.forget()
        reset(store.endpoint)
        server.shutdown()
        server.server_close()
        thread.join()


def reset(endpoint: str) -> None:
    """Empty the server: moto keeps its objects in the process, not in the server."""
    import requests

    requests.post(f"{endpoint}/moto-api/reset", timeout=10)

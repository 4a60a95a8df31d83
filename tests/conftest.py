"""Shared fixtures."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.object_store import ObjectStore, serve


@pytest.fixture(scope="module")
def object_store() -> Iterator[ObjectStore]:
    """An S3 server on loopback with one empty bucket, set up in the environment."""
    with pytest.MonkeyPatch.context() as patched, serve(patched) as store:
        yield store

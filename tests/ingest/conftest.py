"""Tests of ingests may run on a made-up accelerator: FEATUREDB_TEST_DEVICE=pretend pytest …"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.pretend_device import NAME, pretend_device, without_inference_mode


@pytest.fixture(autouse=os.environ.get("FEATUREDB_TEST_DEVICE") == NAME, scope="session")
def everything_on_the_pretend_device() -> Iterator[None]:
    """What "auto" chooses."""
    with pytest.MonkeyPatch.context() as patched, without_inference_mode(), pretend_device():
        patched.setattr("ingest.model.device._best_device", lambda: NAME)
        yield

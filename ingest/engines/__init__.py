"""Execution backends: in-process, multiprocessing, Ray.

Every backend runs `ingest.extract.partition` and `ingest.compaction.write_bucket` on the same plan,
so the content of the database does not depend on it. One backend can resume what another began.
"""

from ingest.engines.choice import engine_for
from ingest.engines.engine import Engine

__all__ = ["Engine", "engine_for"]

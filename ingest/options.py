"""The options of an ingest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

from featuredb.errors import IngestError
from featuredb.store.files.memory import Budget
from featuredb.store.values import Values

if TYPE_CHECKING:
    from featuredb.store.snapshot import Recording

EncodeDtype = Literal["float32", "bfloat16x3", "screened"]
"""What encoders multiply in. bfloat16x3: float32 weights by parts, see `ingest.sae.split`.
screened: bfloat16 first, float32 where it matters, see `ingest.sae.screened`."""

ENCODED_ON: Mapping[str, str] = {"bfloat16x3": "cuda", "screened": "cpu"}
"""The kind of device that each is for, but float32."""

EngineName = Literal["local", "processes", "ray"]
ENGINES = get_args(EngineName)

Hooks = str | Sequence[str | None] | None
"""A hook point for all SAEs, or one for each. None for that of an SAE's files."""


@dataclass(frozen=True, kw_only=True)
class IngestOptions:
    """One ingest: the arguments of `featuredb.ingest`, which documents them."""

    corpus: Any
    model: str
    saes: Sequence[str]
    names: Sequence[str] | None = None
    hook: Hooks = None
    hook_out: Hooks = None
    text_column: str = "text"
    tokens_column: str | None = None
    messages_column: str | None = None
    id_column: str | None = None
    corpus_name: str | None = None
    max_documents: int | None = None
    context_size: int | None = None
    bos: bool | None = None
    stride: int | None = None
    max_tokens: int | None = None
    batch_tokens: int | None = None
    device: str = "auto"
    dtype: str = "auto"
    encode_dtype: EncodeDtype = "float32"
    torch_compile: bool = False
    memory: str = "4GB"
    sink_threshold: float = 10.0
    keep_sinks: bool = False
    keep_bos: bool = False
    values: Values = "float16"
    exact: bool = False
    check: bool = True
    progress: bool = field(default=False)
    engine: EngineName = "local"
    workers: int | None = None
    gpus_per_worker: float = 1.0
    ray_address: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.saes, str) or not self.saes:
            raise IngestError("give a list of one or more SAEs, e.g. saes=['path/to/sae']")
        if self.names is not None and len(self.names) != len(self.saes):
            raise IngestError(
                f"{len(self.saes)} SAEs but {len(self.names)} names: give one name for each"
            )
        for name, hooks in (("hook", self.hook), ("hook_out", self.hook_out)):
            if not isinstance(hooks, str | None) and len(hooks) != len(self.saes):
                raise IngestError(
                    f"{len(self.saes)} SAEs but {len(hooks)} places in {name}: give one for each"
                )
        for name in ("max_documents", "context_size", "stride", "max_tokens", "batch_tokens"):
            value = getattr(self, name)
            if value is not None and value < (2 if name == "context_size" else 1):
                raise IngestError(f"{name} must be larger than {value}")
        if not self.sink_threshold > 0:
            raise IngestError(f"sink_threshold must be positive, not {self.sink_threshold}")
        if self.values not in get_args(Values):
            known = ", ".join(get_args(Values))
            raise IngestError(f"values must be one of {known}, not {self.values!r}")
        if self.encode_dtype not in get_args(EncodeDtype):
            known = ", ".join(get_args(EncodeDtype))
            raise IngestError(f"encode_dtype must be one of {known}, not {self.encode_dtype!r}")
        if self.exact and self.values == "log8":
            raise IngestError("exact activations cannot be log8: leave one of the two out")
        if self.corpus_name is not None:
            # Imported here, as below.
            from ingest.corpus.naming import check_corpus_name

            check_corpus_name(self.corpus_name)
        self.budget()
        self._check_engine()

    def _check_engine(self) -> None:
        if self.engine not in ENGINES:
            raise IngestError(f"engine must be one of {', '.join(ENGINES)}, not {self.engine!r}")
        if self.workers is not None and self.workers < 1:
            raise IngestError(f"workers must be larger than {self.workers}")
        if self.engine == "local" and self.workers not in (None, 1):
            raise IngestError(
                "the local engine is one process: give --engine processes or ray for --workers"
            )
        if not self.gpus_per_worker > 0:
            raise IngestError(f"gpus_per_worker must be positive, not {self.gpus_per_worker}")
        if self.ray_address is not None and self.engine != "ray":
            raise IngestError("a Ray address needs --engine ray")

    def recording(self) -> Recording:
        """Which positions to record, and how."""
        # Imported here because it imports numpy and pyarrow, and help must be quick.
        from featuredb.store.snapshot import Recording

        return Recording(
            keep_bos=self.keep_bos,
            keep_sinks=self.keep_sinks,
            values="float32" if self.exact else self.values,
        )

    def budget(self) -> Budget:
        """The memory to work in. Raises `OptionError` if `memory` is not a size."""
        return Budget.parse(self.memory)

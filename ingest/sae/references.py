"""Resolve an SAE reference: a path, a file on the hub, or an entry of SAELens's catalog.

- a folder or weight file;
- `hf:owner/repo/path/in/repo[@revision]`, from the hub's cache or, where allowed, the network
  (HF_HUB_OFFLINE is honored);
- `sae-lens:release/id`, found through the catalog in the sae-lens package and then read from
  the hub by our own readers, so that the units do not depend on the way in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

from featuredb.errors import MissingExtraError, SaeError, first_line

# Seconds to wait for the hub's list of files before falling back on the cache.
_TIMEOUT = 10.0
WEIGHT_SUFFIXES = (".safetensors", ".npz", ".pt", ".pth")


@dataclass(frozen=True)
class Resolved:
    """A local path that holds the SAE, and facts from the reference."""

    path: Path
    label: PurePath
    """The path as the user knows it, for names and messages."""
    hints: Mapping[str, Any] = field(default_factory=dict)


def resolve(ref: str | Path, *, revision: str | None = None) -> Resolved:
    """Resolve `ref` to a local path, downloading it if needed.

    Raises SaeError where there is nothing there; MissingExtraError where a package is missing.
    """
    if isinstance(ref, str) and ref.startswith("hf:"):
        return _from_hub(ref.removeprefix("hf:"), revision, {})
    if isinstance(ref, str) and ref.startswith("sae-lens:"):
        return _from_sae_lens(ref.removeprefix("sae-lens:"), revision)
    path = Path(ref).expanduser()
    if not path.exists():
        raise SaeError(f"no SAE at {path}: there is no such file or folder")
    return Resolved(path, PurePath(path.absolute()))


def _from_hub(address: str, revision: str | None, hints: Mapping[str, Any]) -> Resolved:
    address, _, stated = address.partition("@")
    parts = [part for part in address.split("/") if part]
    if len(parts) < 2:
        raise SaeError(f"hf:{address} is not hf:owner/repo/path[@revision]")
    repo, inside = "/".join(parts[:2]), "/".join(parts[2:])
    root = _download(repo, inside, stated or revision)
    path = root / inside
    if not path.exists():
        raise SaeError(f"hf:{address}: {repo} has no {inside!r} (or it is not in the local cache)")
    return Resolved(path, PurePosixPath(repo) / inside, hints)


def _download(repo: str, inside: str, revision: str | None) -> Path:
    """The root of a local snapshot of `repo` that holds the files at `inside`, and few others."""
    try:
        from huggingface_hub import HfApi, constants, snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError
    except ImportError as error:
        raise MissingExtraError(
            "hf: references need huggingface-hub: pip install 'featuredb[hub]'"
        ) from error

    offline = bool(constants.HF_HUB_OFFLINE)
    wanted: list[str] | None = None
    if not offline:
        try:
            listing = HfApi().model_info(repo, revision=revision, timeout=_TIMEOUT)
        except Exception as error:  # the hub client has its own, and its transport's
            status = getattr(getattr(error, "response", None), "status_code", None)
            if status in (401, 403, 404):
                raise SaeError(
                    f"hf:{repo}: the hub does not give it: {first_line(error)}"
                ) from error
            offline = True  # no network: whatever is cached has to do
        else:
            names = [sibling.rfilename for sibling in listing.siblings or []]
            wanted = _wanted(repo, inside, names)
    try:
        root = snapshot_download(
            repo, revision=revision, allow_patterns=wanted, local_files_only=offline
        )
    except LocalEntryNotFoundError as error:
        raise SaeError(
            f"hf:{repo} is not in the local cache and the hub cannot be reached"
        ) from error
    except Exception as error:
        raise SaeError(f"hf:{repo} cannot be fetched: {first_line(error)}") from error
    return Path(root)


def _wanted(repo: str, inside: str, names: list[str]) -> list[str]:
    """The files to fetch for one SAE; refuses a folder of many, which could be terabytes."""
    below = [name for name in names if not inside or name.startswith(f"{inside}/")]
    if inside in names:
        near = {str(folder) for folder in list(PurePosixPath(inside).parents)[:2]}
        return [inside, *_configs(names, near)]
    weights = [name for name in below if name.endswith(WEIGHT_SUFFIXES)]
    main = [name for name in weights if "checkpoints/ae_" not in name]
    folders = sorted({str(PurePosixPath(name).parent) for name in main})
    if len(folders) > 1:
        shown = ", ".join(folders[:10]) + (", …" if len(folders) > 10 else "")
        raise SaeError(f"hf:{repo}/{inside} holds {len(folders)} SAEs, name one: {shown}")
    return [*main, *_configs(names, {inside or ".", str(PurePosixPath(inside).parent)})]


def _configs(names: list[str], folders: set[str]) -> list[str]:
    return [
        name
        for name in names
        if name.endswith(".json") and str(PurePosixPath(name).parent) in folders
    ]


def _from_sae_lens(address: str, revision: str | None) -> Resolved:
    release, _, sae_id = address.partition("/")
    try:
        from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory
    except ImportError as error:
        raise MissingExtraError(
            "sae-lens: references need SAELens: pip install 'featuredb[sae-lens]'"
        ) from error
    catalog = get_pretrained_saes_directory()
    if release not in catalog:
        raise SaeError(f"SAELens has no release {release!r}")
    entry = catalog[release]
    if sae_id not in entry.saes_map:
        some = ", ".join(list(entry.saes_map)[:5])
        raise SaeError(f"SAELens release {release!r} has no SAE {sae_id!r}; it has {some}, …")
    hints = {
        "model_name": entry.model,
        "l0": entry.expected_l0.get(sae_id) or None,
        "norm_scaling_factor": entry.norm_scaling_factor.get(sae_id),
        # e.g. a normalize_activations that the published cfg.json gets wrong
        "overrides": entry.config_overrides or {},
    }
    return _from_hub(f"{entry.repo_id}/{entry.saes_map[sae_id]}", revision, hints)

"""Resolve an SAE reference: a path, a file on the hub, or an entry of SAELens's catalog.

- a folder or weight file; `SET/layer_5` of a circuit-tracer set. A whole cross-layer transcoder or
  crosscoder is several (`members`);
- `hf:owner/repo/path/in/repo[@revision]`, from the hub's cache or, where allowed, the network
  (HF_HUB_OFFLINE is honored);
- `sae-lens:release/id`, found through the catalog in the sae-lens package and then read from
  the hub by our own readers, so that the units do not depend on the way in.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from glob import escape
from pathlib import Path, PurePath, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, urlparse

from featuredb.errors import MissingExtraError, SaeError, first_line
from ingest.sae.formats import circuit_tracer
from ingest.sae.layout import (
    SET_CONFIG,
    WEIGHT_SUFFIXES,
    companions,
    layer_files,
    members_in,
    weights_below,
    weights_in,
)

# Seconds to wait for the hub's list of files before falling back on the cache.
_TIMEOUT = 10.0

_CENTERED = {"model_from_pretrained_kwargs": {"center_writing_weights": True}}
_RESCALED = {"normalize_activations": "constant_norm_rescale"}
_KNOWN: tuple[tuple[str, Mapping[str, Any]], ...] = (
    # Trained on TransformerLens's default GPT-2, which their cfg.json does not say. The first three
    # are in SAELens's catalog, the others by the loader of e2e_sae.
    ("jbloom/GPT2-Small-SAEs-Reformatted", _CENTERED),
    ("jbloom/GPT2-Small-Feature-Splitting-Experiment-Layer-8", _CENTERED),
    ("tommmcgrath/gpt2-small-mlp-out-saes", _CENTERED),
    ("neuronpedia/gpt2-small__res_*-ajt", _CENTERED),
    ("JoshEngels/Mistral-7B-Residual-Stream-SAEs", _RESCALED),
)
"""What the configurations of these repositories get wrong, by repository."""


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
    repo = next((part for part in path.parts if part.startswith("models--")), "")  # a hub's cache
    known = _known("/".join(repo.split("--")[1:]))
    resolved = Resolved(path, PurePath(path.absolute()), {"overrides": known})
    if path.exists():
        return resolved
    if (member := _of_a_set(resolved)) is not None:
        return member
    raise SaeError(f"no SAE at {path}: there is no such file or folder")


def _of_a_set(resolved: Resolved) -> Resolved | None:
    """`SET/layer_5`, where SET holds a file for it, or a config.yaml that lists it."""
    folder, name = resolved.path.parent, resolved.path.name
    for file in layer_files(name):
        if (folder / file).is_file():
            return replace(resolved, path=folder / file, label=resolved.label.with_name(file))
    layer = circuit_tracer.layer_of(name)
    if layer is None:
        return None
    if not (folder / SET_CONFIG).is_file():
        return None
    raw = circuit_tracer.read_set(folder / SET_CONFIG)
    listed = raw.get("transcoders") or []
    if not listed:
        return None
    if layer >= len(listed):
        raise SaeError(f"{folder / SET_CONFIG}: it lists {len(listed)} transcoders, no {name}")
    hook, hook_out = circuit_tracer.hooks(raw, layer)
    # What the transcoder's own release says comes first.
    hints = {**resolved.hints, "hook": hook, "hook_out": hook_out}
    if model := raw.get("model_name"):
        hints["model_name"] = model
    entry = str(listed[layer])
    if entry.startswith("hf://"):
        address = urlparse(entry)
        stated = parse_qs(address.query).get("revision", [None])[0]
        return _from_hub(f"{address.netloc}{address.path}", stated, hints)
    if not (path := folder / entry).exists():
        raise SaeError(f"{folder / SET_CONFIG}: {name} is {entry!r}, which is not there")
    return Resolved(path, PurePath(path.absolute()), hints)


def _from_hub(address: str, revision: str | None, hints: Mapping[str, Any]) -> Resolved:
    address, _, stated = address.partition("@")
    parts = [part for part in address.split("/") if part]
    if len(parts) < 2:
        raise SaeError(f"hf:{address} is not hf:owner/repo/path[@revision]")
    repo, inside = "/".join(parts[:2]), "/".join(parts[2:])
    root = _download(repo, inside, stated or revision)
    hints = {**hints, "overrides": {**_known(repo), **hints.get("overrides", {})}}
    resolved = Resolved(root / inside, PurePosixPath(repo) / inside, hints)
    if resolved.path.exists():
        return resolved
    if (member := _of_a_set(resolved)) is not None:
        return member
    raise SaeError(f"hf:{address}: {repo} has no {inside!r} (or it is not in the local cache)")


def _known(repo: str) -> Mapping[str, Any]:
    return next((facts for name, facts in _KNOWN if fnmatchcase(repo, name)), {})


def members(ref: str | Path) -> list[str]:
    """References of the SAEs that `ref` names.

    Several for the folder of a cross-layer transcoder or crosscoder, one for each layer. Otherwise
    `ref` itself. Raises SaeError where the file of a layer is missing.
    """
    text = str(ref)
    if text.startswith("sae-lens:") or text.endswith(WEIGHT_SUFFIXES):
        return [text]
    if text.startswith("hf:"):
        address, at, revision = text.removeprefix("hf:").partition("@")
        parts = [part for part in address.split("/") if part]
        repo, inside = "/".join(parts[:2]), "/".join(parts[2:])
        if len(parts) < 2:
            return [text]
        start = f"{inside}/" if inside else ""
        names = _listing(repo, revision or None)
        if names is None:
            root = _snapshot(repo, revision or None, None)
            names = [file.relative_to(root).as_posix() for file in root.rglob("*")]
        members = members_in(name.removeprefix(start) for name in names if name.startswith(start))
        folder, end = f"hf:{'/'.join(parts)}", at + revision
    else:
        path = Path(ref).expanduser()
        members = members_in(child.name for child in path.iterdir()) if path.is_dir() else []
        folder, end = text.rstrip("/"), ""
    for number, name in enumerate(members):
        if name != (right := re.sub(r"\d+", str(number), name)):
            raise SaeError(f"{ref} holds {', '.join(members)}, but {right} is missing")
    return [f"{folder}/{name}{end}" for name in members] or [text]


def _listing(repo: str, revision: str | None) -> list[str] | None:
    """The names of a repository's files, None where the hub cannot be reached."""
    try:
        from huggingface_hub import HfApi, constants
    except ImportError as error:
        raise MissingExtraError(
            "hf: references need huggingface-hub: pip install 'featuredb[hub]'"
        ) from error
    if constants.HF_HUB_OFFLINE:
        return None
    try:
        listing = HfApi().model_info(repo, revision=revision, timeout=_TIMEOUT)
    except Exception as error:  # the hub client has its own, and its transport's
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (401, 403, 404):
            raise SaeError(f"hf:{repo}: the hub does not give it: {first_line(error)}") from error
        return None  # no network: whatever is cached has to do
    return [sibling.rfilename for sibling in listing.siblings or []]


def _download(repo: str, inside: str, revision: str | None) -> Path:
    """The root of a local snapshot of `repo` that holds the files at `inside`, and few others."""
    names = _listing(repo, revision)
    return _snapshot(repo, revision, None if names is None else _wanted(repo, inside, names))


def _snapshot(repo: str, revision: str | None, wanted: list[str] | None) -> Path:
    """The root of a local snapshot with the files `wanted`, None for those that are cached."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        root = snapshot_download(
            repo,
            revision=revision,
            allow_patterns=None if wanted is None else [escape(name) for name in wanted],
            local_files_only=wanted is None,
        )
    except LocalEntryNotFoundError as error:
        raise SaeError(
            f"hf:{repo} is not in the local cache and the hub cannot be reached"
        ) from error
    except Exception as error:
        raise SaeError(f"hf:{repo} cannot be fetched: {first_line(error)}") from error
    return Path(root)


def _wanted(repo: str, inside: str, names: list[str]) -> list[str]:
    """The files to fetch for one SAE: its weights and the configuration near them.

    Raises SaeError for a folder of several SAEs, which could be terabytes.
    """
    if inside in names:
        return [inside, *companions(names, inside)]
    start = f"{inside}/" if inside else ""
    below = [name.removeprefix(start) for name in names if name.startswith(start)]
    weights = weights_in(below)
    if len(weights) == 1:
        return [start + weights[0], *companions(names, start + weights[0])]
    if several := weights or weights_below(below):
        shown = ", ".join(several[:10]) + (", …" if len(several) > 10 else "")
        count = "an SAE further down" if len(several) == 1 else f"{len(several)} SAEs"
        raise SaeError(f"hf:{repo}/{inside} holds {count}, name one: {shown}")
    if SET_CONFIG in below:  # a set whose transcoders lie in other repositories
        return [start + SET_CONFIG]
    if below:
        shown = ", ".join(below[:10]) + (", …" if len(below) > 10 else "")
        raise SaeError(f"hf:{repo}/{inside} is not an SAE: it holds {shown}")
    # `SET/layer_5`
    path = PurePosixPath(inside)
    for file in (str(path.with_name(each)) for each in layer_files(path.name)):
        if file in names:
            return [file, *companions(names, file)]
    config = str(PurePosixPath(inside).with_name(SET_CONFIG)) if inside else SET_CONFIG
    return [config] if config in names else []


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

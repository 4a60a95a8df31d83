"""The demo's cache: verified on every use, repaired once, with a clear error otherwise."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from featuredb.errors import FetchError
from ingest.demo import cache
from ingest.demo.texts import email_body, untag_brown

GOOD = b"the pinned bytes"


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> cache.Archive:
    monkeypatch.setenv("FEATUREDB_CACHE", str(tmp_path))
    return cache.Archive("pip", "thing", "1", "thing-1.whl", hashlib.sha256(GOOD).hexdigest())


def _serve(monkeypatch: pytest.MonkeyPatch, *answers: bytes) -> list[Path]:
    calls: list[Path] = []

    def client(_archive: cache.Archive, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(answers[len(calls)])
        calls.append(target)

    monkeypatch.setattr(cache, "_run_client", client)
    return calls


def test_download_happens_once(archive: cache.Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = _serve(monkeypatch, GOOD)
    assert cache.download(archive).read_bytes() == GOOD
    assert cache.download(archive).read_bytes() == GOOD
    assert len(calls) == 1


def test_damaged_download_is_fetched_again(
    archive: cache.Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    _serve(monkeypatch, GOOD, GOOD)
    path = cache.download(archive)
    path.write_bytes(b"damaged")
    assert cache.download(archive).read_bytes() == GOOD


def test_wrong_bytes_twice_are_an_error_and_leave_nothing(
    archive: cache.Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = _serve(monkeypatch, b"wrong", b"wrong again")
    with pytest.raises(FetchError, match="pinned"):
        cache.download(archive)
    assert list(calls[0].parent.iterdir()) == []


@pytest.mark.usefixtures("archive")
def test_derived_folder_is_built_once_and_repaired() -> None:
    built: list[Path] = []

    def build(folder: Path) -> None:
        built.append(folder)
        (folder / "sub").mkdir()
        (folder / "sub" / "data").write_bytes(GOOD)

    folder = cache.derived("name", "recipe 1", build)
    assert cache.derived("name", "recipe 1", build) == folder
    assert len(built) == 1
    (folder / "sub" / "data").write_bytes(b"damaged")
    cache.derived("name", "recipe 1", build)
    assert len(built) == 2
    (folder / cache.MANIFEST).unlink()
    cache.derived("name", "recipe 1", build)
    cache.derived("name", "recipe 2", build)
    assert len(built) == 4
    assert (folder / "sub" / "data").read_bytes() == GOOD
    assert [path.name for path in folder.parent.iterdir()] == ["name"]


def test_brown_reads_as_prose() -> None:
    tagged = (
        "\n\n\tFair/jj-hl Play/nn-hl\n``/`` Is/bez it/pps (/( really/rb )/) so/rb ''/'' ?/. ?/.\n"
        "asked/vbd Mr./np Ivan/np Allen/np Jr./np ./.\n\n\n\tNo/rb ,/, ''/'' "
    )
    assert untag_brown(tagged) == 'Fair Play\n"Is it (really) so?" asked Mr. Ivan Allen Jr.\nNo,"'


def test_email_keeps_the_plain_part() -> None:
    message = "From someone\nSubject: x\n\n> quoted\nHello there.\n"
    assert email_body(message) == "Hello there."
    html = "From someone\nContent-Type: text/html\n\n<p>Hello</p>\n"
    assert email_body(html) == ""

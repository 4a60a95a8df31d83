"""Tables of directions: names, contents and reads."""

from __future__ import annotations

import re
import shutil
from hashlib import sha256
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featuredb.errors import CorruptDatabaseError
from featuredb.store.layout import Layout
from featuredb.store.vectors import directions as vector_files
from featuredb.store.vectors.directions import (
    DirectionRows,
    Directions,
    comparable,
    find_rows,
    fresh_table,
    read_directions,
    scanned_rows,
    table_of,
    unit_rows,
    write_vectors,
)
from tests.directions import a_world, made_directions, sae_of
from tests.make_store import make_store

NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=100)


@pytest.mark.parametrize("name", ["layer13", "layer_13-TopK.v2", "0", "a" * 80])
def test_a_plain_name_is_its_own(name: str) -> None:
    assert table_of(name) == name


@given(NAMES, NAMES)
def test_two_names_never_share_a_table(one: str, other: str) -> None:
    assert (table_of(one) == table_of(other)) == (one == other)


@given(NAMES)
def test_a_table_is_a_file_s_name_anywhere(name: str) -> None:
    assert re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,96}", table_of(name))


def test_names_that_differ_late_or_only_where_they_are_made_plain() -> None:
    names = ["abcd x", "abcd/x", "abcd_x", "größe", "..", ".", "a" * 200, "a" * 201]
    assert len({table_of(name) for name in names}) == len(names)


@pytest.mark.parametrize("beyond", [0, 300])
def test_what_is_written_is_listed_and_read_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, beyond: int
) -> None:
    monkeypatch.setattr(vector_files, "UNIT_ROWS_BEYOND", beyond)
    layout = Layout(tmp_path)
    written = made_directions(50, 6)
    vectors = write_vectors(layout, "a sae", written)
    assert vectors.table == table_of("a sae")
    listed = {f.path for f in (*vectors.unit_files, *vectors.files)}
    assert listed == {
        p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()
    }
    assert any(f.path.endswith(".lance") for f in vectors.files)
    for file in vectors.files:
        data = (tmp_path / file.path).read_bytes()
        assert (file.bytes, file.sha256) == (len(data), sha256(data).hexdigest())
    for kind, matrix in zip(written._fields, written, strict=True):
        assert np.array_equal(getattr(read_directions(layout, vectors), kind), matrix)
        half = scanned_rows(tmp_path, vectors, kind)
        assert np.array_equal(half, unit_rows(matrix).astype(np.float16))
        assert isinstance(half, np.memmap) == (beyond == 0)


def test_rows_are_found_where_lancedb_put_them(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    written = Directions(made_directions(5_000, 96).decoder, made_directions(5_000, 8).encoder)
    vectors = write_vectors(layout, "a", written)
    assert vectors.data is not None
    assert vectors.decoder.offset is not None
    assert vectors.encoder.offset is None
    for kind, matrix in zip(written._fields, written, strict=True):
        asked = np.array([4_999, 0, 17, 17, 2_500])
        told = DirectionRows(layout, [vectors], kind).take(asked)
        lance = DirectionRows(layout, [msgspec.structs.replace(vectors, data=None)], kind)
        assert np.array_equal(told, matrix[asked])
        assert np.array_equal(lance.take(asked), matrix[asked])


@pytest.mark.parametrize("width", [8, 128])
def test_numbers_that_float16_holds_are_stored_in_it(tmp_path: Path, width: int) -> None:
    layout = Layout(tmp_path)
    exact = made_directions(300, width)
    half = Directions(exact.decoder.astype(np.float16).astype(np.float32), exact.encoder)
    vectors = write_vectors(layout, "a", half)
    assert (vectors.decoder.values, vectors.encoder.values) == ("float16", "float32")
    assert (vectors.decoder.offset is not None) == (width == 128)
    for kind, matrix in zip(half._fields, half, strict=True):
        rows = DirectionRows(layout, [vectors], kind)
        asked = np.array([299, 0, 17, 17])
        assert rows[5:250].dtype == rows.take(asked).dtype == np.float32
        assert np.array_equal(rows.take(asked), matrix[asked])
        assert np.array_equal(rows[5:250], matrix[5:250])
        assert np.array_equal(getattr(read_directions(layout, vectors), kind), matrix)


def test_numbers_beyond_float16_stay_float32(tmp_path: Path) -> None:
    far = made_directions(20, 4)
    far.decoder[:] = 70_000
    far.encoder[:] = 2.0**-30
    vectors = write_vectors(Layout(tmp_path), "a", far)
    assert (vectors.decoder.values, vectors.encoder.values) == ("float32", "float32")


def test_rows_that_are_not_there_are_not_found(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((9_000, 4)).astype(np.float32)
    matrix[:3] = 0
    path = tmp_path / "file"
    path.write_bytes(b"\0" * 100 + matrix[:4].tobytes() + b"four" + matrix.tobytes() + b"end")
    assert find_rows(path, matrix) == 100 + 64 + 4
    path.write_bytes(b"odd" + matrix.tobytes())
    assert find_rows(path, matrix) is None
    torn = matrix.copy()
    torn[8_000, 3] += 1
    path.write_bytes(torn.tobytes() + matrix[:-1].tobytes())
    assert find_rows(path, matrix) is None
    path.write_bytes(np.zeros((10, 4), np.float32).tobytes())
    assert find_rows(path, np.zeros((5, 4), np.float32)) is None
    assert find_rows(path, np.empty((0, 4), np.float32)) is None


def test_another_table_changes_no_file_of_the_first(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    write_vectors(layout, "one", made_directions(20, 4))
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    write_vectors(layout, "two", made_directions(30, 4))
    assert {p: p.read_bytes() for p in before} == before


def test_a_table_left_by_an_interrupted_ingest_is_replaced(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    write_vectors(layout, "one", made_directions(20, 4, seed=1))
    again = write_vectors(layout, "one", made_directions(10, 4, seed=2))
    listed = {f.path for f in (*again.unit_files, *again.files)}
    assert listed == {
        p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()
    }


def test_a_table_that_a_snapshot_names_is_not_written_over(tmp_path: Path) -> None:
    snapshot = make_store(tmp_path, a_world({"s": made_directions(20, 4)}))
    layout = Layout(tmp_path)
    [old] = snapshot.vectors
    before = {f.path: (tmp_path / f.path).read_bytes() for f in old.files}
    assert fresh_table("s", snapshot.number) == old.table
    fresh = made_directions(20, 4, seed=3)
    new = write_vectors(layout, "s", fresh, fresh_table("s", snapshot.number + 1))
    assert new.table == table_of("s/2") != old.table
    assert {p: (tmp_path / p).read_bytes() for p in before} == before
    assert np.array_equal(read_directions(layout, new).decoder, fresh.decoder)


def test_rows_of_several_tables_by_number_and_by_range(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    first, second = made_directions(5_000, 4), made_directions(30, 4, seed=1)
    vectors = [write_vectors(layout, n, d) for n, d in (("one", first), ("two", second))]
    rows = DirectionRows(layout, vectors, "encoder")
    whole = np.concatenate([first.encoder, second.encoder])
    assert rows.shape == whole.shape
    for chosen in ([3, 5_029, 3, 4_999, 5_000], [0], []):
        numbers = np.array(chosen, np.int64)
        assert np.array_equal(rows.take(numbers), whole[numbers])
    for start, stop in ((0, 5_030), (4_990, 5_010), (5_030, 6_000), (7, 7)):
        assert np.array_equal(rows[start:stop], whole[start:stop])


def test_a_missing_table_and_one_of_other_rows_are_named(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    vectors = write_vectors(layout, "one", made_directions(20, 4))
    longer = msgspec.structs.replace(
        vectors, decoder=msgspec.structs.replace(vectors.decoder, rows=25)
    )
    with pytest.raises(CorruptDatabaseError, match=r"one\.lance is missing or damaged"):
        DirectionRows(layout, [longer], "decoder")[15:25]
    shutil.rmtree(tmp_path / "vectors.lance" / "one.lance")
    with pytest.raises(CorruptDatabaseError, match=r"one\.lance is missing or damaged"):
        DirectionRows(layout, [vectors], "decoder").take(np.array([0]))


def test_a_file_that_is_gone_or_cut_is_named(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    vectors = write_vectors(layout, "one", made_directions(200, 64))
    assert vectors.data is not None
    path = tmp_path / vectors.data
    for damage in (lambda: path.write_bytes(path.read_bytes()[:9_000]), path.unlink):
        damage()
        with pytest.raises(CorruptDatabaseError, match=r"one\.lance is missing or damaged"):
            DirectionRows(layout, [vectors], "encoder").take(np.array([0]))


def test_which_saes_are_comparable() -> None:
    one = sae_of("one", 10, 4)
    replaced = msgspec.structs.replace
    wider = replaced(one, name="wider", d_out=8)
    elsewhere = replaced(one, name="elsewhere", hook="blocks.1.hook_resid_post")
    transcoder = replaced(one, name="transcoder", hook_out="blocks.0.hook_mlp_out")
    larger = replaced(one, name="larger", d_sae=20)
    saes = [wider, larger, elsewhere, one, transcoder]
    assert comparable(saes, one, "decoder") == [larger, one]
    assert comparable(saes, one, "encoder") == [wider, larger, one]

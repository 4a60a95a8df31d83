"""Sources that are broken, inconsistent or hostile: one line each, and nothing is left."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import duckdb
import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.feather as pf
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from safetensors.numpy import save_file

import featuredb
from featuredb.cli import main
from featuredb.cli.exit_codes import ExitCode
from featuredb.database import Database
from featuredb.errors import FeatureDBError, StorageError
from featuredb.interchange.formats import FORMATS, ActivationFormat
from featuredb.store.names import file_name
from featuredb.store.snapshot import Sae
from tests.make_store import make_store
from tests.queries.test_questions import small_world

Make = Callable[[Path], Path]

TOKENS = {
    "sequence_id": [0, 0, 0],
    "token_idx": [0, 1, 2],
    "token": [0, 1, 1],
    "decoded_token": ["a", "b", "b"],
}
ACTIVE = {"feature_id": [0, 1], "sequence_id": [0, 0], "token_idx": [1, 2], "strength": [1.5, 2.0]}


def refused(path: Path, source: Path, form: str, **options: Any) -> str:
    """The one line that an import is refused with."""
    with pytest.raises(FeatureDBError) as caught:
        featuredb.import_activations(path / "x.fdb", source, form, **options)
    assert "\n" not in str(caught.value)
    assert not (path / "x.fdb").exists()
    return str(caught.value)


def _parquet(table: str = "tokens", **damage: Any) -> Make:
    def make(folder: Path) -> Path:
        for name, right in (("tokens", TOKENS), ("activations", ACTIVE)):
            columns = right | (damage if name == table else {})
            pq.write_table(pa.table(columns), folder / f"{name}.parquet")
        return folder

    return make


def _csv(tokens: str | bytes = "", activations: str = "") -> Make:
    """Two good tables with more behind them, or other bytes in place of the tokens."""
    good = "sequence_id,token_idx,token,decoded_token\n0,0,0,a\n0,1,1,b\n0,2,1,b\n"
    first = tokens if isinstance(tokens, bytes) else (good + tokens).encode()

    def make(folder: Path) -> Path:
        (folder / "tokens.csv").write_bytes(first)
        rows = "feature_id,sequence_id,token_idx,strength\n0,0,1,1.5\n" + activations
        (folder / "activations.csv").write_text(rows)
        return folder

    return make


def _latents(files: Mapping[str, Mapping[str, Any]], config: str | None = None) -> Make:
    """A cache of Delphi's. files: what differs from a good file, by name."""
    right = {
        "tokens": np.array([[1, 2, 3, 4], [4, 3, 2, 1]]),
        "locations": np.array([[0, 1, 0], [1, 2, 1]]),
        "activations": np.ones(2, np.float32),
    }

    def make(folder: Path) -> Path:
        for name, damage in files.items():
            save_file(right | dict(damage), folder / f"{name}.safetensors")
        if config is not None:
            (folder / "config.json").write_text(config)
        return folder

    return make


def _one_latent(**damage: Any) -> Make:
    return _latents({"0_1": {name: np.array(array) for name, array in damage.items()}})


def _lines(*changes: dict[str, Any]) -> Make:
    right = {"modelId": "m", "layer": "3-s", "index": "1", "tokens": ["a", "b"], "values": [0, 1]}

    def make(folder: Path) -> Path:
        (folder / "batch-0.jsonl").write_text("\n".join(json.dumps(right | c) for c in changes))
        return folder

    return make


def _dashboard(*changes: dict[str, Any] | str, feature: Any = 1) -> Make:
    example = {"tokens": ["a"], "values": [1.5]}
    features = [{"feature_index": feature, "activations": [example]}]
    right = {"model_id": "m", "layer": 3, "sae_set": "s", "features": features}

    def make(folder: Path) -> Path:
        for number, change in enumerate(changes or ({},)):
            text = change if isinstance(change, str) else json.dumps(right | change)
            (folder / f"batch-{number}.json").write_text(text)
        return folder

    return make


def _sqlite(folder: Path) -> Path:
    with closing(sqlite3.connect(folder / "g.db")) as file, file:
        file.execute("CREATE TABLE tokens(a)")
    return folder / "g.db"


def _view_of_another_file(folder: Path) -> Path:
    (folder / "other.txt").write_text("what is none of the file's business")
    with duckdb.connect(str(folder / "g.db")) as file:
        other = f"read_text('{folder / 'other.txt'}')"
        columns = "0 AS sequence_id, 0 AS token_idx, 0 AS token, content AS decoded_token"
        file.execute(f"CREATE VIEW tokens AS SELECT {columns} FROM {other}")
    return folder / "g.db"


def _invalid_arrow(folder: Path) -> Path:
    bad = pa.array([b"a", b"\xff", b"\xff"])
    text = pa.Array.from_buffers(pa.string(), len(bad), bad.buffers())
    pf.write_feather(pa.table(TOKENS | {"decoded_token": text}), str(folder / "tokens.arrow"))
    pf.write_feather(pa.table(ACTIVE), str(folder / "activations.arrow"))
    return folder


def _folder_as_file(folder: Path) -> Path:
    _one_latent()(folder)
    (folder / "2_3.safetensors").mkdir()
    return folder


_BINARY = [b"a", b"\xff\xfe", b"\xff\xfe"]
_ACTIVATIONS = "activations"
_REFUSED: list[tuple[str, Make, str]] = [
    ("parquet", _parquet(_ACTIVATIONS, feature_id=[0.5, 1.0]), "feature_id '0.5' is not a whole"),
    ("parquet", _parquet(_ACTIVATIONS, feature_id=["1.4", "1"]), "feature_id '1.4' is not a whole"),
    ("parquet", _parquet(_ACTIVATIONS, feature_id=[None, 1]), "a row has no feature_id"),
    ("parquet", _parquet(_ACTIVATIONS, token_idx=[1.0, 1.4]), "token_idx '1.4' is not a whole"),
    ("parquet", _parquet(_ACTIVATIONS, strength=["1", "x"]), "strength 'x' is not a number"),
    ("parquet", _parquet(_ACTIVATIONS, strength=[1, 1e39]), "strength '1e+39' is not a number"),
    ("parquet", _parquet(_ACTIVATIONS, feature_id=[1, 2**31]), "has feature 2,147,483,648: the"),
    ("parquet", _parquet(token=[0, 1.5, 1.5]), "token '1.5' is not a whole number"),
    ("parquet", _parquet(token=[0, 2**32, 2**32]), "has token 4,294,967,296: the ids must be"),
    ("parquet", _parquet(token=[0, -1, -1]), "has token -1: the ids must be from 0"),
    ("parquet", _parquet(sequence_id=[0, 0, None]), "a row has no sequence_id"),
    (
        "parquet",
        _parquet(decoded_token=_BINARY),
        r"decoded_token '\\xFF\\xFE' is not text in UTF-8",
    ),
    ("arrow", _invalid_arrow, "tokens.arrow is not an Arrow file"),
    ("csv", _csv(activations="1,0"), "activations.csv cannot be read: line 3: Expected Number of"),
    ("csv", _csv(activations="1,0,2,3,9\n"), "activations.csv cannot be read: line 3: Expected"),
    ("csv", _csv('0,3,2,"abc'), "tokens.csv cannot be read: line 5: Value with unterminated"),
    ("csv", _csv(activations='1,0,2,"3,5"\n'), "activations.csv: strength '3,5' is not a number"),
    ("csv", _csv(b"\xff\xfes\0"), "tokens.csv is not in UTF-8: save it so"),
    ("csv", _csv(b""), "tokens.csv does not begin with the names of its columns"),
    ("csv", _parquet(), "has no tokens.csv"),
    ("goodfire", _view_of_another_file, "cannot be read: Permission Error: Cannot access file"),
    ("goodfire", _sqlite, "is not a DuckDB database: IO Error: The file"),
    ("delphi", _one_latent(locations=[[9, 1, 0], [0, 1, 1]]), "[9, 1, 0], beyond its 2 rows of 4"),
    ("delphi", _one_latent(locations=[[0, 1, 2], [0, 1, 1]]), "[0, 1, 2], beyond its 2 rows"),
    (
        "delphi",
        _one_latent(locations=[[0.0, 1.7, 0.0], [0.0, 1.0, 1.0]]),
        "locations are float64, not whole",
    ),
    ("delphi", _one_latent(tokens=[[0.5, 1]]), "tokens are float64, not whole numbers"),
    ("delphi", _one_latent(tokens=[[-1, 1, 1]]), "has token -1: the ids must be from 0"),
    ("delphi", _one_latent(tokens=[[2**40, 1, 1]]), "has token 1,099,511,627,776: the ids"),
    ("delphi", _one_latent(lengths=[4]), "lengths are not one for each of its 2 rows"),
    ("delphi", _one_latent(lengths=[[4, 4]]), "lengths are not one for each of its 2 rows"),
    ("delphi", _one_latent(lengths=[4, 0]), "from 1 to 4 tokens"),
    ("delphi", _one_latent(lengths=[4, 5]), "from 1 to 4 tokens"),
    ("delphi", _one_latent(lengths=[4.0, 4.0]), "lengths are float64, not whole numbers"),
    ("delphi", _one_latent(activations=[1.0, 1e300]), "an activation that is no finite number"),
    ("delphi", _latents({"0_1": {}, "1_2": {}}), "1_2.safetensors has latents that another file"),
    ("delphi", _latents({"3_1": {}}), "3_1.safetensors has latents that another file has, or none"),
    ("delphi", _latents({"0_1": {}, "2_3": {"tokens": np.ones((2, 4), int)}}), "has other tokens"),
    ("delphi", _latents({"0_99999999": {}}), "has latent 99,999,999: the ids must be from 0"),
    ("delphi", _latents({"0_1": {}}, "[1]"), "config.json is not a JSON object"),
    ("delphi", _latents({"0_1": {}}, r'{"model_name": "\ud800"}'), "a language model that cannot"),
    ("delphi", _folder_as_file, "2_3.safetensors is no file as Delphi names them"),
    ("neuronpedia", _lines({"index": 2.7}), "object 1: Expected `int | str`, got `float`"),
    ("neuronpedia", _lines({"index": float("inf")}), "Expected `int | str`, got `float`"),
    ("neuronpedia", _lines({"index": 10**400}), "is not the number of a feature"),
    ("neuronpedia", _lines({"index": "1_0"}), "'1_0' is not the number of a feature"),
    ("neuronpedia", _lines({"index": 1 << 30}), "has feature 1,073,741,824: the ids must be"),
    ("neuronpedia", _lines({"tokens": "ab"}), "Expected `array`, got `str` - at `$.tokens`"),
    ("neuronpedia", _lines({"tokens": [["a"], None]}), "Expected `str`, got `array`"),
    ("neuronpedia", _lines({"values": "12"}), "Expected `array`, got `str` - at `$.values`"),
    ("neuronpedia", _lines({"values": [1, 10**400]}), "out of range - at `$.values[1]`"),
    ("neuronpedia", _lines({"tokens": ["\ud800", "b"]}), "is not JSON: it has half a character"),
    ("neuronpedia", _lines({"modelId": "\ud800"}), "is not JSON: it has half a character"),
    ("neuronpedia", _lines({"layer": ".."}), "an SAE's name cannot be '..'"),
    ("neuronpedia", _lines({}, {"layer": "4-s"}), "of another source, '4-s', than '3-s' before"),
    ("neuronpedia", _lines({}, {"modelId": "n"}), "of another model, 'n', than 'm' before"),
    ("neuronpedia", _dashboard(feature=1.9), "Expected `int | str`, got `float`"),
    ("neuronpedia", _dashboard({"features": None}), "Expected `array`, got `null`"),
    ("neuronpedia", _dashboard({}, {"sae_set": "t"}), "of another source, '3-t', than '3-s'"),
    ("neuronpedia", _dashboard("[" * 200_000), "batch-0.json is not JSON: it is nested too deeply"),
]


@pytest.mark.parametrize(("form", "make", "said"), _REFUSED, ids=range(len(_REFUSED)))
@pytest.mark.filterwarnings("error")
def test_a_source_that_contradicts_itself_is_one_line(
    tmp_path: Path, form: str, make: Make, said: str
) -> None:
    folder = tmp_path / "bad"
    folder.mkdir()
    message = refused(tmp_path, make(folder), form)
    assert said in message
    assert len(message) < 600


@pytest.mark.parametrize("name", ["a/b", "..", "a\nb", "\x1b[31m"])
def test_a_name_that_no_feature_can_be_asked_by_is_refused(tmp_path: Path, name: str) -> None:
    assert "an SAE's name cannot be" in refused(tmp_path, _csv()(tmp_path), "csv", name=name)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"values": "f8"}, "values must be one of float16, float32, log8, not 'f8'"),
        ({"features": 0}, "features must be from 1 to"),
        ({"features": -1}, "features must be from 1 to"),
    ],
)
def test_a_bad_argument_leaves_nothing(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    message = refused(tmp_path, _csv()(tmp_path), "csv", **options)
    assert message.startswith(said)


def test_a_database_where_there_can_be_no_folder(tmp_path: Path) -> None:
    source = _csv()(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"/file is a file: give a path"):
        featuredb.import_activations(tmp_path / "file" / "x.fdb", source, "csv")
    with pytest.raises(StorageError, match=r"there can be no folder /proc/x\.fdb"):
        featuredb.import_activations("/proc/x.fdb", source, "csv")


def test_what_is_unusual_is_read(tmp_path: Path) -> None:
    """Texts that look like nothing, halves, and files that are none of the two tables."""
    (tmp_path / "sub.dir").mkdir()
    tokens = TOKENS | {"decoded_token": ["\\N", "", ""]}
    pf.write_feather(pa.table(tokens), str(tmp_path / "tokens.arrow"))
    halves = ACTIVE | {"strength": np.array(ACTIVE["strength"], np.float16)}
    pf.write_feather(pa.table(halves), str(tmp_path / "activations.arrow"))
    featuredb.import_activations(tmp_path / "a.fdb", tmp_path, "arrow")
    (tmp_path / "README.md").write_text("other bytes, the same database")
    assert not featuredb.import_activations(tmp_path / "a.fdb", tmp_path, "arrow").fresh
    featuredb.export_activations(tmp_path / "a.fdb", tmp_path / "csv", "csv")
    featuredb.import_activations(tmp_path / "c.fdb", tmp_path / "csv", "csv")
    with featuredb.open(tmp_path / "c.fdb") as db:
        words = db.sql("SELECT text FROM vocabulary ORDER BY token_id").fetchall()
        values = db.sql("SELECT activation FROM activations ORDER BY ALL").fetchall()
    assert words == [("\\N",), ("",)]
    assert values == [(1.5,), (2.0,)]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("blocks.3.hook_resid_post", "blocks.3.hook_resid_post"),
        ("../../x", "-..-x"),
        ("/tmp/x", "-tmp-x"),
        ("..", "-"),
        ("a\nb", "a-b"),
    ],
)
def test_the_name_of_a_file_from_data(text: str, name: str) -> None:
    assert file_name(text) == name


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("made") / "made.fdb"
    make_store(path, small_world(("s",)))
    return path


@pytest.mark.parametrize("hook", ["../../outside", "/tmp/outside", ".."])
def test_every_file_is_written_inside(made: Path, tmp_path: Path, hook: str) -> None:
    with featuredb.open(made) as db:
        sae = msgspec.structs.replace(db.saes[0], hook=hook)
        for name, form in FORMATS.items():
            assert form.write is not None
            (tmp_path / name).mkdir()
            form.write(db, sae, tmp_path / name / "out")
            assert [path.name for path in (tmp_path / name).iterdir()] == ["out"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FORMATS)


def test_ctrl_c_ends_an_export_and_leaves_nothing(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(_: Database, __: Sae, path: Path) -> int:
        path.mkdir()
        raise RuntimeError("Query interrupted")  # as DuckDB does on Ctrl-C

    interrupted = {"parquet": ActivationFormat(None, write)}
    monkeypatch.setattr("featuredb.interchange.formats.FORMATS", interrupted)
    call = ["export", str(made), str(tmp_path / "out"), "--to", "parquet"]
    ended = CliRunner().invoke(main, call)
    assert (ended.exit_code, ended.stderr) == (ExitCode.INTERRUPTED, "featuredb: interrupted\n")
    assert list(tmp_path.iterdir()) == []


def test_a_larger_export_to_delphi_has_more_files(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from featuredb.interchange import delphi

    with featuredb.open(made) as db:
        monkeypatch.setattr(delphi, "_PER_FILE", 1)
        monkeypatch.setattr(delphi, "_SPLITS", 2)
        delphi.write(db, db.saes[0], tmp_path / "out")
        assert len(list(tmp_path.rglob("*.safetensors"))) == db.saes[0].d_sae

"""The host's side alone: any number of writers, at any rate, writes the same files."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner

from benchmarks.feed import main


def test_writers_write_the_same_files(tmp_path: Path) -> None:
    options = "--activations 20000 --features 512 --saes 2 --partitions 4 --rounds 1 --rate 2"
    result = CliRunner().invoke(
        main, [*options.split(), "--writers", "1,4", "--folder", str(tmp_path)]
    )
    assert result.exit_code == 0, result.output
    rows = [line for line in result.output.splitlines() if line.endswith("│")]
    assert [row.split("│")[1].strip() for row in rows] == ["1", "4"]
    assert all(row.split("│")[-2].strip() == "same" for row in rows)
    assert "fed 2 M activations/s" in result.output
    assert list(tmp_path.iterdir()) == []

"""`featuredb contrast`"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

import featuredb
from featuredb.cli import completing, options
from featuredb.cli.output import Output
from featuredb.errors import RuleError

if TYPE_CHECKING:
    from queries.encode import Pool


@click.command("contrast")
@options.pinned_database
@click.option(
    "--a",
    metavar="SPEC",
    shell_complete=completing.columns,
    help="The texts asked about: a SQL condition on documents, @FILE of new texts, or all.",
)
@click.option(
    "--b",
    metavar="SPEC",
    shell_complete=completing.columns,
    help="What they are compared with. Default, or rest: all others.",
)
@click.option(
    "--paired",
    metavar="COLUMN",
    shell_complete=completing.columns,
    help="Compare in pairs that share this column's value.",
)
@click.option(
    "--target",
    metavar="COLUMN",
    shell_complete=completing.columns,
    help="What goes with this number, or with length.",
)
@click.option(
    "--each",
    metavar="COLUMN",
    shell_complete=completing.columns,
    help="Compare each value of this column with the rest.",
)
@click.option(
    "--unit",
    type=click.Choice(("document", "context", "turn")),
    default="document",
    show_default=True,
    help="What is counted.",
)
@click.option(
    "--pool",
    type=click.Choice(("max", "sum", "mean")),
    default="max",
    show_default=True,
    help="A unit's activation, from those of its tokens.",
)
@click.option(
    "--sae", metavar="NAME", shell_complete=completing.saes, help="Only features of this SAE."
)
@click.option(
    "--min-share",
    metavar="X",
    type=float,
    help="Only features active in at least this share of both sets. Default: in 5 units, and in as "
    "many as 1% of the smaller set.",
)
@click.option(
    "--max-share",
    metavar="X",
    type=float,
    default=1.0,
    show_default=True,
    help="Only features active in at most this share.",
)
@click.option(
    "--covariate",
    metavar="COLUMN",
    shell_complete=completing.columns,
    multiple=True,
    help="Compare only what is alike in this column, or in length. Repeat it for several.",
)
@click.option(
    "--holdout",
    metavar="X",
    type=float,
    help="Choose features without this share, and give the figures on it.",
)
@click.option(
    "--probe",
    metavar="K",
    type=click.IntRange(min=1),
    help="Fit a classifier of at most K features, beside a bag of words. Needs featuredb[probes].",
)
@click.option(
    "--on",
    metavar="FEATURE",
    shell_complete=completing.features,
    help="Only tokens on which this feature fires: what fires with it more in A than in B.",
)
@click.option("--monitor", metavar="NAME", help="Store the --probe as the rule of a monitor.")
@options.seed
@options.model
@options.limit(20, "features")
@options.output
def command(
    db: str,
    snapshot: int | None,
    a: str | None,
    b: str | None,
    paired: str | None,
    target: str | None,
    each: str | None,
    unit: str,
    pool: Pool,
    sae: str | None,
    min_share: float | None,
    max_share: float,
    covariate: tuple[str, ...],
    holdout: float | None,
    probe: int | None,
    on: str | None,
    monitor: str | None,
    seed: int,
    model: str | None,
    k: int,
    output: Output,
) -> None:
    """List the features that tell some texts from others.

    The unit of the test is the document. The answer names the sets, the null hypothesis and how
    many features were tested, and shows a context of each side per feature.
    """
    if monitor is not None and (
        probe is None or pool != "max" or unit != "document" or on is not None
    ):
        raise click.UsageError("--monitor stores a --probe of documents' maxima: give --probe K")
    with featuredb.open(db, snapshot=snapshot, model=model) as database:
        if monitor is not None:  # before what takes long
            from featuredb.monitors.changes import refuse_name

            refuse_name(database._store, monitor)
        answer = database.contrast(
            a,
            b,
            paired,
            target,
            unit,
            pool,
            k,
            each=each,
            sae=sae,
            min_share=min_share,
            max_share=max_share,
            covariate=covariate,
            holdout=holdout,
            probe=probe,
            seed=seed,
            on=on,
        )
    output.write(answer)
    if monitor is not None and answer.probe is not None:
        note = f"a probe of {answer.a} against {answer.b}"
        try:
            featuredb.add_monitor(db, monitor, answer.probe["rule"], note=note)
        except RuleError as error:
            raise RuleError(
                f"the probe is stored as no monitor: {error}. Give a larger --probe, or swap --a "
                "and --b"
            ) from None

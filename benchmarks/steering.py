"""The bridge, and whether steering works: `python -m benchmarks.steering demo.fdb`.

Finds the features closest to a bridge, San Francisco and California by `about` and by the stored
output score (run `featuredb measure` first), steers with each at several strengths, and prints what
happens as it is. Then sweeps features that mostly fire on one word, and counts for how many any
strength works by the sweep's own rule.
"""

from __future__ import annotations

import argparse
import time

import featuredb
from featuredb.steering.neutral import PROMPTS

PHRASES = ("a bridge", "San Francisco", "California")
PROMPT = "My favorite place is"
STRENGTHS = ("1x", "2x", "5x", "10x")

WELL_LABELED = """
SELECT concat(f.sae, '/', f.feature_id) AS feature, f.top_tokens[1].token AS token, e.output_score
FROM features AS f JOIN effects AS e USING (sae, feature_id)
WHERE f.n_documents BETWEEN 20 AND 600 AND length(f.top_tokens[1].token) >= 5
    AND f.top_tokens[1].count >= 0.5 * f.count
ORDER BY e.output_score DESC
"""


def bridge(db: featuredb.Database, k: int, tokens: int) -> None:
    """Print the closest features of each phrase, and texts steered with the first of each."""
    print(f"unsteered: {_text(db, [], tokens)}")
    for phrase in PHRASES:
        print(f"\n## {phrase}")
        chosen = None
        for row in db.about(phrase, k):
            name = f"{row.sae}/{row.feature_id}"
            (effect,) = db.sql(
                "SELECT output_score, kl, [t.token FOR t IN raised_tokens[:4]] FROM effects "
                "WHERE sae = ? AND feature_id = ?",
                [row.sae, row.feature_id],
            ).fetchall() or [(None, None, None)]
            tops = db.sql(
                "SELECT [t.token FOR t IN top_tokens[:4]] FROM features "
                "WHERE sae = ? AND feature_id = ?",
                [row.sae, row.feature_id],
            ).fetchall()[0][0]
            score, kl, raised = effect
            print(f"{name}: fires on {tops}")
            print(f"    output score {score}, KL {kl}, raises {raised}")
            chosen = chosen or name
        for strength in STRENGTHS:
            if chosen is not None:
                text = _text(db, [f"{chosen}={strength} @ generated"], tokens)
                print(f"{chosen}={strength}: {text}")


def sweeps(db: featuredb.Database, count: int, tokens: int) -> None:
    """Print the sweep of some features, and for how many any strength works."""
    rows = db.sql(WELL_LABELED).limit(count).fetchall()
    works = 0
    for feature, token, score in rows:
        swept = db.sweep(list(PROMPTS[1:3]), f"{feature}=1x", "0,0.5,1,2x", max_new_tokens=tokens)
        works += swept.best not in (None, "0x")
        best = next((row for row in swept if row.best), None)
        said = "no strength works" if best is None else f"{best.strength}, score {best.score:.2f}"
        print(f"{feature} {token!r}, output score {score:.3f}: {said}")
    print(f"steering works for {works} of {len(rows)}, others are best without the feature")


def _text(db: featuredb.Database, edits: list[str], tokens: int) -> str:
    with db.intervene(edits or ["0*=1"]) as model:
        ids = db.tokenizer(PROMPT, return_tensors="pt").to(model.device)
        out = model.generate(**ids, max_new_tokens=tokens, do_sample=False)
    return repr(db.tokenizer.decode(out[0], skip_special_tokens=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("database")
    parser.add_argument("-k", type=int, default=5, help="features per phrase")
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--sweeps", type=int, default=20, help="features to sweep")
    given = parser.parse_args()
    started = time.monotonic()
    with featuredb.open(given.database) as db:
        bridge(db, given.k, given.tokens)
        if given.sweeps:
            sweeps(db, given.sweeps, given.tokens)
    print(f"{time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()

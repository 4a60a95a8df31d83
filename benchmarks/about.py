"""How many of the features that a phrase is about are found: `python -m benchmarks.about demo.fdb`.

Forty phrases, and for each the words whose features are right. A feature is one of a word if it has
fired at least 20 times and a fifth of its firing mass falls on tokens that are the word. Phrases
without such a feature in the database are left out. Printed per way of asking: recall@10, the mean
share of the right features (at most 10) that are among the first ten, and the share of phrases with
any. The model has to be where the database was made.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import featuredb
from featuredb.database import Database
from queries.answers import Answer

LEAST, SHARE, K = 20, 0.2, 10

PHRASES = {
    "suspension bridges": "bridge bridges",
    "classical music concerts": "music musical",
    "the Roman Empire": "roman rome empire",
    "nuclear power plants": "nuclear",
    "the capital of France": "france french",
    "football players": "football soccer",
    "Buddhist monks and temples": "buddhist buddhism buddha",
    "the periodic table of chemical elements": "chemical element elements",
    "heart disease": "disease diseases",
    "computer programming languages": "computer software programming",
    "the Second World War": "war",
    "a species of bird": "bird birds",
    "the moons of Jupiter": "planet planets moon",
    "ancient Greek philosophers": "greek greece philosopher philosophers",
    "the river Nile in Egypt": "egypt egyptian river",
    "the prime minister of India": "india indian minister",
    "oil painting": "painting paintings painter",
    "Shakespeare's plays": "play plays theatre playwright",
    "the stock market crash": "market markets stock",
    "cancer treatment": "cancer treatment",
    "steam locomotives and railways": "railway rail train trains",
    "the king's daughter": "king daughter",
    "the Catholic Church": "catholic church",
    "Japanese emperors": "japanese japan emperor",
    "the island of Sicily": "island islands",
    "a mountain range in Asia": "mountain mountains asia",
    "human rights law": "law laws rights",
    "the theory of relativity": "theory physics",
    "plants and their flowers": "plant plants flower flowers",
    "professional basketball team": "basketball team",
    "the Chinese dynasties": "chinese china dynasty",
    "a film director": "film films director",
    "trees in the forest": "forest forests tree trees",
    "ships and naval battles": "ship ships naval navy",
    "the California gold rush": "california",
    "Islamic prayer": "islamic islam muslim muslims",
    "rice and wheat farming": "rice agriculture crops food",
    "the human brain": "brain",
    "a city in Germany": "city german germany",
    "rock and roll bands": "band rock guitar",
}

_RIGHT = f"""
SELECT concat(sae, '/', feature_id) FROM (
    SELECT sae, feature_id, count * mean_activation AS mass, unnest(top_tokens) AS t
    FROM features WHERE count >= {LEAST})
WHERE list_contains(?, lower(trim(t['token'])))
GROUP BY sae, feature_id, mass HAVING sum(t['count'] * t['mean_activation']) >= {SHARE} * mass"""


def main(path: str) -> None:
    """Print the table for a database."""
    with featuredb.open(path) as db:
        right = {
            phrase: {name for (name,) in db.sql(_RIGHT, [words.split()]).fetchall()}
            for phrase, words in PHRASES.items()
        }
        right = {phrase: names for phrase, names in right.items() if names}
        print(f"{len(right)} of {len(PHRASES)} phrases have a feature here")
        print(f"{'':42}recall@{K}  any")
        for name, ask in _ways(db).items():
            shares = []
            for phrase, wanted in right.items():
                found = {f"{row.sae}/{row.feature_id}" for row in ask(phrase)}
                shares.append(len(found & wanted) / min(len(wanted), K))
            any_found = sum(share > 0 for share in shares) / len(shares)
            print(f"{name:42}{sum(shares) / len(shares):9.2f}{any_found:5.2f}")


def _ways(db: Database) -> dict[str, Callable[[str], Answer]]:
    return {
        "fires on the phrase alone, by specificity": lambda text: db.fires_on(text, K),
        "search by tokens": lambda text: db.search(text, K, by="tokens"),
        "about, by firing within a sentence": lambda text: db.about(text, K, "firing"),
        "about, by evidence": lambda text: db.about(text, K, "evidence"),
        "about, by both": lambda text: db.about(text, K),
    }


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "demo.fdb")

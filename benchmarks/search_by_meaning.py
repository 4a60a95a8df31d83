"""Recall of search over labels: 100 labels, each asked for in other words.

A hundred labels as people and language models write them stand among the automatic labels of a
database's features. Each is asked for by a paraphrase that shares no rare word with it, by meaning
and by words. Counted is how often it is among the first ten.

    python -m benchmarks.search_by_meaning demo.fdb --encoder FOLDER
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path

import pyarrow as pa

import featuredb
from featuredb.labels.batch import LabelBatch
from featuredb.labels.write import add_labels

PAIRS = """\
months in dates|which part of the year something happened
music and musical instruments|songs played by an orchestra
names of US states|California, Texas and the like
legal proceedings and courts|lawsuits before a judge
chemical elements|oxygen, iron and other atoms
expressions of gratitude|saying thank you
words about anger|being furious
military battles|armies fighting each other
computer programming code|software source written by developers
cooking recipes|how to prepare food
religious worship|praying in a church
medical symptoms|signs that a patient is ill
family relationships|parents, siblings and cousins
weather conditions|rain, snow and sunshine
sports scores|who won the match and by how much
currency amounts|sums of money in dollars
negation|saying that something is not so
questions asked by a user|someone wants to know something
apologies|saying sorry
flattery and praise|compliments to please someone
deception and lying|telling untruths
violence and killing|murder and bloodshed
elections and voting|people cast ballots for candidates
countries of Europe|France, Germany, Italy
animals, especially birds|creatures with feathers and wings
plants and gardening|growing flowers
astronomy and planets|stars and worlds in space
geographic directions|north and south
colors of objects|red, green or blue things
emotions of sadness|feeling unhappy
romantic love|being fond of one's sweetheart
aviation and aircraft|planes that fly
railways and trains|locomotives on tracks
ships and sailing|boats at sea
rivers and lakes|bodies of fresh water
mountains and peaks|high summits to climb
ancient Rome|Caesar and his empire
World War II|the conflict against Hitler
kings and queens|monarchs on a throne
scientific experiments|tests in a laboratory
mathematical theorems|proofs about numbers
probability and statistics|how likely an outcome is
philosophy of mind|what consciousness is
education and schools|pupils taught in classrooms
job titles and professions|what people do for a living
business companies|corporations and firms
stock markets and investing|buying shares for profit
taxes and government budgets|what the state collects and spends
diseases and epidemics|illness spreading among a population
drugs and medication|pills that a doctor prescribes
surgery|operating on a patient
pregnancy and birth|expecting a baby
death and funerals|burying someone who passed away
crime and police|officers arresting a thief
prisons|inmates behind bars
racism and discrimination|prejudice against minorities
gender and feminism|rights of women
sexual content|erotic material
biological weapons|germs used to harm people
hacking and computer security|breaking into systems
personal identification numbers|private data such as a social security ID
email addresses and URLs|links on the web
phone numbers|digits to call someone
street addresses|where someone lives
opening quotation marks|the start of direct speech
closing brackets|the end of a parenthesis
list items and bullet points|enumerated entries
section headings|titles of chapters
line breaks|where a new paragraph starts
repeated text|the same words again and again
typographical errors|misspelled words
French language text|sentences written in the tongue of Paris
German compound words|long nouns from Berlin
Arabic script|writing from right to left of the Middle East
Chinese characters|Mandarin writing
formal academic writing|scholarly prose of papers
slang and informal speech|casual talk among friends
sarcasm and irony|meaning the opposite of what one says
hedging and uncertainty|maybe, perhaps, it might be
comparisons and superlatives|bigger, the best
cause and effect|because of that, as a result
time of day|morning, noon and evening
ages of people|how old somebody is
measurements of length|how many meters something is
temperatures|how hot or cold it is
speed and velocity|how fast something moves
physical pain|when it hurts
sleep and dreams|lying in bed at night
food and drink|what one eats at a meal
clothing and fashion|shirts, dresses and shoes
houses and architecture|buildings and their design
painting and visual art|pictures hanging in a museum
films and cinema|movies and their actors
novels and literature|books of fiction
poetry|verses that rhyme
video games|playing on a console
football players|athletes who score goals
the Olympic Games|athletes competing for gold medals
climate change|the planet is getting warmer
nuclear energy|power from splitting atoms"""
"""Label and paraphrase, a pair each line."""


def main() -> None:
    """Print recall@10 by meaning and by words."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("database", type=Path)
    parser.add_argument("--encoder")
    given = parser.parse_args()
    pairs = [line.split("|") for line in PAIRS.splitlines()]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(shutil.copytree(given.database, Path(folder) / "copy.fdb"))
        started = time.perf_counter()
        made = featuredb.make_labels(path)
        print(f"{made.labels:,} automatic labels in {time.perf_counter() - started:.1f} s")
        with featuredb.open(path) as db:
            sae = db.saes[0]
            numbers = [i * sae.d_sae // len(pairs) for i in range(len(pairs))]
        table = pa.table(
            {
                "sae": [sae.name] * len(pairs),
                "feature_id": numbers,
                "text": [label for label, _ in pairs],
            }
        )
        add_labels(path, LabelBatch(table))
        with featuredb.open(path) as db:
            started = time.perf_counter()
            db.search("anything", by="meaning", encoder=given.encoder)
            print(f"first search, which embeds: {time.perf_counter() - started:.1f} s")
            for by in ("meaning", "tokens"):
                found, first = 0, 0
                started = time.perf_counter()
                for number, (_, query) in zip(numbers, pairs, strict=True):
                    hits = db.search(query, k=10, by=by, encoder=given.encoder)
                    ids = [row.feature_id for row in hits]
                    found += number in ids
                    first += ids[:1] == [number]
                took = (time.perf_counter() - started) / len(pairs)
                print(f"{by}: recall@10 {found}, first {first} of 100, {1000 * took:.0f} ms each")


if __name__ == "__main__":
    main()

"""Classes of words that automatic labels name, such as months. English, closed or nearly so."""

from __future__ import annotations

import re
from functools import lru_cache

_WORDS = {
    "months": "january february march april may june july august september october november "
    "december jan feb mar apr jun jul aug sep sept oct nov dec",
    "days of the week": "monday tuesday wednesday thursday friday saturday sunday",
    "number words": "one two three four five six seven eight nine ten eleven twelve twenty thirty "
    "forty fifty hundred thousand million billion dozen hundreds thousands millions",
    "ordinals": "first second third fourth fifth sixth seventh eighth ninth tenth st nd rd th",
    "prepositions": "of in on at by for with from to into onto over under between among through "
    "during before after against within without about across along around behind below beneath "
    "beside beyond near off toward towards upon via per",
    "articles": "the a an",
    "pronouns": "i you he she it we they me him her us them his hers its our their theirs my your "
    "mine yours himself herself itself themselves myself yourself",
    "conjunctions": "and or but nor so yet because although though while whereas unless since if",
    "question words": "who what when where why how which whose whom whether",
    "demonstratives": "this that these those",
    "auxiliary verbs": "is are was were be been being am has have had having do does did will "
    "would can could may might must shall should",
    "negations": "not no never none nothing nobody neither nor without cannot t",
    "quantifiers": "all some any many few several most much more less least each every both "
    "various numerous other others another",
    "adverbs of degree": "very quite rather too extremely highly nearly almost slightly",
    "adverbs of frequency": "often usually always sometimes rarely frequently generally commonly "
    "typically occasionally mostly primarily mainly",
    "units of time": "year years month months week weeks day days hour hours minute minutes second "
    "seconds century centuries decade decades millennium millennia",
    "units of measure": "km kilometers kilometres miles mile meters metres feet ft cm mm inches "
    "kg grams tons tonnes pounds lb hectares acres degrees percent mph liters",
    "compass directions": "north south east west northern southern eastern western northeast "
    "northwest southeast southwest northeastern northwestern southeastern southwestern",
    "colors": "red blue green yellow black white brown orange purple pink gray grey violet gold",
    "family members": "father mother son daughter brother sister wife husband parents children "
    "child uncle aunt cousin grandfather grandmother nephew niece sons daughters brothers sisters",
    "continents": "africa asia europe america antarctica australia oceania",
    "countries": "india china japan france germany italy spain england scotland ireland wales "
    "russia canada australia mexico brazil argentina egypt iran iraq israel turkey greece poland "
    "ukraine sweden norway denmark finland netherlands belgium austria hungary romania bulgaria "
    "portugal switzerland pakistan bangladesh indonesia malaysia thailand vietnam philippines "
    "korea nigeria kenya ethiopia ghana chile peru colombia venezuela cuba syria lebanon jordan "
    "afghanistan nepal singapore taiwan britain czech slovakia croatia serbia albania morocco",
    "states of the US": "california texas florida alaska nevada arizona oregon washington utah "
    "colorado kansas nebraska oklahoma missouri iowa minnesota wisconsin illinois indiana michigan "
    "ohio kentucky tennessee alabama georgia virginia pennsylvania massachusetts connecticut maine "
    "vermont delaware maryland montana idaho wyoming hawaii louisiana mississippi arkansas",
    "nationalities and languages": "english french german italian spanish russian chinese japanese "
    "american british indian greek roman latin arabic hebrew persian turkish polish dutch swedish "
    "norwegian danish finnish portuguese scottish irish welsh canadian australian mexican korean "
    "european african asian egyptian jewish soviet hungarian austrian belgian swiss iranian",
    "religions": "christian christianity catholic church islam islamic muslim muslims jewish "
    "judaism hindu hinduism buddhist buddhism protestant orthodox sikh christians hindus",
    "royal titles": "king queen prince princess emperor empress duke duchess tsar sultan lord "
    "baron earl count kings emperors pharaoh monarch",
    "branches of science": "physics chemistry biology mathematics astronomy geology medicine "
    "psychology linguistics economics sociology anthropology philosophy engineering statistics "
    "ecology genetics botany zoology",
    "verbs of being called": "called named known referred termed dubbed titled entitled nicknamed",
    "comparisons": "more less most least larger smaller greater higher lower largest smallest "
    "greatest highest lowest better best worse worst than",
}
"""Words in lower case by class. The first class that a word is in, of those that fit, counts."""

_MARKS = {
    "commas": ",",
    "periods": ".",
    "colons and semicolons": ":;",
    "question and exclamation marks": "?!",
    "opening brackets": "([{",
    "closing brackets": ")]}",
    "quotation marks": "\"'“”‘’`«»",
    "hyphens and dashes": "-–—−",
    "slashes": "/\\|",
    "currency signs": "$€£¥",
    "mathematical signs": "+=<>*^%~",
}

CLASSES: dict[str, frozenset[str]] = {k: frozenset(v.split()) for k, v in _WORDS.items()}

_NUMBER = re.compile(r"\d+")


@lru_cache(maxsize=1 << 16)
def classes_of(token: str) -> tuple[str, ...]:
    """The classes of a token, by its letters or marks."""
    bare = token.strip()
    if not bare:
        return ("line breaks" if "\n" in token else "spaces",)
    if _NUMBER.fullmatch(bare):
        return ("digits",)
    marks = tuple(n for n, characters in _MARKS.items() if all(c in characters for c in bare))
    if marks:
        return marks
    word = bare.lower()
    return tuple(name for name, words in CLASSES.items() if word in words)

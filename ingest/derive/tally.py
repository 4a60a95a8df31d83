"""Tally a feature's activations in a single pass, compiled by numba.

The pass over a feature's rows in (context, token) order counts everything that its statistics and
examples need. float16 has 65,536 values, so counting how often each occurs gives exact quantiles,
moments and histograms, and ranks a feature's contexts by their maximum, without sorting. float32
values are stored and sorted.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from featuredb.store import schemas
from ingest.derive.float_keys import (
    KEYS,
    SIGN,
    Array,
    float32_keys,
    jit,
    key_of_bits,
    key_of_value,
    sorted_keys,
    value_of_key,
)
from ingest.tokens.lookup import TokenLookup

MOST_EXAMPLES = schemas.EXAMPLES_TOP + schemas.EXAMPLES_QUINTILES * schemas.EXAMPLES_PER_QUINTILE
_TOP = schemas.EXAMPLES_TOP
_FIFTHS = schemas.EXAMPLES_QUINTILES
_PER_FIFTH = schemas.EXAMPLES_PER_QUINTILE
_BINS = schemas.HISTOGRAM_BINS
_TOKENS = schemas.TOP_TOKENS

# Places in `Work.state`.
_TOUCHED, _GROUPS, _DOCUMENTS, _LAST_DOCUMENT, _ROWS, _LOW, _HIGH = range(7)
_EMPTY = np.array([0, 0, 0, -1, 0, KEYS, -1])

_LAST_RANK = np.iinfo(np.int64).max

_QUANTILES = np.array(schemas.QUANTILES)


class FeatureEntries(NamedTuple):
    """Entries of features, sorted by (feature, context, token), all [n].

    context, document: int64. token_index: int32. token: uint32, the vocabulary's id. value:
    float32. key: uint16, the bits of the float16 value, empty if values are float32.
    """

    context: Array
    token_index: Array
    token: Array
    document: Array
    value: Array
    key: Array


class Work(NamedTuple):
    """Counters of the current feature, all zero between two features.

    value_count, peak_count int64 [65536] by ascending float16. token_sum float64 and token_count
    int64 [vocabulary], of the ids in touched. kept float32: the values themselves, where they are
    float32. group_*: each context it fires in: its id, its maximum, the token index that first
    reaches it, its first row, and its rows. copies int32 [contexts from first_context on]: see
    `TokenLookup.copies`. best_copy int64 [texts that repeat]: the rank of the text's strongest
    context.
    """

    state: Array
    value_count: Array
    peak_count: Array
    token_sum: Array
    token_count: Array
    touched: Array
    kept: Array
    group_context: Array
    group_peak: Array
    group_index: Array
    group_start: Array
    group_length: Array
    copies: Array
    first_context: int
    best_copy: Array


class Tallies(NamedTuple):
    """The results, a row per feature.

    numbers: int64 [F, 3], rows, contexts, documents. moments: float64 [F, 4], minimum, maximum,
    mean, standard deviation. quantiles: float32 [F, Q]. histogram: int64 [F, bins]. tokens: int64
    [F, k, 2], id and count. token_means: float32 [F, k]. n_tokens: int64 [F]. examples: int64
    [F, MOST_EXAMPLES, 6], kind, rank, context, token index of the maximum, first row, rows.
    example_peaks: float32. n_examples: int64 [F].
    """

    numbers: Array
    moments: Array
    quantiles: Array
    histogram: Array
    tokens: Array
    token_means: Array
    n_tokens: Array
    examples: Array
    example_peaks: Array
    n_examples: Array


def work_for(lookup: TokenLookup, most_contexts: int, most_rows: int, *, wide: bool) -> Work:
    """Counters for features of at most `most_contexts` contexts and `most_rows` rows.

    wide: their values are float32.
    """
    vocabulary, copies = len(lookup.texts), lookup.copies
    return Work(
        state=_EMPTY.copy(),
        value_count=np.zeros(KEYS, np.int64),
        peak_count=np.zeros(KEYS, np.int64),
        token_sum=np.zeros(vocabulary, np.float64),
        token_count=np.zeros(vocabulary, np.int64),
        touched=np.empty(vocabulary, np.int64),
        kept=np.empty(most_rows if wide else 0, np.float32),
        group_context=np.empty(most_contexts, np.int64),
        group_peak=np.empty(most_contexts, np.float32),
        group_index=np.empty(most_contexts, np.int32),
        group_start=np.empty(most_contexts, np.int64),
        group_length=np.empty(most_contexts, np.int64),
        copies=copies,
        first_context=lookup.first_context,
        best_copy=np.full(int(copies.max(initial=-1)) + 1, _LAST_RANK),
    )


def room_for(features: int) -> Tallies:
    """Empty results for so many features."""
    return Tallies(
        numbers=np.zeros((features, 3), np.int64),
        moments=np.zeros((features, 4), np.float64),
        quantiles=np.zeros((features, len(_QUANTILES)), np.float32),
        histogram=np.zeros((features, _BINS), np.int64),
        tokens=np.zeros((features, _TOKENS, 2), np.int64),
        token_means=np.zeros((features, _TOKENS), np.float32),
        n_tokens=np.zeros(features, np.int64),
        examples=np.zeros((features, MOST_EXAMPLES, 6), np.int64),
        example_peaks=np.zeros((features, MOST_EXAMPLES), np.float32),
        n_examples=np.zeros(features, np.int64),
    )


@jit
def scan(rows: FeatureEntries, low: int, high: int, first_row: int, wide: bool, work: Work) -> None:
    """Count rows low <= i < high, all of one feature, in `work`.

    first_row: what row `low` is counted as. A context may continue in the next call.
    """
    state = work.state
    groups = state[_GROUPS]
    lowest, highest = state[_LOW], state[_HIGH]
    for i in range(low, high):
        value = rows.value[i]
        token = rows.token[i]
        if wide:
            work.kept[state[_ROWS]] = value
        else:
            key = key_of_bits(rows.key[i])
            work.value_count[key] += 1
            lowest, highest = min(lowest, key), max(highest, key)
        state[_ROWS] += 1
        if work.token_count[token] == 0:
            work.touched[state[_TOUCHED]] = token
            state[_TOUCHED] += 1
        work.token_count[token] += 1
        work.token_sum[token] += value
        context = rows.context[i]
        if groups == 0 or work.group_context[groups - 1] != context:
            work.group_context[groups] = context
            work.group_peak[groups] = value
            work.group_index[groups] = rows.token_index[i]
            work.group_start[groups] = first_row + (i - low)
            work.group_length[groups] = 1
            groups += 1
            if rows.document[i] != state[_LAST_DOCUMENT]:
                state[_LAST_DOCUMENT] = rows.document[i]
                state[_DOCUMENTS] += 1
        else:
            work.group_length[groups - 1] += 1
            if value > work.group_peak[groups - 1]:
                work.group_peak[groups - 1] = value
                work.group_index[groups - 1] = rows.token_index[i]
    state[_GROUPS] = groups
    state[_LOW], state[_HIGH] = lowest, highest


@jit
def close(feature: int, row: int, wide: bool, work: Work, tallies: Tallies) -> None:
    """Write `work` to row `row` of `tallies`, and reset it for the next feature."""
    state = work.state
    n, groups = state[_ROWS], state[_GROUPS]
    tallies.numbers[row, 0] = n
    tallies.numbers[row, 1] = groups
    tallies.numbers[row, 2] = state[_DOCUMENTS]
    if n > 0:
        levels, counts = _levels(n, wide, work)
        _describe(row, n, levels, counts, tallies)
        _rank_tokens(row, work, tallies)
        _choose_examples(feature, row, wide, work, tallies)
    state[:] = _EMPTY


@jit
def tally(
    first_feature: int,
    offsets: Array,
    rows: FeatureEntries,
    wide: bool,
    work: Work,
    tallies: Tallies,
) -> None:
    """Tally consecutive features. Feature i has rows offsets[i] to offsets[i + 1]."""
    for i in range(len(offsets) - 1):
        scan(rows, offsets[i], offsets[i + 1], offsets[i], wide, work)
        close(first_feature + i, i, wide, work, tallies)


@jit
def _levels(n: int, wide: bool, work: Work) -> tuple[Array, Array]:
    """The distinct values, ascending, float64, and how often each occurs. Counters reset."""
    if wide:
        ordered = sorted_keys(float32_keys(work.kept[:n]))
        values = np.empty(n, np.uint32)
        counts = np.zeros(n, np.int64)
        used = -1
        for i in range(n):
            if i == 0 or ordered[i] != ordered[i - 1]:
                used += 1
                bits = np.uint32(ordered[i])
                values[used] = bits ^ SIGN if bits & SIGN else ~bits
            counts[used] += 1
        levels = values[: used + 1].view(np.float32).astype(np.float64)
        return levels, counts[: used + 1]
    low, high = work.state[_LOW], work.state[_HIGH]
    used = 0
    levels = np.empty(high - low + 1, np.float64)
    counts = np.empty(high - low + 1, np.int64)
    for key in range(low, high + 1):
        if work.value_count[key]:
            levels[used] = value_of_key(key)
            counts[used] = work.value_count[key]
            work.value_count[key] = 0
            used += 1
    return levels[:used], counts[:used]


@jit
def _describe(row: int, n: int, levels: Array, counts: Array, tallies: Tallies) -> None:
    """Moments, quantiles and histogram of the distinct values."""
    total = 0.0
    for i in range(len(levels)):
        total += levels[i] * counts[i]
    mean = total / n
    spread = 0.0
    for i in range(len(levels)):
        spread += counts[i] * (levels[i] - mean) ** 2
    tallies.moments[row, 0] = levels[0]
    tallies.moments[row, 1] = levels[-1]
    tallies.moments[row, 2] = mean
    tallies.moments[row, 3] = np.sqrt(spread / n)
    below, i = counts[0], 0
    for q in range(len(_QUANTILES)):
        # The smallest value with at least q n of the values at or below it.
        wanted = min(n, max(1, int(np.ceil(_QUANTILES[q] * n))))
        while below < wanted:
            i += 1
            below += counts[i]
        tallies.quantiles[row, q] = levels[i]
    floor = min(0.0, levels[0])
    width = max(0.0, levels[-1]) - floor
    for i in range(len(levels)):
        cell = int(np.ceil((levels[i] - floor) * _BINS / width)) - 1
        tallies.histogram[row, min(max(cell, 0), _BINS - 1)] += counts[i]


@jit
def _rank_tokens(row: int, work: Work, tallies: Tallies) -> None:
    """The tokens of largest total activation, ties by token id. Sums reset."""
    best = tallies.tokens[row]
    sums = np.empty(_TOKENS, np.float64)
    used = 0
    for t in range(work.state[_TOUCHED]):
        token = work.touched[t]
        total = work.token_sum[token]
        at = used
        while at > 0 and (
            sums[at - 1] < total or (sums[at - 1] == total and best[at - 1, 0] > token)
        ):
            at -= 1
        if at < _TOKENS:
            used = min(used + 1, _TOKENS)
            for i in range(used - 1, at, -1):
                sums[i] = sums[i - 1]
                best[i, 0] = best[i - 1, 0]
                best[i, 1] = best[i - 1, 1]
            sums[at] = total
            best[at, 0] = token
            best[at, 1] = work.token_count[token]
    for t in range(work.state[_TOUCHED]):
        work.token_sum[work.touched[t]] = 0.0
        work.token_count[work.touched[t]] = 0
    for i in range(used):
        tallies.token_means[row, i] = sums[i] / best[i, 1]
    tallies.n_tokens[row] = used


@jit
def _ranks(groups: int, wide: bool, work: Work) -> Array:
    """Each context's place among the feature's: maximum descending, ties by context id."""
    if wide:
        ordered = float32_keys(work.group_peak[:groups])
        for g in range(groups):
            # The strongest first, the group itself in the low half.
            ordered[g] = ((np.uint64(0xFFFFFFFF) - ordered[g]) << np.uint64(32)) | np.uint64(g)
        ordered = sorted_keys(ordered)
        ranks = np.empty(groups, np.int64)
        for rank in range(groups):
            ranks[np.int64(ordered[rank] & np.uint64(0xFFFFFFFF))] = rank
        return ranks
    ranks = np.empty(groups, np.int64)
    keys = np.empty(groups, np.int64)
    low, high = KEYS, -1
    for g in range(groups):
        key = key_of_value(work.group_peak[g])
        keys[g] = key
        work.peak_count[key] += 1
        low, high = min(low, key), max(high, key)
    before = 0
    for key in range(high, low - 1, -1):
        count = work.peak_count[key]
        work.peak_count[key] = before
        before += count
    for g in range(groups):
        ranks[g] = work.peak_count[keys[g]]
        work.peak_count[keys[g]] += 1
    work.peak_count[low : high + 1] = 0
    return ranks


@jit
def _choose_examples(feature: int, row: int, wide: bool, work: Work, tallies: Tallies) -> None:
    """Choose the strongest contexts, and per quintile those of smallest (feature, context) hash.

    Of contexts of one text only the strongest may be sampled.
    """
    groups = work.state[_GROUPS]
    ranks = _ranks(groups, wide, work)
    for g in range(groups):
        copy = work.copies[work.group_context[g] - work.first_context]
        if copy >= 0:
            work.best_copy[copy] = min(work.best_copy[copy], ranks[g])
    top = np.full(_TOP, -1, np.int64)
    sampled = np.full((_FIFTHS, _PER_FIFTH), -1, np.int64)
    hashes = np.zeros((_FIFTHS, _PER_FIFTH), np.uint64)
    seed = _mix(feature)
    for g in range(groups):
        if ranks[g] < _TOP:
            top[ranks[g]] = g
        copy = work.copies[work.group_context[g] - work.first_context]
        if copy >= 0 and work.best_copy[copy] != ranks[g]:
            continue
        fifth = _FIFTHS - 1 - ranks[g] * _FIFTHS // groups
        mixed = _mix(np.uint64(work.group_context[g]) ^ seed)
        at = _PER_FIFTH
        while at > 0 and (sampled[fifth, at - 1] < 0 or mixed < hashes[fifth, at - 1]):
            at -= 1
        if at < _PER_FIFTH:
            for i in range(_PER_FIFTH - 1, at, -1):
                hashes[fifth, i] = hashes[fifth, i - 1]
                sampled[fifth, i] = sampled[fifth, i - 1]
            hashes[fifth, at] = mixed
            sampled[fifth, at] = g
    for g in range(groups):
        copy = work.copies[work.group_context[g] - work.first_context]
        if copy >= 0:
            work.best_copy[copy] = _LAST_RANK
    used = 0
    for place in range(min(groups, _TOP)):
        _keep_example(row, used, 0, place + 1, top[place], work, tallies)
        used += 1
    for fifth in range(_FIFTHS):
        entries = sampled[fifth]
        place = 0
        while place < _PER_FIFTH and entries[place] >= 0:
            at = place
            while at > 0 and ranks[entries[at]] < ranks[entries[at - 1]]:
                entries[at], entries[at - 1] = entries[at - 1], entries[at]
                at -= 1
            place += 1
        for i in range(place):
            _keep_example(row, used, fifth + 1, i + 1, entries[i], work, tallies)
            used += 1
    tallies.n_examples[row] = used


@jit
def _keep_example(
    row: int, at: int, kind: int, rank: int, group: int, work: Work, tallies: Tallies
) -> None:
    example = tallies.examples[row, at]
    example[0] = kind
    example[1] = rank
    example[2] = work.group_context[group]
    example[3] = work.group_index[group]
    example[4] = work.group_start[group]
    example[5] = work.group_length[group]
    tallies.example_peaks[row, at] = work.group_peak[group]


@jit
def _mix(number: Any) -> Any:
    """splitmix64's finalizer (Steele, Lea and Flood 2014), uint64."""
    x = np.uint64(number)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))

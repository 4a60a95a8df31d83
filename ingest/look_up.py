"""Documents and tokens of the stored corpora, as the statistics ask for them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from featuredb.layout import Layout
from featuredb.parquet import ParquetFiles
from featuredb.snapshot import Corpus, Draft
from featuredb.texts import Texts
from ingest.derive.statistics import TokenLookUp


def token_look_up(layout: Layout, draft: Draft) -> TokenLookUp:
    """Documents and tokens of the corpora being published."""
    files = ParquetFiles(layout.root)
    texts = Texts(layout.root, draft, files)
    starts = np.array([c.first_context for c in draft.corpora], np.int64)

    def each(
        context_id: npt.NDArray[np.int64],
        read: Callable[
            [Corpus, npt.NDArray[np.int64], npt.NDArray[np.bool_]], npt.NDArray[np.int64]
        ],
    ) -> npt.NDArray[np.int64]:
        answer = np.empty(len(context_id), np.int64)
        owner = np.searchsorted(starts, context_id, side="right") - 1
        for number, corpus in enumerate(draft.corpora):
            mine = owner == number
            if mine.any():
                answer[mine] = read(corpus, context_id[mine] - corpus.first_context, mine)
        return answer

    def document(context_id: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return each(context_id, lambda corpus, row, _: texts.index(corpus)[row, 0])

    def token(
        context_id: npt.NDArray[np.int64], token_index: npt.NDArray[np.int32]
    ) -> npt.NDArray[np.int64]:
        return each(
            context_id,
            lambda corpus, row, mine: texts.tokens(corpus)[
                texts.index(corpus)[row, 1] + token_index[mine]
            ].astype(np.int64),
        )

    return TokenLookUp(document, token, texts.token_texts)

"""Codebooks of short vectors, and the matrix that they stand for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class Book:
    """A codebook and where its codewords stand.

    Attributes:
        columns: of the matrix that it is for, groups of one width.
        words: float64 [codewords, width].
        places: which of them each row has in each group, [rows, groups].
    """

    columns: tuple[slice, ...]
    words: np.ndarray
    places: np.ndarray

    def with_words(self, words: np.ndarray) -> Book:
        """Others in the same places."""
        return replace(self, words=words)

    def with_places(self, places: np.ndarray) -> Book:
        """The same in other places."""
        return replace(self, places=places)

    def summed(self, matrix: np.ndarray) -> np.ndarray:
        """What stands in a matrix where each codeword does, summed; as `words`."""
        vectors = np.concatenate([matrix[:, columns] for columns in self.columns])
        places, count = self.places.T.reshape(-1), len(self.words)
        return np.stack([np.bincount(places, column, count) for column in vectors.T], axis=1)


def assembled(books: Sequence[Book], shape: tuple[int, ...]) -> np.ndarray:
    """The matrix that books stand for: the sum of them where several have the same columns."""
    made = np.zeros(shape)
    for book in books:
        for columns, places in zip(book.columns, book.places.T, strict=True):
            made[:, columns] += book.words[places]
    return made

"""Results of a verification."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """A problem: the file or part, what is wrong, and what to do."""

    where: str
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}; {self.remedy}"


@dataclass(frozen=True)
class Recomputed:
    """A sample of contexts run through the model again.

    activations: those compared. flips: those that only one side has. largest_error: the largest
    difference of two values, over the larger of the computed one and the SAE's median.
    """

    contexts: int
    tokens: int
    activations: int
    flips: int
    largest_error: float

    def __str__(self) -> str:
        return (
            f"recomputed: {self.activations:,} activations of {self.contexts:,} contexts "
            f"({self.tokens:,} tokens), largest error {self.largest_error:.1e}, "
            f"{counted(self.flips, 'activation')} on one side only"
        )


@dataclass(frozen=True)
class Report:
    """Result of a verification. problems is empty for a sound database.

    files, bytes, activations: what was checked. notes: remarks that are not problems.
    recomputed: the comparison with the model, if requested.
    """

    files: int
    bytes: int
    activations: int
    problems: tuple[Problem, ...]
    notes: tuple[str, ...] = ()
    recomputed: Recomputed | None = None

    @property
    def ok(self) -> bool:
        return not self.problems

    def __str__(self) -> str:
        lines = [*map(str, self.problems), *(f"note: {note}" for note in self.notes)]
        if self.recomputed is not None:
            lines.append(str(self.recomputed))
        state = "sound" if self.ok else counted(len(self.problems), "problem")
        lines.append(
            f"{state}: {counted(self.files, 'file')}, {self.bytes:,} bytes, "
            f"{counted(self.activations, 'activation')} checked"
        )
        return "\n".join(lines)


def counted(number: int, noun: str) -> str:
    """``1 file``, ``2 files``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"

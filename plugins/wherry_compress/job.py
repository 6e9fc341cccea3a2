"""What a pass is given in its own process, and what it gives back."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx


class Refusal(Exception):  # noqa: N818 -- an answer, not a fault
    """The pass cannot do this, and says why; the user sees it as the error of the variant.

    Args:
        message: what was asked and what was found.
        where: the node or tensor, if there is one.
        remedy: what the user can do, as a sentence.
    """

    def __init__(
        self, message: str, *, where: str | None = None, remedy: str = "Leave the pass out."
    ) -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.remedy = remedy


@dataclass(frozen=True)
class Data:
    """The samples of one role, preprocessed, in files of arrays.

    Attributes:
        inputs: the model's input to a .npy file: [samples, *shape] with the batch axis of 1.
        labels: of each sample, int64 [samples]; None where the dataset has no class indices.
    """

    inputs: Mapping[str, Path]
    labels: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.array(next(iter(self.inputs))))

    def array(self, name: str) -> np.ndarray:
        """All samples of an input, mapped from its file."""
        found: np.ndarray = np.load(self.inputs[name], mmap_mode="r", allow_pickle=False)
        return found

    def samples(self, count: int | None = None) -> Iterator[dict[str, np.ndarray]]:
        """The first ``count`` samples, all of them for None, each as the model takes it."""
        for index in range(len(self) if count is None else min(count, len(self))):
            # mapped anew for each sample, or all that was read would stay in memory
            yield {name: np.array(self.array(name)[index]) for name in self.inputs}


@dataclass(frozen=True)
class Job:
    """One pass over one model.

    Attributes:
        model: the ONNX file: static shapes, a name for each node, weights inside; the normal form
            (`wherry.normalise`) where the pass asks for it.
        parameters: of the pass, JSON values.
        data: role to samples; those that the pass needs.
        original: the model before any pass, for passes that need it.
        seed: of everything that is drawn by chance.
        scratch: an empty folder, deleted afterwards.
        unfinished: a folder that is there again where the same pass was interrupted; it need not
            exist yet, and is deleted when the pass is done. None: there is no place for one.
    """

    model: Path
    parameters: Mapping[str, Any]
    scratch: Path
    data: Mapping[str, Data] = field(default_factory=dict)
    original: Path | None = None
    seed: int = 0
    unfinished: Path | None = None

    def load(self) -> onnx.ModelProto:
        """The model, read anew."""
        import onnx

        return onnx.load(self.model)


def tell(text: str) -> None:
    """Say what is being done now, one line: the host shows it (`wherry.engine.worker.PROGRESS`)."""
    sys.stdout.write(f"wherry-progress: {text}\n")
    sys.stdout.flush()


@dataclass(frozen=True)
class Done:
    """What a pass made.

    Attributes:
        model: valid ONNX with the inputs and outputs of the given one.
        figures: what it did, for the report: JSON values by name.
        warnings: what the report has to say beside the results, sentences.
    """

    model: onnx.ModelProto
    figures: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

"""Every error that wherry raises on purpose: one root, an exit code per class.

An error says what was asked, what was found, where, and what to do. ``str(error)`` is one
paragraph that can be printed as it is. Anything else that escapes is a bug of ours (exit code 70).
"""

from __future__ import annotations

from typing import ClassVar, Self


class WherryError(Exception):
    """The root. Raise one of the classes below.

    Args:
        message: what was asked and what was found.
        where: the place: ``file:line:column``, a node, a device, a step.
        remedy: what the user can do about it, as a sentence.
    """

    exit_code: ClassVar[int] = 1

    def __init__(
        self, message: str, *, where: str | None = None, remedy: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.remedy = remedy

    def __str__(self) -> str:
        text = f"{self.where}: {self.message}" if self.where else self.message
        if self.remedy:
            text = f"{text.rstrip('.')}. {self.remedy}"
        return text

    def within(self, where: str) -> Self:
        """The same error, told from a place further out, as the manifest's line that led to it."""
        message = f"{self.where}: {self.message}" if self.where else self.message
        return type(self)(message, where=where, remedy=self.remedy)

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.message, self.where, self.remedy))


def _rebuild(
    cls: type[WherryError], message: str, where: str | None, remedy: str | None
) -> WherryError:
    return cls(message, where=where, remedy=remedy)


class UsageError(WherryError):
    """The command line or a Python call was wrong."""

    exit_code = 2


class ManifestError(WherryError):
    """A manifest or an inventory says something that cannot be."""


class PluginError(WherryError):
    """A plugin broke a contract, or two plugins claim one name."""


class ModelError(WherryError):
    """An ONNX file cannot be read, is invalid, or does not fit what the manifest says of it."""


class DataError(WherryError):
    """A dataset is missing, empty, malformed, or does not fit the model."""


class EnvironmentError_(WherryError):  # noqa: N801, N818 -- the built-in name EnvironmentError means OSError
    """A tool's or runtime's environment cannot be made."""


class UnfitError(EnvironmentError_):
    """A set of packages has no build for a machine: another set may have one."""


class ToolError(WherryError):
    """A tool in a process of its own failed, crashed, or went over its limits."""


class UnsupportedError(WherryError):
    """A backend cannot do what the target asks (operator, precision, option), and says so."""


class ParityError(WherryError):
    """An artifact's outputs differ too much from the model's."""


class DeviceError(WherryError):
    """A device cannot be reached, is taken, was lost, or refused something."""


class DeviceTakenError(DeviceError):
    """Another holds the device's lease."""


class DeviceLostError(DeviceError):
    """The link or the board went away while it was used, or could not be reached: try again."""


class StoreError(WherryError):
    """The store cannot be read or written, or an entry does not match its hash."""


class BundleError(WherryError):
    """An archive is no bundle, is not whole, was changed, or could do harm."""


class RunFailed(WherryError):  # noqa: N818 -- it is an outcome, named as the exit code is
    """A run ended and some of its targets failed; the report names them."""


class GateFailed(WherryError):  # noqa: N818 -- an outcome
    """A run ended well, and a gate of the manifest did not hold."""

    exit_code = 3


class Interrupted(WherryError):  # noqa: N818 -- an outcome
    """The user stopped the run; what was done is kept."""

    exit_code = 130


BUG_EXIT_CODE = 70

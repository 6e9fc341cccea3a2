"""What an environment of a tool or a runtime holds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Requirements:
    """Python packages of one environment.

    Built-in plugins pin everything, dependencies too; what a plugin leaves open is resolved once
    and locked per machine (``engine.environments``).

    Attributes:
        packages: PEP 508 strings, installed with their dependencies; markers are allowed.
        no_deps: PEP 508 strings, installed after ``packages`` without their dependencies.
        ignore_requires_python: the ``no_deps`` packages claim a newer Python than they need;
            they are then resolved and installed as if for that one.
        python: the interpreters that this set was tried on, as a PEP 440 specifier.
        hashes: sha256 (hex) of the files that the ``no_deps`` packages may be; empty: what the
            index gives, locked when it is first asked. For packages that others than their makers
            have put there.
    """

    packages: tuple[str, ...] = ()
    no_deps: tuple[str, ...] = ()
    ignore_requires_python: bool = False
    python: str = ">=3.8"
    hashes: tuple[str, ...] = ()

"""``wherry bundle``: from a run to an archive, and to its signature."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wherry.artifact import hash_file
from wherry.bundle import archive, signing
from wherry.bundle.choose import Wish
from wherry.bundle.contents import files_of, name_of
from wherry.bundle.gather import gathered
from wherry.bundle.runtime import runtime_of

if TYPE_CHECKING:
    from wherry.host import Host
    from wherry.plan import Plan
    from wherry.reports import RunRecord


def _nothing_shown(_plan: Plan) -> Any:
    return nullcontext()


def make(
    record: RunRecord,
    output: Path,
    wish: Wish,
    *,
    samples: int,
    key: signing.SecretKey | None,
    host: Host | None,
    tell: Callable[[str], None],
    on_plan: Callable[[Plan], Any] = _nothing_shown,
) -> dict[str, Any]:
    """Write an archive, and ``FILE.minisig`` where a key is given.

    Args:
        record: of the run.
        output: the archive's file.
        wish: which result.
        samples: how many sample inputs.
        key: that signs; None: nothing is signed.
        host: the loaded plugins; None: load them.
        tell: told what could not be had.
        on_plan: see `wherry.bundle.gather.gathered`.

    Returns:
        JSON values: ``file``, ``sha256``, ``bytes``, ``files`` (how many), ``result`` (its name),
        ``artifact``, ``signature`` (its file, or null), ``notes``.
    """
    archive.check_name(output)
    notes: list[str] = []

    def told(text: str) -> None:
        notes.append(text)
        tell(text)

    with gathered(record, wish, samples, host=host, tell=told, on_plan=on_plan) as material:
        runtime = runtime_of(material, told)
        files = files_of(material, runtime)
        # of an archive that was here before: it would not hold for this one
        output.with_name(output.name + signing.SUFFIX).unlink(missing_ok=True)
        archive.write(output, name_of(material), files)
        signature = None
        if key is not None:
            signature = signing.sign(output, key, f"{name_of(material)} {record.values['run_id']}")
        return {
            "file": str(output),
            "sha256": hash_file(output),
            "bytes": output.stat().st_size,
            "files": len(files) + 1,
            "result": material.result["name"],
            "artifact": material.result["artifact"],
            "signature": None if signature is None else str(signature),
            "notes": notes,
        }

"""What needs the token: to tag a run, to delete one, to probe a board."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from wherry.serve.refusals import Refusal
from wherry.serve.site import now

if TYPE_CHECKING:
    from wherry.serve.site import Site


def tag(site: Site, name: str, text: str | None) -> str:
    """Give a run a tag; None or nothing: none. Returns its id."""
    run_id = site.records.find(name)
    site.records.retag(run_id, text or None)
    return run_id


def delete(site: Site, name: str) -> str:
    """Delete a run's record; its folder on this machine stays. Returns its id."""
    run_id = site.records.find(name)
    site.records.delete([run_id])
    return run_id


def probe(site: Site, name: str) -> dict[str, Any]:
    """Ask a board what it is and who holds it; remembered in ``site.probed``.

    Returns:
        ``at``, and the fields of `wherry.device.BoardInfo`, or ``error``.
    """
    from wherry.cli.devices import devices_probe

    if name not in site.inventory().devices:
        raise Refusal(
            404,
            f"there is no board {name!r} in the inventory",
            "Take one that `GET /api/boards` lists with a transport, or add it to devices.yaml.",
        )
    with site.lock:
        if name in site.probing:
            raise Refusal(
                409, f"{name} is being probed already", "Wait: the list of boards will show it."
            )
        site.probing.add(name)
    try:
        found = {"at": now(), **devices_probe([name], site.host)[name]}
    finally:
        with site.lock:
            site.probing.discard(name)
    site.probed[name] = found
    return found

"""The charts' library: Vega and Vega-Lite, out of the package vl-convert-python.

It is an extra (``wherry[report]``), for it takes 88 MB on disk. Its JavaScript is bundled by the
package itself, which takes seconds; so it is kept in wherry's home.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import tempfile
from functools import cache
from pathlib import Path

from wherry.home import home

NOTICE = """\
/*! Charts by Vega, Vega-Lite and Vega-Embed, (c) University of Washington Interactive Data Lab and
contributors, BSD-3-Clause, with parts of D3 (ISC, (c) Mike Bostock) and lodash (MIT, (c) OpenJS
Foundation); as bundled by vl-convert. Their licences: vega.github.io, d3js.org, lodash.com. */
"""


@cache
def library() -> str | None:
    """The JavaScript that makes ``vegaEmbed`` known to the page; None where it is not installed."""
    if importlib.util.find_spec("vl_convert") is None:
        return None
    version = importlib.metadata.version("vl-convert-python")
    kept = home() / "javascript" / f"vega-of-vl-convert-{version}.js"
    if not kept.is_file():
        _keep(NOTICE + _bundled(), kept)
    return kept.read_text(encoding="utf-8")


def _bundled() -> str:
    import vl_convert

    made: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    if "</script" in made.lower() or "<!--" in made:  # either would end or change the element
        raise AssertionError("the charts' library cannot stand in a page")
    return made


def _keep(text: str, path: Path) -> None:
    """Write by rename: others may read it, or make the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, suffix=".part")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)

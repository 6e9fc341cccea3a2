"""The command line's verbs as Python functions with the same names and arguments.

from wherry import api
record = api.run("manifest.yaml")
print(record.values["results"][0]["latency"]["median_ms"])
"""

from __future__ import annotations

from wherry.cli.bundle import bundle, bundle_key, bundle_verify
from wherry.cli.cache import cache_explain, cache_gc, cache_list, cache_verify
from wherry.cli.compare import compare
from wherry.cli.debug import debug_layers
from wherry.cli.devices import (
    devices_clean,
    devices_list,
    devices_probe,
    devices_setup,
    devices_shell,
    devices_trust,
    devices_unlock,
)
from wherry.cli.doctor import doctor
from wherry.cli.init import init
from wherry.cli.plan import plan
from wherry.cli.plugins import plugins_list, plugins_operators
from wherry.cli.records import (
    records_delete,
    records_export,
    records_import,
    records_prune,
    records_tag,
    records_verify,
)
from wherry.cli.report import report, report_track
from wherry.cli.run import run
from wherry.cli.schema import schema
from wherry.cli.serve import serve

__all__ = [
    "bundle",
    "bundle_key",
    "bundle_verify",
    "cache_explain",
    "cache_gc",
    "cache_list",
    "cache_verify",
    "compare",
    "debug_layers",
    "devices_clean",
    "devices_list",
    "devices_probe",
    "devices_setup",
    "devices_shell",
    "devices_trust",
    "devices_unlock",
    "doctor",
    "init",
    "plan",
    "plugins_list",
    "plugins_operators",
    "records_delete",
    "records_export",
    "records_import",
    "records_prune",
    "records_tag",
    "records_verify",
    "report",
    "report_track",
    "run",
    "schema",
    "serve",
]

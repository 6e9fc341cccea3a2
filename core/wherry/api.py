"""The command line's verbs as Python functions with the same names and arguments.

    from wherry import api
    record = api.run("manifest.yaml")
    print(record.values["results"][0]["latency"]["median_ms"])
"""

from __future__ import annotations

from wherry.cli.doctor import doctor
from wherry.cli.init import init
from wherry.cli.plan import plan
from wherry.cli.report import report
from wherry.cli.run import run
from wherry.cli.schema import schema

__all__ = ["doctor", "init", "plan", "report", "run", "schema"]

"""ONNX's own backend tests through each backend: converted, run, compared; prints the matrix.

Run it as a script (it is no test: it takes half an hour on two cores)::

    WHERRY_HOME=/tmp/home python tests/benchmarks/bench_conformance.py --results /tmp/conformance

What is done is kept in the folder of results, a file a network and backend, and not done again
until the backend's code changes; so it can be stopped at any time. ``--minutes`` does that itself.

right: the outputs on every sample reach the parity that wherry asks of fp32. refused: before
anything was made, or by the converter, with words. wrong: made and run, with other outputs, which
only the parity check finds. crashed: a tool or the runtime failed in any other way.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from click import echo

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE.parent / "support"))
from loading import load  # noqa: E402 -- its folder has to be on the path first

from wherry.errors import UnsupportedError, WherryError  # noqa: E402 -- after the line above
from wherry.stages.convert import refuse_unsupported  # noqa: E402 -- likewise

suite = load(HERE.parent / "conformance" / "onnx_suite.py")
trials = load(HERE.parent / "conformance" / "trials.py")

STATUSES = ("right", "refused", "wrong", "crashed")
BATCH = 32


@dataclass
class Result:
    """What became of one form of a case with one backend.

    Attributes:
        status: one of `STATUSES`.
        words: the error's; empty where it is right.
        missing: what a refusal should have said and did not.
        code: of the backend, when it was tried.
    """

    status: str
    words: str = ""
    missing: str = ""
    code: str = ""


class Trials(trials.Trials):
    """Trials of forms whose models have static shapes already."""

    def try_all(self, forms: Mapping[str, Any]) -> dict[str, Result]:
        """Convert, run and compare; keyed by the forms' digests."""
        self._forms = forms
        made = self.run(dict.fromkeys(forms), {d: form.samples for d, form in forms.items()})
        words = {"failed": "crashed", "broken": "crashed"}
        return {
            digest: Result(words.get(trial.status, trial.status), trial.words, trial.missing)
            for digest, trial in made.items()
        }

    def _convert(self, name: str, proto: Any, target: Any, samples: Any) -> Any:
        del proto, samples
        trial = trials.Trial(self._forms[name].model)
        trial.missing = ""
        try:
            refuse_unsupported(self.backend.preflight(trial.model, target), target)
            trial.artifact = self.workshop.convert(trial.model, target, [])
        except UnsupportedError as error:
            trial.status, trial.words = "refused", str(error)
            trial.missing = suite.nameless(error.message, error.where, error.remedy, trial.model)
        except WherryError as error:
            trial.status, trial.words = "failed", str(error)
        except Exception as error:  # noqa: BLE001 -- a bug, which is what is looked for
            trial.status, trial.words = "failed", f"{type(error).__name__}: {error}"
        return trial


def verdict(results: Sequence[Result]) -> Result:
    """Of the forms of a case: what is wrong in one of them counts, then what is right."""
    for status in ("wrong", "crashed", "right"):
        for result in results:
            if result.status == status:
                return result
    return next((result for result in results if result.missing), results[-1])


class Bench:
    """The results of one backend, kept in a folder."""

    def __init__(self, name: str, asked: argparse.Namespace, warm: Any) -> None:
        self.name, self._asked, self._warm = name, asked, warm
        self._folder = asked.results / name
        self._folder.mkdir(parents=True, exist_ok=True)
        self._code = suite.code_of((ROOT / "plugins" / f"wherry_{name}").rglob("*.py"))

    def known(self, form: Any) -> Result | None:
        """What is in the folder and still holds."""
        path = self._folder / f"{form.digest}.json"
        if not path.exists():
            return None
        result = Result(**json.loads(path.read_text()))
        stale = result.code != self._code and not (
            self._asked.keep and result.status in self._asked.keep
        )
        return None if stale else result

    def run(self, cases: Sequence[Any]) -> dict[str, Result]:
        """All cases, as far as the time goes, by name."""
        self._try([case.forms[0] for case in cases])
        refused = [
            case.forms[1]
            for case in cases
            if len(case.forms) > 1
            and (first := self.known(case.forms[0])) is not None
            and first.status == "refused"
        ]
        self._try(refused)
        results = {}
        for case in cases:
            if found := [result for form in case.forms if (result := self.known(form))]:
                results[case.name] = verdict(found)
        return results

    def _try(self, forms: Sequence[Any]) -> None:
        left = {form.digest: form for form in forms if self.known(form) is None}
        todo = list(left)
        for start in range(0, len(todo), BATCH):
            if time.monotonic() > self._asked.deadline:
                echo(f"{self.name}: time is over, {len(todo) - start} are left", err=True)
                return
            digests = todo[start : start + BATCH]
            folder = Path(tempfile.mkdtemp(prefix="conformance-"))
            try:
                with self._warm.taken():
                    made = Trials(self.name, folder).try_all({key: left[key] for key in digests})
            finally:
                shutil.rmtree(folder, ignore_errors=True)
            for digest, result in made.items():
                result.code = self._code
                (self._folder / f"{digest}.json").write_text(json.dumps(vars(result)))
            counts = dict(Counter(result.status for result in made.values()))
            echo(f"{self.name}: {start + len(digests)} of {len(todo)}: {counts}", err=True)


def claimed(name: str) -> frozenset[str] | None:
    """The operators that a backend's documentation says it converts; None: all."""
    if name == "tflite":
        from wherry_tflite.operators import OPERATORS, REFUSED

        return frozenset(OPERATORS - set(REFUSED))
    if name == "caffe2":
        from wherry_caffe2.operators import operators

        return frozenset(kind for kind, told in operators().items() if told.level != "no")
    if name == "ncnn":
        from wherry_ncnn.operators import OPERATORS as CONVERTED

        return frozenset(CONVERTED)
    return None


def summary(name: str, cases: Sequence[Any], results: Mapping[str, Result]) -> list[str]:
    """Lines for the table of totals: over all cases, and within the claimed operators."""
    operators = claimed(name)
    inside = [
        case
        for case in cases
        if operators is None or operators.issuperset({*case.operators} - {"Constant"})
    ]
    lines = []
    for title, some in (("all", cases), ("operators that it claims", inside)):
        counts = Counter(results[case.name].status for case in some if case.name in results)
        share = counts["right"] / max(1, sum(counts.values()))
        figures = " | ".join(str(counts[status]) for status in STATUSES)
        lines.append(f"| {name} | {title} | {sum(counts.values())} | {figures} | {share:.1%} |")
    return lines


def by_operator(cases: Sequence[Any], results: Mapping[str, Mapping[str, Result]]) -> list[str]:
    """A row for each operator: right of judged, for the networks of this operator alone."""
    groups: dict[str, list[str]] = defaultdict(list)
    for case in cases:
        kinds = [kind for kind in case.operators if kind != "Constant"]
        groups[kinds[0] if len(kinds) == 1 else "(several operators)"].append(case.name)
    lines = [f"| operator | {' | '.join(results)} |", "|---" * (len(results) + 1) + "|"]
    for kind, names in sorted(groups.items()):
        cells = []
        for found in results.values():
            counts = Counter(found[name].status for name in names if name in found)
            bad = ", ".join(f"{counts[s]} {s}" for s in ("wrong", "crashed") if counts[s])
            cells.append(f"{counts['right']} of {len(names)}{f' ({bad})' if bad else ''}")
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--results", type=Path, required=True, help="a folder, kept")
    parser.add_argument("--backend", action="append", help="all four, unless said")
    parser.add_argument("--only", default="", help="tests whose names hold this expression")
    parser.add_argument("--minutes", type=float, default=1e6, help="stop after that")
    parser.add_argument("--keep", nargs="*", help="results of older code with this status count")
    parser.add_argument("--show", nargs="*", default=("wrong", "crashed"), help="list these")
    asked = parser.parse_args()
    asked.deadline = time.monotonic() + 60 * asked.minutes
    results: dict[str, dict[str, Result]] = {}
    warm = trials.Warm(60)
    with tempfile.TemporaryDirectory(prefix="onnx-suite-") as folder:
        tests = suite.load_tests(asked.only)
        judged, left_out = [], Counter[str]()
        for each in suite.cases(tests, Path(folder)):
            if isinstance(each, tuple):
                left_out[re.sub(r"'[^']*'.*|:.*", "", each[1])] += 1
            else:
                judged.append(each)
        echo(f"{len(tests)} tests, {len(judged)} judged", err=True)
        for name in asked.backend or ("onnxruntime", "tflite", "ncnn", "caffe2"):
            results[name] = Bench(name, asked, warm).run(judged)
        warm.close()
    for name, found in results.items():
        for case in judged:
            result = found.get(case.name)
            if result is None:
                continue
            if result.status in asked.show or (result.status == "refused" and result.missing):
                missing = f" [does not name: {result.missing}]" if result.missing else ""
                echo(f"{name} {result.status} {case.name}{missing}: {result.words[:300]}")
    echo(f"\n{len(tests)} tests; {len(judged)} are judged. Left out:\n")
    for reason, count in left_out.most_common():
        echo(f"- {count}: {reason}")
    echo(f"\n| backend | over | judged | {' | '.join(STATUSES)} | right |")
    echo("|---" * 8 + "|")
    for name, found in results.items():
        echo("\n".join(summary(name, judged, found)))
    echo()
    echo("\n".join(by_operator(judged, results)))


if __name__ == "__main__":
    main()

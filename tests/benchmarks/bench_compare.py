"""How often `wherry compare` flags what is equal, and finds a planted slow-down of 5 %.

Run it as a script (it is no test: it takes a quarter of an hour)::

    python tests/benchmarks/bench_compare.py

A network of about 5 ms is measured in many whole runs with the default settings, by the path of
``wherry run --remeasure``; half as many runs of the same network with 5 % more layers, in shuffled
order among them. Then runs are compared as ``wherry compare --allow not-clean`` does:

* equal: pairs of runs of the same network, from random pairings of all runs (each run once in a
  pairing, no pair twice), until there are 200;
* planted: 200 random pairs of a run of the network and one of the slower, no pair twice.

Each run is in several pairs. So the intervals of 95 % are by a bootstrap over the runs, not over
the pairs. ``--pool FILE`` keeps the runs: what is there is not measured again.

``--turns N`` does the same for ``wherry compare BASE.yaml NEW.yaml``, which runs both in turns, and
compares them without any flag also where they are not clean: N
times three equal networks and the slower, 30 rounds each, all in turns; of each time the three
pairs of equal ones are compared, and each with the slower. Intervals are by a bootstrap over the N
times.

``--simulate`` measures nothing: it prints the rates for drawn runs of five rounds, whose shifts are
as large as what their rounds differ by (1000 comparisons each; half a minute).
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from bench_agent import say, tower

from wherry.difference import Rounds, latency_difference

CHANNELS, SIDE, LAYERS, MORE = 32, 28, 60, 3  # 3 of 60 layers: 5 %
PAIRS = 200
TURNS = ("one", "two", "three", "slower")
MANIFEST = """\
wherry: 1
model: {{path: {name}.onnx}}
targets: [{{backend: onnxruntime, precision: fp32}}]
parity: {{samples: 2}}
"""


def measure(runs: int, pool: Path, layers: int) -> None:
    """Add runs to the pool until it has so many of the network, and half as many of the slower."""
    from wherry.execute import execute, prepare
    from wherry.host import Host

    host = Host.load()
    with own_folder() as folder:
        for kind, count in (("same", layers), ("slower", layers + layers * MORE // LAYERS)):
            tower(folder / f"{kind}.onnx", CHANNELS, SIDE, count)
            (folder / f"{kind}.yaml").write_text(MANIFEST.format(name=kind))
        order = ["same", "same", "slower"] * (runs // 2)
        random.Random(0).shuffle(order)
        for number, kind in enumerate(order[len(load(pool)) :]):
            record = execute(prepare(folder / f"{kind}.yaml", remeasure=True, host=host))
            keep(pool, [figures(kind, record)])
            sys.stderr.write(f"\r  run {number + 1}/{len(order)} ")
    sys.stderr.write("\r" + " " * 30 + "\r")


@contextmanager
def own_folder() -> Iterator[Path]:
    """For networks, with a home of its own: these runs are not the user's."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        home = folder / "home"
        home.mkdir()
        os.environ |= {"WHERRY_HOME": str(home), "WHERRY_CONFIG": str(folder / "config")}
        os.environ.pop("WHERRY_RECORDS", None)
        if shared := os.environ.get("WHERRY_TEST_ENVIRONMENTS"):
            (home / "environments").symlink_to(shared)
        yield folder


def figures(kind: str, record: Any) -> dict[str, Any]:
    """What is kept of a run."""
    (result,) = record.values["results"]
    if result["status"] != "ok":
        raise SystemExit(result["error"])
    latency = result["latency"]
    rounds = np.split(record.samples[0]["infer_ns"] / 1e6, np.cumsum(latency["round_sizes"])[:-1])
    return {
        "kind": kind,
        "median": latency["median_ms"],
        "rounds": [float(np.median(samples)) for samples in rounds],
        "clean": latency["clean"],
        "load": os.getloadavg()[0],
    }


def keep(pool: Path, found: Sequence[dict[str, Any]]) -> None:
    """Add to the pool."""
    with pool.open("a") as stream:
        stream.writelines(json.dumps(one) + "\n" for one in found)


def measure_turns(times: int, pool: Path, layers: int) -> None:
    """Add to the pool until it has so many times all four, in turns."""
    from wherry.host import Host
    from wherry.turns import execute_in_turns, prepare_all

    host = Host.load()
    with own_folder() as folder:
        for name in TURNS:
            more = layers * MORE // LAYERS if name == "slower" else 0
            tower(folder / f"{name}.onnx", CHANNELS, SIDE, layers + more)
            model = onnx.load(folder / f"{name}.onnx")
            model.doc_string = name  # another file: one file would be measured once
            onnx.save(model, folder / f"{name}.onnx")
            (folder / f"{name}.yaml").write_text(MANIFEST.format(name=name))
        for number in range(len(load(pool)) // len(TURNS), times):
            manifests = [folder / f"{name}.yaml" for name in TURNS]
            prepared = prepare_all(manifests, host=host, tell=say)
            records = execute_in_turns(prepared)
            keep(pool, [figures(*each) for each in zip(TURNS, records, strict=True)])
            sys.stderr.write(f"\r  {number + 1}/{times} ")
    sys.stderr.write("\r" + " " * 30 + "\r")


def judge_turns(found: Sequence[dict[str, Any]]) -> None:
    """Compare what was measured in turns, and print."""
    count = len(TURNS)
    times = [found[start : start + count] for start in range(0, len(found), count)]
    equal: dict[int, list[float]] = {}
    planted: dict[int, list[float]] = {}
    for number, one in enumerate(times):
        *same, slower = (Rounds(each["median"], each["rounds"]) for each in one)
        equal[number] = [
            latency_difference(a, b, in_turns=True).verdict != "same"
            for a, b in itertools.combinations(same, 2)
        ]
        planted[number] = [
            latency_difference(a, slower, in_turns=True).verdict == "worse" for a in same
        ]
    loads = [one["load"] for one in found]
    scatter = np.mean([np.var(np.log(one["rounds"]), ddof=1) for one in found])
    say(
        f"{len(times)} times in turns; load {min(loads):.1f} to {max(loads):.1f}; standard "
        f"deviation of rounds {np.sqrt(scatter):.2%}"
    )
    rng = np.random.default_rng(0)
    for what, hits in (("equal, flagged: ", equal), ("planted, found: ", planted)):
        table = np.array(list(hits.values()), float)
        rates = table[rng.integers(0, len(table), (2000, len(table)))].mean(axis=(1, 2))
        low, high = np.percentile(rates, [2.5, 97.5])
        say(
            f"{what} {int(table.sum())} of {table.size} = {table.mean():.1%} "
            f"[{low:.1%}, {high:.1%}]"
        )


def load(pool: Path) -> list[dict[str, Any]]:
    """The runs that are kept."""
    return [json.loads(line) for line in pool.read_text().splitlines()] if pool.exists() else []


def pairings(count: int, wanted: int, order: random.Random) -> list[tuple[int, int]]:
    """Different pairs of ``count`` runs, each run about equally often."""
    pairs: set[tuple[int, int]] = set()
    found: list[tuple[int, int]] = []
    while len(found) < wanted:
        shuffled = order.sample(range(count), count // 2 * 2)
        for one, other in zip(shuffled[::2], shuffled[1::2], strict=True):
            pair = (min(one, other), max(one, other))
            if pair not in pairs and len(found) < wanted:
                pairs.add(pair)
                found.append((one, other))
    return found


def share(hits: Sequence[bool], members: Sequence[tuple[int, int]], runs: int) -> str:
    """The share of pairs, with an interval by a bootstrap over the runs that are in them."""
    rng, flags, pairs = np.random.default_rng(0), np.array(hits, float), np.array(members)
    rates = []
    for _ in range(2000):
        often = np.bincount(rng.integers(0, runs, runs), minlength=runs)
        weights = often[pairs[:, 0]] * often[pairs[:, 1]]
        if weights.sum():
            rates.append((flags * weights).sum() / weights.sum())
    low, high = np.percentile(rates, [2.5, 97.5])
    count = int(flags.sum())
    return f"{count} of {len(flags)} = {flags.mean():.1%} [{low:.1%}, {high:.1%}]"


def judge(found: Sequence[dict[str, Any]]) -> None:
    """Compare and print."""
    same, slower = ([one for one in found if one["kind"] == kind] for kind in ("same", "slower"))
    sides = [Rounds(one["median"], one["rounds"]) for one in [*same, *slower]]
    medians = [np.log([one["median"] for one in each]) for each in (same, slower)]
    scatter = np.mean([np.var(np.log(one["rounds"]), ddof=1) for one in found])
    loads = [one["load"] for one in found]
    say(
        f"{len(same)} runs of {np.exp(np.median(medians[0])):.2f} ms, {len(slower)} of "
        f"x{np.exp(np.median(medians[1]) - np.median(medians[0])):.3f}; "
        f"clean {sum(one['clean'] for one in found)}; load {min(loads):.1f} to {max(loads):.1f}; "
        f"standard deviation of rounds {np.sqrt(scatter):.2%}, of runs "
        f"{np.sqrt(np.mean([m.var(ddof=1) for m in medians])):.2%}"
    )
    order = random.Random(1)
    equal = pairings(len(same), min(PAIRS, len(same) * (len(same) - 1) // 2), order)
    flagged = [latency_difference(sides[i], sides[j]).verdict != "same" for i, j in equal]
    say(f"equal, flagged:  {share(flagged, equal, len(same))}")
    every = [(i, len(same) + j) for i in range(len(same)) for j in range(len(slower))]
    planted = order.sample(every, min(PAIRS, len(every)))
    seen = [latency_difference(sides[i], sides[j]).verdict == "worse" for i, j in planted]
    say(f"planted, found:  {share(seen, planted, len(sides))}")


def simulate() -> None:
    """Rates for runs and rounds that are normal with one standard deviation."""
    rng = np.random.default_rng(0)

    def drawn(scatter: float, change: float) -> Rounds:
        logs = np.log1p(change) + scatter * (rng.normal() + rng.normal(size=5))
        return Rounds(float(np.exp(np.median(logs))), np.exp(logs).tolist())

    for scatter in (0.003, 0.005, 0.0075, 0.01, 0.02):
        rates = []
        for change, verdicts in ((0.0, {"better", "worse"}), (0.05, {"worse"})):
            found = [
                latency_difference(drawn(scatter, 0), drawn(scatter, change)).verdict in verdicts
                for _ in range(1000)
            ]
            rates.append(np.mean(found))
        say(f"rounds differ by {scatter:.2%}: flagged {rates[0]:.1%}, 5 % found {rates[1]:.1%}")


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--runs", type=int, default=60, help="of the network; half as many of the slower"
    )
    parser.add_argument("--layers", type=int, default=LAYERS, help="so many as take about 5 ms")
    parser.add_argument("--pool", type=Path, help="keep the runs here, and go on with them")
    parser.add_argument("--turns", type=int, metavar="N", help="so many times in turns instead")
    parser.add_argument("--simulate", action="store_true", help="draw runs, measure nothing")
    arguments = parser.parse_args()
    if arguments.runs < 4:
        parser.error("--runs: 4 at least")
    if arguments.simulate:
        simulate()
        return
    with tempfile.TemporaryDirectory() as name:
        pool = arguments.pool or Path(name) / "pool.jsonl"
        if arguments.turns:
            measure_turns(arguments.turns, pool, arguments.layers)
            judge_turns(load(pool))
        else:
            measure(arguments.runs, pool, arguments.layers)
            judge(load(pool))


if __name__ == "__main__":
    main()

"""Runs on several boards, some of which are lost: what is tried again, kept, and said."""

from __future__ import annotations

import dataclasses
import threading
from contextlib import contextmanager

import pytest
from pydantic import BaseModel

from wherry import api
from wherry.device import BoardInfo, Transport
from wherry.errors import DeviceError, DeviceLostError, Interrupted, ToolError, UsageError
from wherry.execute import execute, prepare_again
from wherry.hookspecs import hookimpl
from wherry.host import Host
from wherry.store import Store

TEXT = """
wherry: 1
model: {path: net.onnx}
data:
  evaluation: {source: npz, path: evaluation.npz}
  calibration: {source: npz, path: calibration.npz}
metrics: [first]
targets: [{backend: copy, precision: [fp32, fp16, int8], device: [a, b]}]
measure: {rounds: 2}
parity: {samples: 0}
"""
LOST = DeviceLostError("the device was lost: the cable was pulled", where="a")


class Nothing(BaseModel):
    pass


class FakeBoard:
    """One board; ``open`` and ``load`` are called where tests let it fail."""

    def __init__(self, name: str, bench) -> None:
        self.name, self.bench = name, bench
        self.identity = name
        self.sessions = 0
        self.used_by = ""
        self.loaded: list[str] = []
        self.open = lambda: None
        self.load = lambda precision: None

    @property
    def info(self) -> BoardInfo:
        return dataclasses.replace(
            self.bench.info, identity=self.identity, facts={"in_use_by": self.used_by or None}
        )

    def probe(self) -> BoardInfo:
        self.open()
        return self.info

    @contextmanager
    def session(self, *, lease: bool = True):
        self.sessions += lease
        self.open()
        yield self

    def runtime_lock(self, backend) -> str:
        return "a runtime"

    @contextmanager
    def host(self, artifact, target, backend, preprocess):
        self.loaded.append(target.precision)
        self.load(target.precision)
        with self.bench.host(artifact, target, backend, preprocess) as runner:
            yield runner


class Boards:
    def __init__(self, bench, names: str) -> None:
        self.by_name = {name: FakeBoard(name, bench) for name in names}

    @hookimpl
    def wherry_transports(self):
        yield Transport("wire", "", Nothing, connect=lambda spec, _: self.by_name[spec.name])


@pytest.fixture
def boards(lab, monkeypatch: pytest.MonkeyPatch) -> dict[str, FakeBoard]:
    """Three boards by name; the lab's manifest names two of them."""
    plugin = Boards(lab.bench, "abc")
    lab.plugins.append(plugin)
    lab.text = TEXT
    (lab.folder / "devices.yaml").write_text(
        "devices:\n"
        "  a: {wire: {}, tags: [arm, fast]}\n"
        "  b: {wire: {}, tags: [arm, fast]}\n"
        "  c: {wire: {}, tags: [arm, slow]}\n"
    )
    monkeypatch.setattr("wherry.stages.retry.PAUSES_S", (0.0,) * 4)
    monkeypatch.setattr("wherry.choose._POLL_S", 0.0)
    return plugin.by_name


def host_of(lab) -> Host:
    return Host.load(plugins=(), builtins=False, extra=lab.plugins)


def by_device(values) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for result in values["results"]:
        found.setdefault(result["target"]["device"], []).append(result["status"])
    return found


def failing(times: int, error: Exception = LOST, precision: str | None = None):
    """Raises the first ``times`` times that it is called, with a precision or any."""
    left = [times]

    def fail(asked: str | None = None) -> None:
        if left[0] and precision in {None, asked}:
            left[0] -= 1
            raise error

    return fail


# Several boards


def test_boards_work_at_the_same_time_whatever_jobs_is(lab, boards) -> None:
    together = threading.Barrier(2)

    def meet(_precision: str) -> None:
        together.wait(30)

    for name in "ab":
        boards[name].load = meet
    assert by_device(lab.run(jobs=1)) == {"a": ["ok"] * 3, "b": ["ok"] * 3}


def test_boards_of_one_type_share_no_measurement(lab, boards) -> None:
    lab.run()
    assert (len(boards["a"].loaded), len(boards["b"].loaded)) == (6, 6)
    parts = {tuple(entry.key.parts[part] for part in ("device", "identity", "board"))
             for entry in Store(lab.home / "store").entries("measure")}  # fmt: skip
    assert parts == {("a", "a", "a board"), ("b", "b", "a board")}


def test_another_board_under_the_same_name_is_measured_anew(lab, boards) -> None:
    lab.run()
    boards["a"].identity = "its successor"
    lab.run()
    assert (len(boards["a"].loaded), len(boards["b"].loaded)) == (12, 6)


# Lost boards


def test_a_board_that_was_lost_once_goes_on_with_the_missing_rounds(lab, boards) -> None:
    told: list[str] = []

    def fail_third(_precision: str) -> None:
        if len(boards["a"].loaded) == 3:
            raise LOST

    boards["a"].load = fail_third
    values = execute(lab.prepare(), on_event=lambda event: told.append(event.text)).values
    assert by_device(values) == {"a": ["ok"] * 3, "b": ["ok"] * 3}
    assert len(boards["a"].loaded) == 7, "six rounds, and one of them twice"
    assert boards["a"].sessions == 2
    assert any(text.startswith("a was lost (the device was lost: the cable") for text in told)


def test_a_board_that_cannot_be_reached_at_first_is_tried_again(lab, boards) -> None:
    boards["a"].open = failing(4)
    assert by_device(lab.run()) == {"a": ["ok"] * 3, "b": ["ok"] * 3}


def test_what_was_measured_of_a_board_that_is_lost_for_good_is_reported(lab, boards) -> None:
    def die(_precision: str) -> None:
        if len(boards["a"].loaded) == 5:  # in the second round
            boards["a"].open = failing(99)
            raise LOST

    boards["a"].load = die
    values = lab.run()
    assert sorted(by_device(values)["a"]) == ["failed", "failed", "ok"]
    assert by_device(values)["b"] == ["ok"] * 3
    errors = {result["error"] for result in values["results"] if result["error"]}
    assert len(errors) == 1
    assert "the cable was pulled; given up after 5 tries in a row" in errors.pop()


def test_a_board_that_is_never_reached_fails_its_own_step_alone(lab, boards) -> None:
    boards["a"].open = failing(99)
    values = lab.run()
    assert by_device(values) == {"a": ["failed"] * 3, "b": ["ok"] * 3}
    states = {step["id"]: step["state"] for step in values["steps"] if step["kind"] == "profile"}
    assert states == {"profile:a": "failed", "profile:b": "done"}


@pytest.mark.parametrize("leased", [False, True], ids=["probe", "lease"])
def test_a_board_that_refuses_is_not_asked_again(lab, boards, leased: bool) -> None:
    def refuse() -> None:
        if boards["a"].sessions or not leased:
            raise DeviceError("the key is refused", where="a")

    boards["a"].open = refuse
    values = lab.run()
    assert by_device(values) == {"a": ["failed"] * 3, "b": ["ok"] * 3}
    assert boards["a"].sessions == int(leased)


def test_a_row_that_brings_the_board_down_fails_alone(lab, boards) -> None:
    boards["a"].load = failing(99, precision="fp16")
    values = lab.run()
    assert by_device(values) == {"a": ["ok", "failed", "ok"], "b": ["ok"] * 3}
    (error,) = (result["error"] for result in values["results"] if result["error"])
    assert "the board was lost 2 times while this target ran" in error
    assert boards["a"].loaded.count("fp16") == 2
    assert len(boards["a"].loaded) == 6


def test_the_tries_of_a_row_are_not_the_boards(lab, boards, monkeypatch) -> None:
    """Each of the rows loses it once in each round, and is measured at the second try."""
    monkeypatch.setattr("wherry.stages.retry.PAUSES_S", (0.0,) * 3)
    lost: set[tuple[str, int]] = set()

    def once(precision: str) -> None:
        place = (precision, boards["a"].loaded.count(precision) // 2)
        if boards["a"].loaded.count(precision) % 2 and place not in lost:
            lost.add(place)
            raise LOST

    boards["a"].load = once
    assert by_device(lab.run())["a"] == ["ok"] * 3
    assert len(lost) == 6


def test_what_rows_cost_that_bring_it_down_is_not_counted_against_the_board(lab, boards) -> None:
    boards["a"].load = failing(99)
    errors = {r["error"] for r in lab.run()["results"] if r["target"]["device"] == "a"}
    (error,) = errors
    assert "the board was lost 2 times while this target ran" in error
    assert len(boards["a"].loaded) == 6, "each of its three rows twice"


def test_a_board_that_no_row_can_use_is_given_up(lab, boards) -> None:
    boards["a"].load = failing(99)
    lab.text = TEXT.replace("int8]", "int8], threads: [1, 2, 3]")
    values = lab.run()
    assert by_device(values) == {"a": ["failed"] * 9, "b": ["ok"] * 9}
    assert len(boards["a"].loaded) == 5, "one for each of its tries"


def test_a_runner_that_crashes_costs_no_try_and_fails_its_own_row(lab, boards) -> None:
    boards["a"].load = failing(99, ToolError("the runner crashed"), precision="int8")
    assert by_device(lab.run())["a"] == ["ok", "ok", "failed"]
    assert boards["a"].sessions == 1


def test_another_board_that_answers_after_a_loss_measures_nothing(lab, boards) -> None:
    def replaced(_precision: str) -> None:
        if len(boards["a"].loaded) == 4:  # the first round is over
            boards["a"].identity = "another"
            raise LOST

    boards["a"].load = replaced
    values = lab.run()
    assert by_device(values)["a"] == ["failed"] * 3
    assert "another board answers than at the start of the run" in values["results"][0]["error"]
    assert len(boards["a"].loaded) == 4


def test_a_run_is_stopped_in_the_middle_of_a_pause(lab, boards, monkeypatch) -> None:
    monkeypatch.setattr("wherry.stages.retry.PAUSES_S", (3600.0,))
    boards["a"].load = failing(1)
    prepared = lab.prepare()

    def stop(event) -> None:
        if "trying again" in event.text:
            prepared.services.cancelled.set()

    with pytest.raises(Interrupted):
        execute(prepared, on_event=stop)


def test_remeasuring_goes_on_after_a_loss(lab, boards) -> None:
    lab.run()
    boards["a"].loaded.clear()
    boards["a"].load = failing(1)
    lab.run(remeasure=True)
    assert len(boards["a"].loaded) == 7, "what was measured before the loss is not measured again"


# Going on with a run


def test_a_run_that_lost_a_board_is_continued(lab, boards) -> None:
    boards["a"].open = failing(99)
    first = lab.run("measure.rounds=3")
    assert by_device(first)["a"] == ["failed"] * 3
    boards["a"].open = failing(0)
    again = execute(prepare_again("last", host=host_of(lab))).values
    assert by_device(again) == {"a": ["ok"] * 3, "b": ["ok"] * 3}
    assert len(boards["b"].loaded) == 9, "b has done its part"
    assert (again["continues"], first["continues"]) == (first["run_id"], None)
    assert again["overrides"] == ["measure.rounds=3"]
    assert again["measure"]["rounds"] == 3


def test_a_run_that_was_stopped_is_the_last_one(lab, boards) -> None:
    lab.run()
    prepared = lab.prepare("targets.0.device=c")

    def stop(event) -> None:
        if event.step.device and event.state == "progress":
            prepared.services.cancelled.set()

    with pytest.raises(Interrupted):
        execute(prepared, on_event=stop)
    again = execute(prepare_again("last", host=host_of(lab))).values
    assert by_device(again) == {"c": ["ok"] * 3}
    assert again["continues"] == prepared.run_id


def test_the_tag_goes_with_it(lab, boards) -> None:
    execute(lab.prepare(), tag="nightly")
    lab.run()
    again = execute(prepare_again("nightly", host=host_of(lab))).values
    assert again["tag"] == "nightly"
    named = execute(prepare_again("nightly", host=host_of(lab)), tag="other").values
    assert (named["tag"], named["continues"]) == ("other", again["run_id"])


def test_a_manifest_that_has_changed_is_run_as_it_is_and_that_is_said(lab, boards) -> None:
    run_id = lab.run()["run_id"]
    told: list[str] = []
    execute(prepare_again(run_id, host=host_of(lab), tell=told.append))
    assert told == []
    lab.manifest.write_text(TEXT.replace("rounds: 2", "rounds: 1"))
    again = execute(prepare_again("last", host=host_of(lab), tell=told.append)).values
    assert again["measure"]["rounds"] == 1
    (text,) = told
    assert "says something else than in 2" in text


def test_what_cannot_be_continued(lab, boards, monkeypatch) -> None:
    host = host_of(lab)
    monkeypatch.setattr(Host, "load", lambda **_: host)
    with pytest.raises(UsageError, match="there is no run yet"):
        api.run(continue_="last")
    run_id = lab.run()["run_id"]
    with pytest.raises(UsageError, match=r"no run named 'm\.yaml'"):
        api.run(continue_="m.yaml")
    for extra in ({"manifest": "m.yaml"}, {"sets": ["seed=1"]}, {"remeasure": True}):
        with pytest.raises(UsageError, match="with its own manifest and overrides"):
            api.run(continue_=run_id, **extra)
    with pytest.raises(UsageError, match="nothing to run"):
        api.run()
    assert api.run(continue_=run_id[:-1]).values["continues"] == run_id


def test_a_run_that_goes_on_is_not_continued(lab, boards) -> None:
    found: list[str] = []

    def look(event) -> None:
        if event.state == "started" and event.step.kind == "model":
            with pytest.raises(UsageError) as caught:
                prepare_again("last", host=host_of(lab))
            found.append(str(caught.value))

    execute(lab.prepare(), on_event=look)
    assert "has not ended yet" in found[0]


# Tags


def with_tags(lab, boards, device: str = "{tags: [fast, arm]}", gates: str = "", **options):
    lab.text = TEXT.replace("[a, b]", device) + gates
    return execute(lab.prepare(**options)).values


def test_the_first_free_device_with_the_tags_is_taken(lab, boards) -> None:
    told: list[str] = []
    boards["a"].used_by = "kim@desk (process 3)"
    values = with_tags(lab, boards, tell=told.append)
    assert by_device(values) == {"b": ["ok"] * 3}
    assert values["tagged"] == {"tags:arm+fast": "b"}
    assert told == ["the device with the tags arm, fast is b"]
    assert not boards["c"].loaded


def test_one_that_cannot_be_reached_is_passed_over(lab, boards) -> None:
    boards["a"].open = failing(1)
    assert by_device(with_tags(lab, boards)) == {"b": ["ok"] * 3}


def test_where_all_are_in_use_the_first_that_is_free_is_waited_for(lab, boards) -> None:
    told: list[str] = []

    def tell(text: str) -> None:
        told.append(text)
        boards["b"].used_by = ""

    boards["a"].used_by, boards["b"].used_by = "kim", "lee"
    assert by_device(with_tags(lab, boards, tell=tell)) == {"b": ["ok"] * 3}
    assert told == [
        "all devices with the tags arm, fast are in use: a by kim; b by lee; waiting",
        "the device with the tags arm, fast is b",
    ]


def test_waiting_has_an_end(lab, boards, monkeypatch) -> None:
    monkeypatch.setattr("wherry.choose.WAIT_S", 0.0)
    boards["a"].used_by, boards["b"].used_by = "kim", "lee"
    with pytest.raises(DeviceError, match=r"in use: a by kim; b by lee; waited 0 s"):
        with_tags(lab, boards)


def test_waiting_ends_with_the_run(lab, boards) -> None:
    stopped = threading.Event()
    boards["a"].used_by, boards["b"].used_by = "kim", "lee"
    with pytest.raises(Interrupted):
        with_tags(lab, boards, cancelled=stopped, tell=lambda _: stopped.set())


def test_where_none_can_be_reached_each_says_why(lab, boards) -> None:
    boards["a"].open = failing(1)
    boards["b"].open = failing(1, DeviceError("the key is refused"))
    with pytest.raises(DeviceError) as caught:
        with_tags(lab, boards)
    assert "no device with the tags arm, fast can be reached" in str(caught.value)
    assert "a: the device was lost: the cable was pulled" in str(caught.value)
    assert "b: the key is refused" in str(caught.value)


def test_a_device_that_nothing_else_uses_comes_first(lab, boards) -> None:
    values = with_tags(lab, boards, "[a, {tags: arm}, {tags: [fast, arm]}]")
    assert values["tagged"] == {"tags:arm": "b", "tags:arm+fast": "a"}
    assert by_device(values) == {"a": ["ok"] * 3, "b": ["ok"] * 3}, "rows that are equal are one"


def test_a_gate_speaks_of_the_device_that_was_chosen(lab, boards) -> None:
    boards["a"].used_by = "kim"
    gate = "gates: [{metric: size_bytes, max: 1, where: {device: {tags: [arm, fast]}}}]\n"
    (judged,) = with_tags(lab, boards, gates=gate)["gates"]
    assert judged["passed"] is False
    assert judged["result"].endswith("on b")
    assert judged["gate"] == "size_bytes max 1 where device tags:arm+fast"


def test_a_continued_run_takes_the_same_device(lab, boards) -> None:
    boards["a"].used_by = "kim"
    boards["b"].load = failing(1, ToolError("crashed"))
    assert "failed" in by_device(with_tags(lab, boards))["b"]
    boards["a"].used_by = ""
    again = execute(prepare_again("last", host=host_of(lab))).values
    assert by_device(again) == {"b": ["ok"] * 3}
    assert boards["a"].loaded == []
    assert again["tagged"] == {"tags:arm+fast": "b"}


def test_a_plan_reaches_no_board(lab, boards, monkeypatch) -> None:
    host = host_of(lab)
    monkeypatch.setattr(Host, "load", lambda **_: host)
    for board in boards.values():
        board.open = failing(1, AssertionError("a plan reaches nothing"))
    lab.manifest.write_text(TEXT.replace("[a, b]", "[c, {tags: [fast, arm]}]"))
    found = api.plan(lab.manifest)
    assert found["candidates"] == {"tags:arm+fast": ["a", "b"]}
    assert {row["target"]["device"] for row in found["rows"]} == {"c", "tags:arm+fast"}

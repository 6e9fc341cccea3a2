"""The whole way over the local transport: host, agent, runner, and back."""

from __future__ import annotations

import dataclasses
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from wherry.artifact import Binding
from wherry.errors import DataError, DeviceError, ToolError
from wherry.measurement import MeasureSettings

pytestmark = pytest.mark.usefixtures("nothing_is_left")

QUICK = MeasureSettings(warmup_s=0.02, warmup_runs=2, duration_s=0.05, min_runs=5, max_runs=2000)
SAMPLE = {"x": np.arange(12, dtype=np.float32).reshape(1, 3, 4)}


@pytest.fixture
def host(bench):
    """Host the fake runner without a lease: ``with host(behaviour=...) as runner``."""
    stack = []

    def make(*, lease=False, artifact=None, preprocess=None, parameters=None, **options):
        session = bench.device(**(parameters or {})).session(lease=lease)
        stack.append(session)
        opened = session.__enter__()
        return opened.host(
            artifact or bench.artifact(), bench.target(**options), bench.backend, preprocess or {}
        )

    yield make
    for session in stack:
        session.__exit__(None, None, None)


def test_probe_tells_what_this_machine_is(bench):
    info = bench.device().probe()
    assert info.machine == os.uname().machine and info.cores == os.cpu_count()
    assert info.memory_bytes > 1 << 28 and not info.emulated
    assert info.python.startswith("3.") and Path(info.python_executable).is_file()
    assert len(info.fingerprint) == 64
    assert bench.device().probe().fingerprint == info.fingerprint


def test_samples_come_back_in_order(host):
    samples = [{"x": np.full((1, 3, 4), index, np.float32)} for index in range(1000)]
    with host() as runner:
        outputs = list(runner.infer(samples))
        assert list(runner.infer([])) == []
        assert runner.load_ms > 0 and runner.first_ms > 0
        assert runner.versions == {"numpy": runner.versions["numpy"]}
    assert len(outputs) == 1000
    for sample, output in zip(samples, outputs, strict=True):
        assert np.array_equal(output["y"], 2 * sample["x"])


def test_samples_of_changing_shapes_and_sizes(host, bench):
    big = Binding("x", "in0", "float32", (1, 3, 400, 400))
    artifact = bench.artifact([big], [dataclasses.replace(big, onnx="y", runtime="out0")])
    samples = [
        {"x": np.full((400, 400, 3), i, np.uint8) if i % 3 else np.full(big.shape, i, np.float32)}
        for i in range(20)
    ]
    with host(artifact=artifact, preprocess={"x": {"scale": 0.5}}) as runner:
        outputs = list(runner.infer(samples))
    assert [float(output["y"].mean()) for output in outputs] == [float(i) for i in range(20)]


def test_layouts_and_types_of_the_runtime(host, bench):
    taken = Binding("x", "in0", "float16", (1, 3, 2, 4), (0, 2, 3, 1), drop_batch=True)
    given = dataclasses.replace(taken, onnx="y", runtime="out0")
    x = np.random.default_rng(0).integers(-50, 50, (1, 3, 2, 4)).astype(np.float32)
    with host(artifact=bench.artifact([taken], [given])) as runner:
        (output,) = runner.infer([{"x": x}])
    assert output["y"].shape == (1, 3, 2, 4)
    assert np.array_equal(output["y"], 2 * x)


def test_pictures_are_normalised_on_the_board_bit_for_bit(host, bench):
    from wherry import preprocess

    spec = {"scale": 1 / 255, "mean": [0.1307], "std": [0.3081]}
    taken = Binding("x", "in0", "float32", (1, 1, 28, 28))
    artifact = bench.artifact([taken], [dataclasses.replace(taken, onnx="y", runtime="out0")])
    pictures = np.random.default_rng(0).integers(0, 256, (100, 28, 28), dtype=np.uint8)
    with host(artifact=artifact, preprocess={"x": spec}) as runner:
        outputs = list(runner.infer({"x": picture} for picture in pictures))
    for picture, output in zip(pictures, outputs, strict=True):
        expected = preprocess.apply(picture, spec, (1, 1, 28, 28), "float32")
        assert np.array_equal(output["y"], np.float32(2) * expected)


def test_slow_networks_have_few_samples_under_way(host):
    given = []

    def samples():
        for index in range(40):
            given.append(index)
            yield {"x": np.full((1, 3, 4), index, np.float32)}

    with host(sleep_s=0.4) as runner:
        stream = runner.infer(samples())
        assert next(stream)["y"][0, 0, 0] == 0
        assert len(given) <= 12
        stream.close()


def test_a_stream_may_be_left_early(host):
    endless = ({"x": np.full((1, 3, 4), index, np.float32)} for index in range(10**9))
    with host() as runner:
        stream = runner.infer(endless)
        assert next(stream)["y"][0, 0, 0] == 0
        stream.close()
        (output,) = runner.infer([SAMPLE])
        assert np.array_equal(output["y"], 2 * SAMPLE["x"])


def test_a_dataset_that_fails_leaves_the_runner_usable(host):
    def samples():
        for _ in range(300):
            yield SAMPLE
        raise DataError("sample 300 is broken")

    with host() as runner:
        with pytest.raises(DataError, match="sample 300"):
            list(runner.infer(samples()))
        assert len(list(runner.infer([SAMPLE, SAMPLE]))) == 2


def test_inputs_of_other_names_are_an_error(host):
    with host() as runner, pytest.raises(DataError, match=r"\['picture'\].* takes \['x'\]"):
        list(runner.infer([{"picture": SAMPLE["x"]}]))


def test_a_sample_that_does_not_fit_is_an_error(host):
    with host() as runner, pytest.raises(ToolError, match="5 does not fit"):
        list(runner.infer([{"x": np.zeros(5, np.float32)}]))


def test_timing_is_plausible(host):
    with host(lease=True, sleep_s=0.01) as runner:
        timing = runner.time(SAMPLE, MeasureSettings(duration_s=0.5))
    assert timing.infer_ns.dtype == timing.total_ns.dtype == np.uint64
    assert 10 <= len(timing.infer_ns) <= 50
    assert 10e6 <= np.median(timing.infer_ns) < 30e6
    assert (timing.total_ns > timing.infer_ns).all()
    assert timing.warmup_runs >= 5 and len(timing.sensors) >= 4
    times = [reading.time_s for reading in timing.sensors]
    assert times == sorted(times)


def test_nothing_is_timed_without_the_lease(host):
    with host() as runner, pytest.raises(DeviceError, match="without the lease"):
        runner.time(SAMPLE, QUICK)


def test_peak_memory_is_that_of_the_artifact(host):
    def peak(ballast_mb):
        with host(ballast_mb=ballast_mb) as runner:
            return runner.peak_memory_bytes()

    small, large = peak(0), peak(64)
    assert small < 30 << 20
    assert 60 << 20 <= large - small <= 72 << 20


def test_what_a_runtime_prints_is_no_frame(host):
    with host(behaviour="print") as runner:
        assert len(list(runner.infer([SAMPLE] * 200))) == 200


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [
        ("crash", r"crashed with SIGSEGV .*about to die"),
        ("out of memory", r"crashed with SIGKILL, perhaps .* want of memory"),
        ("raise", r"failed: ValueError: a bad day"),
        ("exit", r"ended with status 3"),
    ],
)
def test_a_runner_that_dies_is_named(host, bench, behaviour, words):
    with (
        host(behaviour=behaviour) as runner,
        pytest.raises(ToolError, match=f"(?s)bench: fake fp32 on bench .*{words}"),
    ):
        list(runner.infer([SAMPLE] * 1000))


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [("crash in load", "SIGSEGV"), ("raise in load", "RuntimeError: the model is not to my taste")],
)
def test_an_artifact_that_does_not_load(host, behaviour, words):
    with pytest.raises(ToolError, match=words), host(behaviour=behaviour):
        pass


def test_a_runner_that_hangs_is_ended(host):
    begun = time.monotonic()
    with (
        host(behaviour="hang", parameters={"limit_s": 2.0}) as runner,
        pytest.raises(ToolError, match=r"no answer within 2 s and was ended"),
    ):
        list(runner.infer([SAMPLE]))
    assert time.monotonic() - begun < 15


def test_an_agent_that_takes_nothing_is_ended(host, bench, agent_of):
    """Stopped, so that its pipe fills: the host must not wait for ever while it writes."""
    large = Binding("x", "in0", "float32", (1, 512, 512))
    artifact = bench.artifact([large], [dataclasses.replace(large, onnx="y", runtime="out0")])
    samples = [{"x": np.zeros(large.shape, np.float32)}] * 20
    begun = time.monotonic()
    with host(artifact=artifact, parameters={"limit_s": 2.0}) as runner:
        os.kill(agent_of("run"), signal.SIGSTOP)
        with pytest.raises(ToolError, match=r"took nothing for 2 s|no answer within 2 s"):
            list(runner.infer(samples))
    assert time.monotonic() - begun < 20


def test_the_runner_is_closed(host, tmp_path):
    with host(marker=str(tmp_path / "closed")):
        pass
    assert (tmp_path / "closed").read_text() == "closed"


def test_an_interrupted_host_does_not_wait_for_the_runner(host):
    """What interrupts it is what comes out, at once."""

    def interrupt(*_):
        raise KeyboardInterrupt

    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt), host(lease=True, sleep_s=0.01) as runner:
        old = signal.signal(signal.SIGALRM, interrupt)
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        try:
            runner.time(SAMPLE, MeasureSettings(duration_s=60))
        finally:
            signal.signal(signal.SIGALRM, old)
    assert time.monotonic() - begun < 15

"""ncnn on every generated network and form of an operator: right, or refused with words."""

from __future__ import annotations

import pytest

from wherry.testing import BackendSuite
from wherry_ncnn import operators as known

REFUSED = {  # and a word of the reason
    "batch_of_two": "batch of 2",
    "class_index": "output of type int64",
    "conditional": "Greater",
    "embedding": "input of type int64",
    "gru": "last step",
    "pixel_shuffle": "steps",
    "segment_index": "output of type int64",
    "unused_and_shared": "is an input",
}


@pytest.mark.backend
@pytest.mark.usefixtures("wherry_home")
class TestNcnn(BackendSuite):
    name = "ncnn"


@pytest.fixture(scope="module", params=["fp32", "fp16"])
def trials(request, try_all, networks):
    return try_all("ncnn", networks.NETWORKS, request.param)


@pytest.mark.backend
def test_network(trials, network_name):
    trial = trials[network_name]
    if network_name in REFUSED:
        assert trial.status == "refused", trial.words
        assert REFUSED[network_name] in trial.words
    else:
        assert trial.status == "right", trial.words
        assert set(trial.artifact.files) == {"model.param", "model.bin"}


@pytest.mark.backend
def test_a_tool_started_anew_makes_the_same(trials, made_anew):
    """As of the last network that tools made which went on running."""
    last = [trial for trial in trials.values() if trial.artifact][-1]
    assert made_anew(last).digest == last.artifact.digest


@pytest.fixture(scope="module")
def forms(try_all, operators):
    """Every form of every operator, tried in fp32: (operator, number) to its trial."""
    names = {f"{kind}-{i}": b for kind, bs in operators.FORMS.items() for i, b in enumerate(bs)}
    trials = try_all("ncnn", names)
    return {(name.partition("-")[0], name): trial for name, trial in trials.items()}


@pytest.mark.backend
def test_no_form_is_converted_wrong(forms):
    failing = {
        name: f"{trial.status}: {trial.words}"
        for (_, name), trial in forms.items()
        if trial.status not in {"right", "refused"}
    }
    assert not failing


@pytest.mark.backend
def test_the_known_operators_are_those_that_convert(forms):
    right = {kind for (kind, _), trial in forms.items() if trial.status == "right"}
    assert right == known.OPERATORS


@pytest.mark.backend
def test_every_refusal_names_the_operator_and_a_remedy(forms):
    for (kind, name), trial in forms.items():
        if trial.status == "refused" and kind not in {"Shape", "Size", "Where"}:
            assert kind in trial.words, name
            assert trial.words.endswith((".", "backend.")), name


@pytest.mark.backend
def test_the_known_layers_are_those_of_the_runtime(home_of_trials):
    import subprocess

    from wherry.engine.environments import Environments
    from wherry_ncnn.plugin import RUNTIMES

    code = (
        "import ncnn, sys\n"
        "made = {i for i in range(500) if ncnn.create_layer(i) is not None}\n"
        "print(len(made), *sorted(n for n in sys.argv[1:] if ncnn.layer_to_index(n) in made))"
    )
    python = Environments(home_of_trials).ensure(RUNTIMES[0])
    listed = subprocess.run(
        [python, "-c", code, *known.LAYERS], capture_output=True, text=True, check=True
    )
    count, *names = listed.stdout.split()
    assert set(names) == known.LAYERS
    assert int(count) == len(known.LAYERS)


@pytest.mark.backend
@pytest.mark.parametrize(
    "options",
    [
        {"threads": 2, "openmp_blocktime": 0},
        {"winograd": False, "sgemm": False, "packing": False},
        {"lightmode": False, "powersave": "big"},
        {"fp16_arithmetic": True},  # nothing in fp32
    ],
)
def test_options_change_no_result(try_all, networks, options):
    chosen = {name: networks.NETWORKS[name] for name in ("mobilenet", "inception", "norms")}
    for trial in try_all("ncnn", chosen, **options).values():
        assert trial.status == "right", trial.words


@pytest.mark.backend
def test_fp16_halves_the_weights_and_the_bytes_are_reproducible(try_all, networks):
    def wide():
        n = networks.Net("wide")
        return n.model(y=n.gemm(n.input("x", 1, 256), 256, 256))

    single, half, again = (
        try_all("ncnn", {"wide": wide}, precision)["wide"].artifact
        for precision in ("fp32", "fp16", "fp16")
    )
    assert half.size_bytes / single.size_bytes == pytest.approx(0.5, abs=0.02)
    assert half.digest == again.digest


@pytest.mark.backend
def test_names_and_batch_axes(try_all, networks, operators):
    models = {
        "two_inputs": networks.NETWORKS["two_inputs"],
        "vector": networks.NETWORKS["vector"],
        "time_first": operators.FORMS["GRU"][0],
    }
    trials = try_all("ncnn", models)
    bound = {
        name: [(b.onnx, b.runtime, b.permutation, b.drop_batch) for b in trial.artifact.inputs]
        for name, trial in trials.items()
    }
    assert bound == {
        "two_inputs": [
            ("extra", "in0", None, True),
            ("depth", "in1", None, True),
            ("image", "in2", None, True),
        ],
        "vector": [("signal", "in0", None, False)],
        "time_first": [("x", "in0", (1, 0, 2), True)],
    }

"""The generated networks are worth testing with: they run, and their outputs say something."""

from __future__ import annotations

import numpy as np
import onnxruntime


def test_outputs_are_finite_varied_and_deterministic(networks, network_name):
    model = networks.NETWORKS[network_name]()
    assert model == networks.NETWORKS[network_name]()
    session = onnxruntime.InferenceSession(model.SerializeToString())
    names = [output.name for output in session.get_outputs()]
    first, second = (session.run(None, networks.sample(model, seed)) for seed in (0, 1))
    assert names == [output.name for output in model.graph.output]
    for value, other in zip(first, second, strict=True):
        assert np.isfinite(value).all()
        if np.issubdtype(value.dtype, np.floating):
            assert np.sqrt(np.mean(value**2)) > 0.05
            assert value.std() > 0.01
            assert not np.allclose(value, other, rtol=0.01, atol=0.001)

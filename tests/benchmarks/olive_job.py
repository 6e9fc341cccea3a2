"""Olive's side of bench_olive.py: the workflow, and the components that its data configs name.

Olive imports this file in its own environment as the ``user_script`` of a data config; nothing of
wherry is imported here. `workflow` is called by the benchmark, which writes what it gives into a
file for ``olive run --config``. Written after Olive's documentation of run configs, data configs
and metrics.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

if importlib.util.find_spec("olive") is not None:
    import numpy as np
    import torch
    from olive.data.registry import Registry
    from olive.evaluator.olive_evaluator import OnnxEvaluator
    from olive.evaluator.registry import Registry as Evaluators
else:  # the benchmark's own environment, which only asks for the workflow
    Registry = None

SCALE, MEAN, STD = 1 / 255, 0.1307, 0.3081


def workflow(
    model: Path,
    data: Path,
    folder: Path,
    counts: tuple[int, int],
    batch: int,
    latency: dict[str, int],
    optimised: bool,
) -> dict[str, Any]:
    """A run config: static int8, and accuracy and latency of the model before and after.

    Args:
        model: the ONNX file.
        data: an .npz of ``images`` (uint8) and ``labels``.
        folder: where Olive keeps its cache and writes what it has made.
        counts: how many of the images calibrate, and how many are evaluated, from the first on.
        batch: images of a batch for the accuracy; calibration and latency have one.
        latency: settings of the latency metric: ``warmup_num``, ``repeat_test_num``.
        optimised: whether ONNX Runtime may optimise the graph.
    """

    def images(name: str, count: int, batch_size: int) -> dict[str, Any]:
        return {
            "name": name,
            "user_script": __file__,
            "load_dataset_config": {"type": "digits", "path": str(data), "count": count},
            "post_process_data_config": {"type": "best_class"},
            "dataloader_config": {"batch_size": batch_size},
        }

    session: dict[str, Any] = {"intra_op_num_threads": 1, "inter_op_num_threads": 1}
    if not optimised:
        session["graph_optimization_level"] = 0
    accuracy = {
        "name": "accuracy_score",
        "priority": 1,
        "metric_config": {"task": "multiclass", "num_classes": 10},
    }
    metrics = [
        {
            "name": "accuracy",
            "type": "accuracy",
            "sub_types": [accuracy],
            "data_config": "evaluation",
        },
        {
            "name": "latency",
            "type": "latency",
            "sub_types": [{"name": "p50", "priority": 2, "metric_config": latency}],
            "data_config": "calibration",
        },
    ]
    cpu = {"device": "cpu", "execution_providers": ["CPUExecutionProvider"]}
    return {
        "input_model": {"type": "ONNXModel", "model_path": str(model)},
        "systems": {"local": {"type": "LocalSystem", "accelerators": [cpu]}},
        "data_configs": [
            images("calibration", counts[0], 1),
            images("evaluation", counts[1], batch),
        ],
        "evaluators": {
            "digits": {
                "type": "SessionEvaluator",
                "user_script": __file__,
                "type_args": {"session": session},
                "metrics": metrics,
            }
        },
        "passes": {
            "int8": {
                "type": "OnnxStaticQuantization",
                "data_config": "calibration",
                "per_channel": True,  # as wherry quantises weights
            }
        },
        "evaluator": "digits",
        "target": "local",
        "cache_dir": str(folder / "cache"),
        "output_dir": str(folder / "output"),
    }


if Registry is not None:

    class Digits(torch.utils.data.Dataset):
        """Preprocessed pictures with their labels."""

        def __init__(self, path: str, count: int) -> None:
            with np.load(path) as arrays:
                images, self._labels = arrays["images"][:count], arrays["labels"][:count]
            scaled = images.astype(np.float32) * np.float32(SCALE)
            self._images = ((scaled - np.float32(MEAN)) / np.float32(STD))[:, None]

        def __len__(self) -> int:
            return len(self._labels)

        def __getitem__(self, index: int) -> tuple[dict[str, Any], int]:
            return {"input": self._images[index]}, int(self._labels[index])

    @Registry.register_dataset()
    def digits(path: str, count: int) -> Digits:
        """Of a data config's ``load_dataset_config``."""
        return Digits(path, count)

    @Registry.register_post_process()
    def best_class(logits: torch.Tensor) -> torch.Tensor:
        """Of a data config's ``post_process_data_config``."""
        return logits.argmax(dim=-1)

    @Evaluators.register()
    class SessionEvaluator(OnnxEvaluator):
        """Olive's own, with options for ONNX Runtime's session.

        A metric's ``inference_settings`` are the place for them, but Olive 0.13 loses a metric's
        ``user_config`` on its way to the evaluator, and measures with as many threads as there are
        cores.

        Args:
            session: ONNX Runtime's ``session_options`` by Olive's names.
        """

        def __init__(self, session: dict[str, Any], **others: Any) -> None:
            super().__init__(**others)
            self._session = session

        def evaluate(self, model: Any, *arguments: Any, **others: Any) -> Any:
            """See Olive's."""
            model.inference_settings = {"session_options": self._session}
            return super().evaluate(model, *arguments, **others)

"""The training loop: batches, a loss, a schedule, hooks, checkpoints, the best state kept.

Other passes that train use it as well: `train` takes any network whose weights have ONNX names, and
hooks see these before and after every step. What a hook may do there:

* sparsity that grows (Zhu and Gupta 2017): ``after_step`` multiplies weights with masks;
* surgery on dense weights (Guo et al. 2016): ``before_step`` puts the masked weights in place of
  the dense ones, ``after_backward`` the dense ones back before they are updated;
* a codebook: ``after_backward`` sums gradients by cluster, ``after_step`` writes the centroids;
* a lottery ticket (Frankle and Carbin 2018): `Network.load` winds weights back, and `train` runs
  once more.

Chance is drawn from ``(seed, epoch, step)`` alone, so that a run which was interrupted and goes on
from its checkpoint ends in the same bits as one that was not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from wherry_compress.train.checkpoints import Checkpoints
from wherry_compress.train.processes import Group

Batch = Mapping[str, Tensor]
"""What a loss needs: the network's inputs under their ONNX names, and whatever else."""


class Trainable(Protocol):
    """What is trained: `wherry_compress.train.network.Network` is one.

    Attributes:
        weights: ONNX initializer name to the parameter, which is changed in place.
    """

    @property
    def weights(self) -> Mapping[str, nn.Parameter]:
        """See the class."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """Of a torch module."""
        ...

    def __call__(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """A batch's outputs by name."""
        ...


class Samples(Protocol):
    """The training data: a batch is made when it is needed."""

    def __len__(self) -> int: ...

    def batch(self, indices: Sequence[int], generator: torch.Generator | None) -> Batch:
        """Samples by index.

        Args:
            indices: of the samples.
            generator: of chance, where the samples may be changed by chance; None: as they are.
        """
        ...


Loss = Callable[[Mapping[str, Tensor], Batch], Tensor]
"""Outputs of the network and the batch that they are of, to one number to be made small."""


@dataclass
class State:
    """Where the training is; hooks are given it.

    Attributes:
        network: that is trained.
        optimizer: of its weights.
        steps: in all.
        step: steps that are done, 0, 1, ...; in ``before_step`` and ``after_backward`` the number
            of the step that is being done.
        epoch: 0, 1, ...
        loss: of the last step.
        losses: of the steps of this epoch.
        history: of each epoch that is done: mean loss, score on the held-out samples.
    """

    network: Any
    optimizer: torch.optim.Optimizer
    steps: int
    step: int = 0
    epoch: int = 0
    loss: float = math.nan
    losses: list[float] = field(default_factory=list)
    history: list[dict[str, float]] = field(default_factory=list)


class Hook:
    """Does something of its own in the loop; all methods may be left out."""

    def before_step(self, state: State) -> None:
        """Before the forward pass of ``state.step``."""

    def after_backward(self, state: State) -> None:
        """The gradients are there, the weights are not yet changed."""

    def after_step(self, state: State) -> None:
        """The weights have been changed; ``state.step`` counts the step already."""

    def after_epoch(self, state: State) -> None:
        """Before the held-out samples are looked at."""

    def state_dict(self) -> dict[str, Any]:
        """What the hook has to know again where an interrupted training goes on: tensors, JSON."""
        return {}

    def load_state_dict(self, values: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""


@dataclass(frozen=True)
class Settings:
    """How to train.

    Attributes:
        epochs: over all samples; the steps are so many times ``samples // batch``.
        steps: instead of epochs.
        batch: samples a step, over all processes.
        optimizer: ``sgd`` (Nesterov's momentum) or ``adamw``.
        learning_rate: the greatest.
        momentum: of SGD.
        weight_decay: of weights with two axes or more; vectors (biases, scales) have none.
        schedule: ``constant``; ``cosine``, down to zero; ``step``, a tenth after half of the
            steps, a hundredth after three quarters.
        warm_up: share of the steps in which the rate rises from zero.
        precision: ``fp32``, or ``bf16`` or ``fp16`` where the device is better at it (autocast).
        clip: the greatest norm of all gradients together; None: any.
        patience: epochs without a better score after which it ends; None: never.
        seed: of chance.
    """

    epochs: int = 1
    steps: int | None = None
    batch: int = 32
    optimizer: str = "adamw"
    learning_rate: float = 1e-3
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: str = "cosine"
    warm_up: float = 0.0
    precision: str = "fp32"
    clip: float | None = None
    patience: int | None = None
    seed: int = 0


class DivergedError(Exception):
    """The loss became infinite or NaN.

    Attributes:
        step: at which.
    """

    def __init__(self, step: int) -> None:
        super().__init__(f"the loss became infinite or NaN in step {step}")
        self.step = step


def train(
    network: Any,
    samples: Samples,
    loss: Loss,
    settings: Settings,
    *,
    hooks: Sequence[Hook] = (),
    score: Callable[[], float] | None = None,
    checkpoints: Checkpoints | None = None,
    tell: Callable[[str], None] | None = None,
    group: Group | None = None,
) -> State:
    """Train in place; the network ends in its best state by ``score``, the first one included.

    Args:
        network: a `Trainable` module on the device on which it is to be trained.
        samples: at least one batch of them.
        loss: of a batch.
        settings: how.
        hooks: called in order.
        score: of the network as it is, greater is better; called in evaluation mode before the
            first step and after every epoch. None: the last state is kept.
        checkpoints: where to go on from, and where to leave it for the next time.
        tell: called with what is being done.
        group: the processes that train together; None: this one alone.

    Raises:
        DivergedError: see there.
        ValueError: there are fewer samples than a batch holds.
    """
    group = group or Group()
    epoch_steps = len(samples) // settings.batch
    if epoch_steps == 0:
        raise ValueError(f"{len(samples)} samples are fewer than a batch of {settings.batch}")
    steps = settings.steps or settings.epochs * epoch_steps
    step = _Step(network, samples, loss, settings, hooks, group)
    state = State(network, step.optimizer, steps)
    best = _Best(network)
    parts = {"network": network, "optimizer": step.optimizer, "scaler": step.scaler, "best": best}
    parts |= {f"hook{index}": hook for index, hook in enumerate(hooks)}
    if checkpoints is not None and checkpoints.restore(parts, state):
        _say(tell, f"goes on at step {state.step} of {steps}")
    elif score is not None:
        best.offer(_score(network, score, group))
    told = time.monotonic()
    while state.step < steps and not best.tired(settings.patience):
        step.do(state, epoch_steps)
        ended = state.step % epoch_steps == 0 or state.step == steps
        if ended:
            _end_epoch(state, hooks, score, best, group)
        if ended or time.monotonic() - told > 1.0:
            told = time.monotonic()
            _say(tell, _described(state, epoch_steps))
        if checkpoints is not None and group.rank == 0:
            checkpoints.offer(parts, state, now=ended, alone=group.size == 1)
    best.restore()
    return state


class _Step:
    """One batch: forward, backward, the weights moved; hooks between."""

    def __init__(
        self,
        network: Any,
        samples: Samples,
        loss: Loss,
        settings: Settings,
        hooks: Sequence[Hook],
        group: Group,
    ) -> None:
        self.optimizer = _optimizer(network, settings)
        self._device = next(network.parameters()).device
        self.scaler = torch.amp.GradScaler(self._device.type, enabled=settings.precision == "fp16")
        self._forward = group.wrapped(network)
        self._network, self._samples, self._loss = network, samples, loss
        self._settings, self._hooks, self._group = settings, hooks, group

    def do(self, state: State, epoch_steps: int) -> None:
        """The step that ``state`` is at; it is counted."""
        settings, group = self._settings, self._group
        state.epoch, within = divmod(state.step, epoch_steps)
        order = torch.randperm(len(self._samples), generator=_chance(settings.seed, state.epoch))
        chosen = order[within * settings.batch : (within + 1) * settings.batch]
        self._network.train()
        for each in self.optimizer.param_groups:
            each["lr"] = settings.learning_rate * rate(settings, state.step, state.steps)
        for hook in self._hooks:
            hook.before_step(state)
        generator = _chance(settings.seed, state.epoch, within, group.rank)
        given = self._samples.batch(chosen[group.rank :: group.size].tolist(), generator)
        batch = {name: value.to(self._device) for name, value in given.items()}
        self.optimizer.zero_grad(set_to_none=True)
        with _autocast(settings.precision, self._device):
            value = self._loss(self._forward(batch), batch)
        self.scaler.scale(value).backward()
        self.scaler.unscale_(self.optimizer)
        state.loss = group.mean(float(value.detach()))
        if not math.isfinite(state.loss):
            raise DivergedError(state.step)
        for hook in self._hooks:
            hook.after_backward(state)
        if settings.clip is not None:
            nn.utils.clip_grad_norm_(self._network.parameters(), settings.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        state.step += 1
        state.losses.append(state.loss)
        for hook in self._hooks:
            hook.after_step(state)


def rate(settings: Settings, step: int, steps: int) -> float:
    """The learning rate of a step, as a share of the greatest."""
    warm = min(round(settings.warm_up * steps), steps - 1)
    if step < warm:
        return (step + 1) / (warm + 1)
    done = (step - warm) / max(1, steps - warm)
    if settings.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * done))
    if settings.schedule == "step":
        return 1.0 if done < 0.5 else 0.1 if done < 0.75 else 0.01
    return 1.0


def _end_epoch(
    state: State,
    hooks: Sequence[Hook],
    score: Callable[[], float] | None,
    best: _Best,
    group: Group,
) -> None:
    """Look at the held-out samples, keep the state if it is the best."""
    group.average_statistics(state.network)
    for hook in hooks:
        hook.after_epoch(state)
    line = {"loss": sum(state.losses) / len(state.losses)}
    state.losses.clear()
    if score is not None:
        line["score"] = _score(state.network, score, group)
        best.offer(line["score"])
    state.history.append(line)


def _score(network: Any, score: Callable[[], float], group: Group) -> float:
    """By one process for all."""
    network.eval()
    with torch.no_grad():
        return group.from_first(score)


def _described(state: State, epoch_steps: int) -> str:
    epochs = -(-state.steps // epoch_steps)
    text = f"epoch {state.epoch + 1} of {epochs}, step {state.step} of {state.steps}"
    text += f", loss {state.loss:.4g}"
    if state.history and "score" in state.history[-1]:
        text += f", held out {state.history[-1]['score']:.4g}"
    return text


def _say(tell: Callable[[str], None] | None, text: str) -> None:
    if tell is not None:
        tell(text)


class _Best:
    """The best state so far, by score; without scores there is none."""

    def __init__(self, network: Any) -> None:
        self._network = network
        self._state: dict[str, Tensor] | None = None
        self.score = -math.inf
        self._since = 0

    def offer(self, score: float) -> None:
        """Keep the network's state if its score is better, or the same after more training."""
        self._since = 0 if score > self.score or self._state is None else self._since + 1
        if score >= self.score or self._state is None:
            self.score = score
            self._state = {k: v.detach().clone() for k, v in self._network.state_dict().items()}

    def tired(self, patience: int | None) -> bool:
        """Whether nothing better has come for so many epochs."""
        return patience is not None and self._since >= patience

    def restore(self) -> None:
        """Put the best state into the network."""
        if self._state is not None:
            self._network.load_state_dict(self._state)

    def state_dict(self) -> dict[str, Any]:
        return {"state": self._state, "score": self.score, "since": self._since}

    def load_state_dict(self, values: Mapping[str, Any]) -> None:
        self._state, self.score = values["state"], values["score"]
        self._since = values["since"]


def _optimizer(network: Any, settings: Settings) -> torch.optim.Optimizer:
    parameters = [each for each in network.parameters() if each.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [each for each in groups if each["params"]]
    if settings.optimizer == "sgd":
        momentum = settings.momentum
        return torch.optim.SGD(
            groups, settings.learning_rate, momentum=momentum, nesterov=momentum > 0
        )
    return torch.optim.AdamW(groups, settings.learning_rate)


def _autocast(precision: str, device: torch.device) -> torch.autocast:
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype=dtype, enabled=precision != "fp32")


def _chance(*parts: int) -> torch.Generator:
    """A generator that depends on nothing but numbers."""
    value = 0
    for part in parts:
        value = (value * 1_000_003 + part + 1) % (1 << 62)
    return torch.Generator().manual_seed(value)

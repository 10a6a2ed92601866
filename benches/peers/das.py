"""The steps of distributed alignment search of `workloads.py`: one run is one optimizer step.

A source is run; a base is run with its residual replaced at one position along a trained rotation;
the cross-entropy at the base's last position is backpropagated to the rotation, which Adam updates.
Nothing is cached between steps. The model is frozen. The rotation is orthonormal by
`torch.nn.utils.parametrizations.orthogonal`: a matrix exponential if square, Householder
reflections if tall.
"""

import contextlib
import io
from collections.abc import Callable

import torch
from models import activation, blocks, last_logits
from tasks import Das
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.parametrizations import orthogonal
from transformers import PreTrainedModel

RATE, BOUNDARY_RATE = 1e-3, 1e-2  # as burn-align's by default, and pyvene's notebooks
TEMPERATURE = 50.0  # of the boundary, as in pyvene


def labels(model: PreTrainedModel, batch: int) -> Tensor:
    return (torch.arange(batch) * 3001 % model.config.vocab_size).to(model.device)


class PyveneSearch:
    """As pyvene's tutorials train: both runs in full, with logits at all positions."""

    def __init__(self, model: PreTrainedModel, das: Das) -> None:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what else could be installed
            import pyvene
        if das.boundless:
            intervention = pyvene.BoundlessRotatedSpaceIntervention
        elif das.rank is None:
            intervention = pyvene.RotatedSpaceIntervention
        else:
            intervention = pyvene.LowRankRotatedSpaceIntervention
        representation = {"layer": das.layer, "component": "block_output", "unit": "pos"}
        if das.rank is not None:
            representation["low_rank_dimension"] = das.rank
        torch.manual_seed(0)
        config = pyvene.IntervenableConfig(
            [representation], intervention_types=intervention, model_type=type(model)
        )
        self.das = das
        self.intervenable = pyvene.IntervenableModel(config, model)
        self.intervenable.set_device(model.device)
        self.intervenable.disable_model_gradients()
        (self.trained,) = self.intervenable.interventions.values()
        parameters = [{"params": self.trained.rotate_layer.parameters()}]
        if das.boundless:
            parameters.append({"params": self.trained.intervention_boundaries, "lr": BOUNDARY_RATE})
        self.optimizer = torch.optim.Adam(parameters, lr=RATE)

    def logits(self, base: Tensor, source: Tensor) -> Tensor:
        """After the last token of the base, under the intervention, [batch, vocab]."""
        inputs = {"input_ids": base}, [{"input_ids": source}]
        _, intervened = self.intervenable(*inputs, {"sources->base": self.das.position})
        return intervened.logits[:, -1]

    @torch.enable_grad()
    def step(self, base: Tensor, source: Tensor, wanted: Tensor) -> Tensor:
        """A step of the optimizer; the logits before it."""
        logits = self.logits(base, source)
        loss = cross_entropy(logits.float(), wanted)
        total = loss + self.trained.intervention_boundaries.sum() if self.das.boundless else loss
        self.optimizer.zero_grad()
        total.backward()
        self.optimizer.step()
        return logits.detach()


def with_pyvene(
    model: PreTrainedModel, das: Das, base: Tensor, source: Tensor
) -> Callable[[], list[Tensor]]:
    search, wanted = PyveneSearch(model, das), labels(model, len(base))
    return lambda: [search.step(base, source, wanted)]


class Rotation(nn.Module):
    """Swaps along all columns of its weight, or along those before a learned boundary."""

    def __init__(self, width: int, das: Das) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, das.rank or width))
        nn.init.orthogonal_(self.weight)
        if das.boundless:
            self.boundary = nn.Parameter(torch.tensor(0.5))
            self.register_buffer("columns", torch.arange(width), persistent=False)

    def forward(self, base: Tensor, source: Tensor) -> Tensor:
        """[batch, width] each, in the model's dtype; the rotation is in f32, as pyvene's."""
        weight = self.weight  # the parametrization computes it at every access
        change = (source.float() - base.float()) @ weight
        if hasattr(self, "boundary"):
            end = self.boundary.clamp(1e-3, 1) * len(self.columns)
            above_start = torch.sigmoid(self.columns / TEMPERATURE)
            change = change * above_start * torch.sigmoid((end - self.columns) / TEMPERATURE)
        return base + (change @ weight.T).to(base.dtype)


class Reached(Exception):
    """Ends a run that has measured what it should."""


def with_hooks(
    model: PreTrainedModel, das: Das, base: Tensor, source: Tensor
) -> Callable[[], list[Tensor]]:
    """The source up to the layer of the swap, logits at the last position only."""
    torch.manual_seed(0)
    rotation = orthogonal(Rotation(model.config.hidden_size, das)).to(model.device)
    masks = [rotation.boundary] if das.boundless else []
    rotations = list(rotation.parametrizations.parameters())
    parameters = [{"params": rotations}, {"params": masks, "lr": BOUNDARY_RATE}]
    optimizer = torch.optim.Adam(parameters, lr=RATE)
    wanted = labels(model, len(base))
    block = blocks(model)[das.layer]
    kept: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: tuple, output: Tensor | tuple) -> None:
        kept.append(activation(output)[:, das.position])
        raise Reached

    def swap(_module: nn.Module, _inputs: tuple, output: Tensor | tuple) -> None:
        # In place: nothing before this needs gradients, so no graph is broken.
        at = activation(output)
        at[:, das.position] = rotation(at[:, das.position].clone(), kept.pop())

    @contextlib.contextmanager
    def hooked(hook: Callable):
        handle = block.register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()

    def step() -> list[Tensor]:
        with torch.no_grad(), contextlib.suppress(Reached), hooked(keep):
            model.base_model(source, use_cache=False)
        with torch.enable_grad(), hooked(swap):
            logits = last_logits(model, base, use_cache=False)
            loss = cross_entropy(logits.float(), wanted)
            total = loss + rotation.boundary if das.boundless else loss
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
        return [logits.detach()]

    return step

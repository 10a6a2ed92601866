"""The workloads, as data: those of `benches/workloads/catalogue.rs` that have peers."""

from dataclasses import dataclass

import torch
from models import Shape
from torch import Tensor
from transformers import PreTrainedModel

SEEDS = {"base": 1, "source": 2}

Site = tuple[int, str]  # layer, component


@dataclass(frozen=True)
class Choices:
    """The shapes that a user can choose; None is each workload's default."""

    batch: int | None = None
    pos: int | None = None
    layer: int | None = None
    rank: int = 64


@dataclass(frozen=True)
class Cell:
    """One interchange: the units of the base that are taken from the source."""

    layer: int
    component: str  # pyvene's name
    position: int
    head: int | None = None

    @property
    def site(self) -> Site:
        return self.layer, self.component


@dataclass(frozen=True)
class Das:
    """What is trained, and where."""

    layer: int
    position: int
    rank: int | None = None  # None: a square rotation
    boundless: bool = False


@dataclass(frozen=True)
class Workload:
    family: str
    name: str
    batch: int
    pos: int
    cells: list[Cell] | None = None  # None, and no search: a plain forward pass
    das: Das | None = None

    def flops(self, shape: Shape) -> int | None:
        """Of the source, if there is one, and each cell, in a forward pass of its own."""
        if self.das:
            return None
        passes = 1 if self.cells is None else 1 + len(self.cells)
        return passes * self.batch * shape.flops(self.pos)


def workloads(shape: Shape, choices: Choices) -> list[Workload]:
    """All workloads on this shape, named as in `benches/workloads`."""
    layers, heads = shape.layers, shape.heads
    layer = layers // 2 if choices.layer is None else choices.layer

    def inputs(batch: int, pos: int) -> tuple[int, int]:
        return choices.batch or batch, choices.pos or pos

    def middle(pos: int) -> int:
        return max(pos // 2 - 1, 0)

    shapes = [(1, 5), (1, 80), (8, 64), (8, 128), (32, 80)]
    forwards = dict.fromkeys(inputs(*shape) for shape in shapes)
    found = [Workload("forward", f"forward_{b}x{p}", b, p) for b, p in forwards]

    batch, pos = inputs(1, 5)
    cell = Cell(layer, "block_output", pos - 1)
    found.append(Workload("single", f"single_{batch}x{pos}", batch, pos, [cell]))

    def grid(*components: str, pos: int = pos) -> list[Cell]:
        return [Cell(at, c, p) for at in range(layers) for c in components for p in range(pos)]

    # The name has the shape only if it is not the default, and cannot be told from the grid.
    of_batch = "" if batch == 1 else f"_batch{batch}"
    of_inputs = "" if (batch, pos) == (1, 5) else f"_{batch}x{pos}"
    mixed = "head_attention_value_output"
    sweeps = {
        "sweep_block_output": (f"{layers}x{pos}{of_batch}", grid("block_output")),
        "sweep_attn_mlp": (
            f"{2 * layers}x{pos}{of_batch}",
            grid("attention_output", "mlp_output"),
        ),
        "head_sweep": (
            f"{layers}x{heads}{of_inputs}",
            [Cell(at, mixed, pos - 1, head) for at in range(layers) for head in range(heads)],
        ),
    }
    for family, (size, cells) in sweeps.items():
        found.append(Workload(family, f"{family}_{size}", batch, pos, cells))

    batch, pos = inputs(32, 32)
    cell = Cell(layer, "block_output", middle(pos))
    found.append(Workload("batch", f"batch_{batch}x{pos}", batch, pos, [cell]))

    batch, pos = inputs(16, 32)
    rank, at = choices.rank, middle(pos)
    for family, kind, das in [
        ("das_rotated", "das_rotated", Das(layer, at)),
        ("das_lowrank", f"das_lowrank{rank}", Das(layer, at, rank=rank)),
        ("das_boundless", "das_boundless", Das(layer, at, boundless=True)),
    ]:
        found.append(Workload(family, f"{kind}_step_{batch}x{pos}", batch, pos, das=das))

    for batch, pos in [inputs(1, 6), inputs(1, 20), inputs(1, 80)]:
        of_batch = "" if batch == 1 else f"_batch{batch}"
        name = f"sweep_block_output_{layers}x{pos}{of_batch}"
        found.append(Workload("sweep_long", name, batch, pos, grid("block_output", pos=pos)))
    batch, pos = inputs(16, 64)
    name, das = f"das_lowrank{rank}_step_{batch}x{pos}", Das(layer, middle(pos), rank=rank)
    found.append(Workload("das_long", name, batch, pos, das=das))
    # With shapes that a user chooses, some are the same.
    unique: dict[str, Workload] = {}
    for workload in found:
        unique.setdefault(workload.name, workload)
    return list(unique.values())


ON_REQUEST = {"sweep_long", "das_long"}  # families that take minutes: they run if they are named


def chosen(known: list[Workload], names: list[str]) -> list[Workload]:
    """Those with these names, or in these families; without names, all that take no minutes."""
    if not names:
        return [workload for workload in known if workload.family not in ON_REQUEST]
    return [workload for workload in known if {workload.name, workload.family} & set(names)]


def tokens(workload: Workload, which: str, model: PreTrainedModel) -> Tensor:
    """Token ids that are arbitrary, but the same every time; [batch, pos]."""
    row = torch.arange(workload.batch)[:, None]
    pos = torch.arange(workload.pos)
    ids = (SEEDS[which] + row * 7919 + pos * 104_729) % model.config.vocab_size
    return ids.to(model.device)

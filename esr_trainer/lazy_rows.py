"""Tables of which a step reads and writes only some rows: sparse gradients, and an Adam that follows them.

Axes: V rows of a table, U rows that a step uses, D numbers in a row, M experts.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding, embedding_bag

from esr_trainer.features import ID
from esr_trainer.towers import Tower, jagged

BETA = 0.999
"""b2 of Adam."""


def rows_of(tower: Tower, rows: Tensor) -> Tensor:
    """Embeddings of some rows, whose gradient reaches only the table rows used: (U,) distinct -> (U, M, D)."""
    tables = tower.weights()
    if list(tables) == [ID]:
        return table_rows(tables[ID], rows).view(-1, *tower.shape[1:])
    bags = jagged(tower.features, rows).to_dict()
    pooled = [
        embedding_bag(bags[name].values(), table, bags[name].offsets()[:-1], mode="mean", sparse=True)
        for name, table in tables.items()
    ]
    return torch.stack(pooled).view(len(pooled), -1, *tower.shape[1:]).sum(dim=0)


def table_rows(table: Tensor, rows: Tensor) -> Tensor:
    """Rows of a table, whose gradient reaches no others: (V, D), (U,) distinct -> (U, D)."""
    found: Tensor = _Rows.apply(table, rows)  # type: ignore[no-untyped-call]
    return found


def pick(values: Tensor, place: Tensor) -> Tensor:
    """Rows of a small table, each as often as it is asked for: (U, M, D), (...) -> (..., M, D)."""
    return embedding(place, values.flatten(1)).view(*place.shape, *values.shape[1:])


class _Rows(torch.autograd.Function):
    """The gradient is known to be without repetition, and is not sorted once more."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.shape = table.shape
        return table.index_select(0, rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (rows,) = ctx.saved_tensors
        return torch.sparse_coo_tensor(
            rows[None], gradients[0], ctx.shape, is_coalesced=True, check_invariants=False
        ), None


class RowOptimizer(torch.optim.Optimizer, ABC):
    """Changes the rows that have a gradient, and reads and writes no others."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step; the gradients are sparse."""
        assert closure is None
        for group in self.param_groups:
            for table in group["params"]:
                if table.grad is not None:
                    gradient = table.grad.coalesce()
                    rows = gradient.indices()[0]
                    size = self.size(table, rows, gradient.values())
                    changed = table.index_select(0, rows).addcdiv_(gradient.values(), size, value=-group["lr"])
                    table.index_copy_(0, rows, changed)

    @abstractmethod
    def size(self, table: Tensor, rows: Tensor, gradient: Tensor) -> Tensor:
        """What the gradient of some rows is divided by, (U, D); it is counted in."""


class LazyAdam(RowOptimizer):
    """Adam, with each row's change at once.

    v = b2^n v + (1 - b2) g^2, n steps since the row had its last gradient; row -= lr g / (sqrt(v / (1 - b2^t)) + eps)
    (Kingma & Ba 2015, Alg. 1, with b1 = 0). Adam's first moment spreads what a gradient moves over the steps that
    follow: it changes a row ten steps after its last use, and sums to the same. Without n the rows that are seldom
    used would hardly move. Measured on 2,000 items, policy value after 400 steps of two runs: 8.53 and 8.33 with the
    full catalogue's Adam, 8.50 and 8.33 so, 8.45 and 8.06 where moments wait for a row's next use (as in SparseAdam).
    """

    def __init__(self, params: Iterable[Tensor], lr: float) -> None:
        super().__init__(params, {"lr": lr})

    def size(self, table: Tensor, rows: Tensor, gradient: Tensor) -> Tensor:
        """sqrt(v / (1 - b2^t)) + eps."""
        state = self.state[table]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.int64)
            state["used"] = table.new_zeros(len(table))  # the step of a row's last gradient
            state["exp_avg_sq"] = torch.zeros_like(table)
        state["step"] += 1
        kept = BETA ** (state["step"] - state["used"].index_select(0, rows)).to(gradient.dtype)
        square: Tensor = state["exp_avg_sq"].index_select(0, rows).mul_(kept[:, None])
        square.addcmul_(gradient, gradient, value=1 - BETA)
        state["exp_avg_sq"].index_copy_(0, rows, square)
        state["used"].index_fill_(0, rows, int(state["step"]))
        return square.div_(1 - BETA ** int(state["step"])).sqrt_().add_(1e-8)


class LazyAdagrad(RowOptimizer):
    """Adagrad (Duchi et al. 2011) as in torch: a row without a gradient would stay as it is anyway."""

    def __init__(self, params: Iterable[Tensor], lr: float) -> None:
        super().__init__(params, {"lr": lr})

    def size(self, table: Tensor, rows: Tensor, gradient: Tensor) -> Tensor:
        """sqrt(sum of g^2) + eps."""
        state = self.state[table]
        if not state:
            state["sum"] = torch.zeros_like(table)
        square: Tensor = state["sum"].index_select(0, rows).addcmul_(gradient, gradient)
        state["sum"].index_copy_(0, rows, square)
        return square.sqrt_().add_(1e-10)


LAZY_OPTIMIZERS: Mapping[str, Callable[..., torch.optim.Optimizer]] = {"adam": LazyAdam, "adagrad": LazyAdagrad}
"""Optimizers of sparse gradients, by the names of `OPTIMIZERS`."""

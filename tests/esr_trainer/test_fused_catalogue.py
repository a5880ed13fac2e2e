"""The kernels against the formulas over stored logits, in float64; on a GPU, or interpreted on the CPU."""

import itertools
import os
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from scipy.stats import chisquare

from esr_trainer.estimators import ESTIMATORS
from esr_trainer.inclusion import log_stopping_times
from esr_trainer.normalisers import entropy
from esr_trainer.policy import greedy_candidates
from esr_trainer.quotas import expert_of_position
from esr_trainer.shards import Logits, of_experts, of_runs, together
from tests.conftest import last_json, run_module

pytest.importorskip("triton", reason="the kernels need triton: install the extra [gpu]")
from esr_trainer.fused_catalogue import Tiling, draw, summed

ONE = Tiling(rows=16, tile=256, few=16)
"""All items of these tests are in one tile."""
MANY = Tiling(rows=16, tile=64, few=16, chunks=2)
SMALL = Tiling(rows=32, tile=16, part=32, few=8, chunks=2)
"""More tiles than candidates."""


class Towers(NamedTuple):
    queries: torch.Tensor
    """(B, M, D)."""
    items: torch.Tensor
    """(N, M, D)."""
    num_candidates: int

    def logits(self) -> torch.Tensor:
        """In float64."""
        return torch.einsum("bmd,nmd->bmn", self.queries.double(), self.items.double())


def towers(device: str, shape: tuple[int, int, int, int], num_candidates: int, scale: float = 1.0) -> Towers:
    """Random ones of (B, M, N, D)."""
    generator, (batch, num_experts, num_items, dimension) = torch.Generator().manual_seed(0), shape
    queries = scale * torch.randn(batch, num_experts, dimension, generator=generator) / dimension**0.5
    items = torch.randn(num_items, num_experts, dimension, generator=generator)
    return Towers(queries.to(device), items.to(device), num_candidates)


def wide(device: str) -> Towers:
    """Logits from -80 to 80, in either order of the items."""
    queries = torch.tensor([[[80.0], [-80]], [[-80], [80]], [[80], [80]]])
    items = torch.linspace(-1, 1, 75)[:, None, None].expand(-1, 2, -1)
    return Towers(queries.to(device), items.to(device), 71)


def seeded(device: str, seed: int = 1) -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


@pytest.mark.parametrize("num_experts", [1, 2])
def test_candidates_are_drawn_by_plackett_luce(num_experts: int, kernel_device: str) -> None:
    """Chi-square over ordered pairs; contexts or experts that share their noise are far off."""
    one = towers(kernel_device, (1, num_experts, 5, 2), 2)
    queries = one.queries.expand(4096, -1, -1)
    found = draw(queries, one.items, 2, seeded(kernel_device), Tiling(rows=1024, tile=16, few=1024)).candidates
    expert, logits = expert_of_position(2, num_experts), one.logits()[0].cpu()
    expected, count = [], []
    for pair in itertools.permutations(range(5), 2):
        rest = [item for item in range(5) if item != pair[0]]
        first, second = logits[expert[0]].softmax(0)[pair[0]], logits[expert[1]][rest].softmax(0)[rest.index(pair[1])]
        expected.append(4096 * float(first * second))
        count.append(int((found.cpu() == torch.tensor(pair)).all(dim=1).sum()))
    assert sum(count) == 4096
    assert chisquare(count, expected).pvalue > 0.01


def test_a_draw_does_not_depend_on_the_tiling(kernel_device: str) -> None:
    """Also with one tile, and with ten of which three are looked into; 150 is no multiple of any."""
    given = towers(kernel_device, (5, 2, 150, 10), 3)
    found = [draw(*given, seeded(kernel_device), tiling) for tiling in (ONE, MANY, SMALL)]
    for again in found[1:]:
        assert found[0].candidates.equal(again.candidates)
        torch.testing.assert_close(found[0].log_normaliser, again.log_normaliser, rtol=0, atol=1e-5)
    assert not found[0].candidates.equal(draw(*given, seeded(kernel_device, seed=2), ONE).candidates)


CASES = {
    "one expert": lambda device: towers(device, (5, 1, 150, 10), 7),
    "two experts": lambda device: towers(device, (4, 2, 130, 20), 9),
    "more experts than candidates": lambda device: towers(device, (3, 3, 70, 4), 2),
    "nearly all items": lambda device: towers(device, (3, 2, 70, 4), 68),
    "wide": wide,
}


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_those_of_stored_logits(name: str, kernel_device: str) -> None:
    given = CASES[name](kernel_device)
    scanned = draw(*given, seeded(kernel_device), MANY)
    weight = torch.rand(scanned.candidates.shape, generator=seeded(kernel_device), device=kernel_device)

    def values(logits: Logits, columns: torch.Tensor) -> torch.Tensor:
        own = [ESTIMATORS[name](logits, columns, columns) for name in ("ca-swr", "v-swr", "ca-poisson")]
        return torch.stack([*own, entropy(logits).mean(dim=1, keepdim=True).expand_as(weight)]).double()

    exact = given._replace(queries=given.queries.double(), items=given.items.double())
    found, expected = [[tensor.clone().requires_grad_() for tensor in (of.queries, of.items)] for of in (given, exact)]
    logits = torch.einsum("bmd,nmd->bmn", *expected)
    torch.testing.assert_close(scanned.log_normaliser.double(), logits.logsumexp(dim=2), rtol=1e-6, atol=1e-6)
    columns = torch.arange(given.num_candidates, device=kernel_device).expand_as(weight)
    of_kernels = values(summed(*found, scanned, with_times=True, tiling=MANY), columns)
    of_stored = values(logits, scanned.candidates)
    torch.testing.assert_close(of_kernels, of_stored, rtol=1e-5, atol=1e-5)
    mix = torch.tensor([1.0, 0.3, 2.0, 0.5], device=kernel_device)[:, None, None]
    for value in (of_kernels, of_stored):
        (value * mix * weight).sum().backward()
    for own, reference in zip(found, expected, strict=True):
        assert own.grad is not None
        assert reference.grad is not None
        largest = float(reference.grad.abs().max())
        torch.testing.assert_close(own.grad.double(), reference.grad, rtol=1e-5, atol=1e-5 * largest)


def test_greedy_candidates_and_stopping_times_are_those_of_stored_logits(kernel_device: str) -> None:
    given = towers(kernel_device, (5, 2, 150, 10), 3)
    greedy = draw(*given, None, SMALL)
    assert greedy.candidates.equal(greedy_candidates(given.logits(), 3))
    times = summed(given.queries, given.items, greedy, with_times=True, tiling=MANY).log_times
    torch.testing.assert_close(times, log_stopping_times(given.logits(), 3), rtol=0, atol=1e-5)


def test_what_is_left_of_logits_is_cut_and_joined_like_them_and_refuses_what_it_cannot_tell(kernel_device: str) -> None:
    given = towers(kernel_device, (4, 2, 70, 4), 3)
    logits = summed(given.queries, given.items, draw(*given, None, MANY), with_times=False, tiling=MANY)
    assert (len(logits), logits.shape) == (4, (4, 2, 70))
    again = together(of_runs(logits, 2))
    assert entropy(again).equal(entropy(logits))
    assert of_experts(logits, 1).shape == (4, 1, 70)
    columns = torch.arange(3, device=kernel_device).expand(4, -1)
    for name in ("v", "ca", "ca-heads"):
        with pytest.raises(TypeError, match="never stored"):
            ESTIMATORS[name](logits, columns, columns)


@pytest.mark.slow
@pytest.mark.parametrize(("capability", "num_experts", "dimension"), [(80, 1, 10), (90, 4, 64), (90, 1, 256)])
def test_the_compiler_for_gpus_accepts_the_kernels(
    capability: int, num_experts: int, dimension: int, tmp_path: Path
) -> None:
    """Without a GPU; the smallest of these has 99 KB of shared memory for a program."""
    own = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    module = "tests.esr_trainer.fused_compiling"
    done = run_module(module, capability, num_experts, dimension, env=own, timeout=300)
    assert done.returncode == 0, done.stderr
    shared = last_json(done.stdout)
    assert set(shared) == {"scan", "look", "race", "pull_queries", "pull_items"}
    assert 0 < max(shared.values()) <= 99 * 1024, shared

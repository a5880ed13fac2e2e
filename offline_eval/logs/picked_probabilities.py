"""How probable it is that an item is drawn as a candidate, and that the LSR then picks it for its slot.

Both stages are races. The first is known by its inclusion probabilities pi: given that K candidates came, each came
independently of the others (conditional Poisson sampling, Hajek 1964, Ann. Math. Stat. 35). In the second a
Plackett-Luce LSR with utilities u lets the candidates run at rates e^u, and slot l gets the l-th to finish (Luce's
choice axiom as a race of exponentials). So, with G(t) the generating function of the other items,

    P(a in slot l) = pi(a) [y^(K-1) x^(l-1)] int e^u(a) e^(-t e^u(a)) G(t) dt / [y^(K-1)] G(0),
    G(t) = prod over b != a of 1 - pi(b) + pi(b) y (e^(-t e^u(b)) + x (1 - e^(-t e^u(b)))):

y counts the candidates, x those that finish before `a`. A uniform LSR gives pi(a) / K, and an LSR that sorts is the
limit of large utilities. None of the sources has this form. A weight on it is the weight on the candidate set averaged
over all sets that could have shown the item, so it varies less (Rao-Blackwell). The integral is a sum over log t, which
converges geometrically for densities like Gumbel's; the coefficients of y are a discrete Fourier transform, those of x
truncated products.

Axes: B contexts, N items, J of them, T times, H roots of unity (half: the others are their conjugates), L slots.
"""

import math
from typing import NamedTuple

import numpy as np

STEP, STEP_SLOTS = 0.4, 8
"""Of log t, up to so many slots; less by their number beyond, where orders are narrower."""

BEFORE, AFTER = 18.0, 3.5
"""How far log t goes beyond the fastest and the slowest item: e^-18 of a chance, and e^(-e^3.5), are left out."""

CELLS = 1 << 21
"""Complex numbers that are held at once for the items that are asked for."""

HEAD = 0.005
"""Likelier candidates are multiplied one by one; for the factors 1 + d of the others d - d^2 / 2 is summed."""

LIKELY = 0.5
"""More likely candidates are left out of a product by not being multiplied: to divide by such a factor loses digits."""


class Picks(NamedTuple):
    """A policy and an LSR in one context: what every item's chance is read from."""

    num_candidates: int
    """K."""
    log_inclusion: np.ndarray
    """log pi, (N,)."""
    rates: np.ndarray
    """e^u, the largest 1, (N,)."""
    times: np.ndarray
    """t, (T,)."""
    roots: np.ndarray
    """y, (H,) complex, each of which stands for its conjugate too."""
    unlikely: np.ndarray
    """Coefficients of x in the factors of all items of pi <= LIKELY, multiplied, (L, T, H) complex."""
    finished: np.ndarray
    """The same of all items: G(t)."""

    @property
    def nbytes(self) -> int:
        """Of what no other context has too."""
        return sum(own.nbytes for own in (self.log_inclusion, self.rates, self.unlikely, self.finished))

    def log_chance(self, items: np.ndarray) -> np.ndarray:
        """log P(a in slot l) of items: rows (J,), distinct and ascending -> (J, L)."""
        if not len(items):
            return np.empty((0, len(self.finished)))
        parts = np.array_split(items, math.ceil(len(items) * self.finished.size / CELLS))
        return np.concatenate([self.log_chance_of_part(part) for part in parts if len(part)])

    def log_chance_of_part(self, items: np.ndarray) -> np.ndarray:
        """The same of as many as fit into memory."""
        finish = self.rates[items, None] * self.times  # (J, T)
        density = math.log(self.times[1] / self.times[0]) * finish * np.exp(-finish)  # of log t
        others = np.empty((len(items), *self.finished.shape), dtype=np.complex128)
        likely = np.flatnonzero(self.log_inclusion > math.log(LIKELY))
        is_likely = np.isin(items, likely)
        others[~is_likely] = self.without_unlikely(items[~is_likely])
        if is_likely.any():
            others[is_likely] = self.without_likely(likely)[np.searchsorted(likely, items[is_likely])]
        of_slots = self.coefficient(np.einsum("jt,jlth->jlh", density, others))
        drawn = self.coefficient(others[:, 0, 0])  # before anybody finishes
        with np.errstate(divide="ignore"):
            given_drawn = np.log(np.clip(of_slots / drawn[:, None], 0.0, 1.0))
        log_chance: np.ndarray = self.log_inclusion[items, None] + given_drawn
        return log_chance

    def without_unlikely(self, items: np.ndarray) -> np.ndarray:
        """Coefficients of x in G(t) of all items but each of these: rows (J,) -> (J, L, T, H)."""
        still, gone = self.factors(items)
        others, before = np.empty((len(items), *self.finished.shape), dtype=np.complex128), np.zeros_like(still)
        for slot, product in enumerate(self.finished):
            before = others[:, slot] = (product - gone * before) / still
        return others

    def without_likely(self, likely: np.ndarray) -> np.ndarray:
        """The same of the likely items, all of them: what comes before each times what comes behind it."""
        still, gone = self.factors(likely)
        found = np.empty((len(likely), *self.finished.shape), dtype=np.complex128)
        product = self.unlikely
        for place in range(len(likely)):
            found[place] = product
            product = times_factor(product, still[place], gone[place])
        product = np.zeros_like(self.unlikely)
        product[0] = 1
        for place in reversed(range(len(likely))):
            found[place] = times_series(found[place], product)
            product = times_factor(product, still[place], gone[place])
        return found

    def factors(self, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """1 - pi + pi y alive, and what x is multiplied by, pi y (1 - alive): rows (J,) -> (J, T, H) each."""
        inclusion = np.exp(self.log_inclusion[items])[:, None, None]
        alive, arrives = np.exp(-self.rates[items, None] * self.times)[..., None], inclusion * self.roots
        return 1 - inclusion + arrives * alive, arrives * (1 - alive)

    def coefficient(self, values: np.ndarray) -> np.ndarray:
        """Of y^(K-1), up to a factor: (..., H) -> (...)."""
        real: np.ndarray = (values * self.roots ** (1 - self.num_candidates)).real.sum(axis=-1)
        return real


def picks(log_inclusion: np.ndarray, utilities: np.ndarray, num_candidates: int, num_slots: int) -> list[Picks]:
    """Work out, context by context, what all its items share.

    Args:
        log_inclusion: log pi, (B, N), which sum to K.
        utilities: u, (B, N), finite; what is added to a context's does not matter.
        num_candidates: K.
        num_slots: L, at most K.
    """
    step = STEP * min(1.0, STEP_SLOTS / num_slots)
    log_inclusion, lead = np.minimum(log_inclusion, 0.0), utilities - utilities.max(axis=1, keepdims=True)
    inclusion, rates, times = np.exp(log_inclusion), np.exp(lead), np.exp(np.arange(-BEFORE, AFTER - lead.min(), step))
    half = num_roots(num_candidates)
    roots = np.exp(1j * np.pi * (np.arange(half) + 0.5) / half)
    alive = np.exp(-times[:, None] * rates[:, None])  # (B, T, N)
    is_likely, is_head = inclusion > LIKELY, inclusion > HEAD
    unlikely = tail_product(np.where(is_head, 0.0, inclusion), alive, roots, num_slots)
    unlikely = times_items(unlikely, np.where(is_head & ~is_likely, inclusion, 0.0), alive, roots)
    finished = times_items(unlikely, np.where(is_likely, inclusion, 0.0), alive, roots)
    return [
        Picks(num_candidates, log_inclusion[row], rates[row], times, roots, unlikely[row], finished[row])
        for row in range(len(inclusion))
    ]


def num_roots(num_candidates: int) -> int:
    """H: twice as many tell numbers of arrivals apart that lie within six standard deviations, and more."""
    return math.ceil(4 + 3 * math.sqrt(num_candidates))


def times_items(product: np.ndarray, inclusion: np.ndarray, alive: np.ndarray, roots: np.ndarray) -> np.ndarray:
    """Times the factors of the items whose pi is not 0: (B, L, T, H), pi (B, N), (B, T, N), (H,) -> (B, L, T, H)."""
    contexts = np.arange(len(inclusion))
    likeliest_first = np.argsort(-inclusion, axis=1)
    for items in likeliest_first[:, : np.count_nonzero(inclusion, axis=1).max()].T:  # (B,): one of each context
        arrives = inclusion[contexts, items, None, None] * roots  # (B, 1, H)
        before = alive[contexts, :, items][..., None]  # (B, T, 1)
        still = 1 - inclusion[contexts, items, None, None] + arrives * before
        product = times_factor(product, still[:, None], (arrives * (1 - before))[:, None])
    return product


def times_factor(product: np.ndarray, constant: np.ndarray, linear: np.ndarray) -> np.ndarray:
    """(..., L, T, H) times constant + linear x, up to x^(L-1)."""
    result: np.ndarray = product * constant
    result[..., 1:, :, :] += product[..., :-1, :, :] * linear
    return result


def times_series(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The product of two series of x up to x^(L-1): (L, T, H) each."""
    slots = range(len(one))
    return np.stack([np.sum([one[low] * other[slot - low] for low in range(slot + 1)], axis=0) for slot in slots])


def tail_product(inclusion: np.ndarray, alive: np.ndarray, roots: np.ndarray, num_slots: int) -> np.ndarray:
    """The same for small pi, by sums: exp(c_0 + c_1 x + c_2 x^2), the c of log(1 + d) = d - d^2 / 2."""
    moments = (inclusion, inclusion**2)
    first, second = (np.einsum("btn,bn->bt", alive, moment)[..., None] for moment in moments)
    third = np.einsum("btn,btn,bn->bt", alive, alive, moments[1])[..., None]
    all_first, all_second = (moment.sum(axis=1)[:, None, None] for moment in moments)
    c_0 = roots * first - all_first - (roots**2 * third - 2 * roots * second + all_second) / 2
    c_1 = roots * (all_first - first) - roots**2 * (second - third) + roots * (all_second - second)
    c_2 = -(roots**2) * (all_second - 2 * second + third) / 2
    coefficients = [np.exp(c_0)]
    for slot in range(1, num_slots):
        two_above = 2 * c_2 * coefficients[slot - 2] if slot > 1 else 0.0
        coefficients.append((c_1 * coefficients[slot - 1] + two_above) / slot)
    return np.stack(coefficients, axis=1)

"""A small equivariant interatomic potential, for the demo and examples/gaunt_ethanol.py.

Every atom carries C signals on the sphere. A layer multiplies the signals of the neighbours by the
spherical harmonics of the direction to them (gaunt.product, weighted by the distance), sums, and
takes pointwise powers of the sum, which couple several neighbours at once (gaunt.power), as MACE
does. The energy is read off degree 0; forces are its gradient, so that training on them goes
through second derivatives of every product.
"""

import math
import re
from pathlib import Path

import torch
from torch import Tensor, nn

from nnkernels import gaunt
from nnkernels.demo.gaunt_peers import degrees

ETHANOL = Path("molecules") / "rmd17_ethanol_1000.xyz"

# ---- data ----


def read_xyz(path: Path):
    """Frames of one molecule: kinds [A], positions and forces [N, A, 3], energies [N], float64."""
    lines = path.read_text().splitlines()
    energies, symbols, values = [], [], []
    at = 0
    while at < len(lines) and lines[at].strip():
        count = int(lines[at])
        energies.append(float(re.search(r"energy=(\S+)", lines[at + 1])[1]))
        rows = [line.split() for line in lines[at + 2 : at + 2 + count]]
        symbols = [row[0] for row in rows]
        values.append([[float(value) for value in row[1:7]] for row in rows])
        at += 2 + count
    table = torch.tensor(values, dtype=torch.float64)
    known = sorted(set(symbols))
    kinds = torch.tensor([known.index(symbol) for symbol in symbols])
    energies = torch.tensor(energies, dtype=torch.float64)
    return kinds, table[..., :3], table[..., 3:], energies


def lennard_jones(frames=1000, atoms=9, seed=0):
    """Frames of a cluster of two kinds of Lennard-Jones atoms in random motion, the same every
    time; units of `read_xyz`."""
    generator = torch.Generator().manual_seed(seed)
    kinds = torch.arange(atoms) % 2
    size = torch.tensor([2.6, 3.0], dtype=torch.float64)
    sigma = (size[kinds][:, None] + size[kinds]) / 2
    apart = ~torch.eye(atoms, dtype=torch.bool)

    def energy(positions):
        difference = positions[:, :, None] - positions[:, None]
        square = difference.square().sum(-1)[:, apart]
        ratio = (sigma[apart] ** 2 / square) ** 3
        # Every pair counts twice: wells of 2 kcal/mol, at a temperature of 0.3.
        return 4.0 * (ratio * ratio - ratio).sum(-1)

    def forces(positions):
        leaf = positions.detach().requires_grad_()
        return -torch.autograd.grad(energy(leaf).sum(), leaf)[0]

    # Down to a cluster, then thermal steps of Langevin's equation, many walkers side by side.
    walkers = 50
    positions = torch.randn(walkers, atoms, 3, generator=generator, dtype=torch.float64) * 2
    for _ in range(2000):
        positions = positions + (1e-2 * forces(positions)).clamp(-0.05, 0.05)
    kept = []
    while len(kept) * walkers < frames:
        for _ in range(40):
            noise = torch.randn(positions.shape, generator=generator, dtype=torch.float64)
            step = 1e-3
            positions = positions + step * forces(positions) + math.sqrt(2 * step * 0.3) * noise
        kept.append(positions)
    positions = torch.cat(kept)[:frames]
    return kinds, positions, forces(positions), energy(positions).detach()


# ---- network ----


class Gaunt:
    product = staticmethod(gaunt.product)
    power = staticmethod(gaunt.power)


class Mix(nn.Module):
    """A linear map of the channels for each degree."""

    def __init__(self, L: int, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(L + 1, channels, channels) / math.sqrt(channels))
        self.register_buffer("degrees", degrees(L), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        # [..., C, d] as d products of matrices.
        flat = x.flatten(0, -3).permute(2, 0, 1)
        return torch.bmm(flat, self.weight[self.degrees]).permute(1, 2, 0).reshape(x.shape)


class Radial(nn.Module):
    """Weights for each pair of atoms, channel and degree, smooth functions of the distance."""

    def __init__(self, L: int, channels: int, kinds: int, hidden=32, waves=8, cutoff=5.0):
        super().__init__()
        self.L = L
        self.channels = channels
        self.cutoff = cutoff
        frequencies = torch.arange(1, waves + 1) * (math.pi / cutoff)
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.first = nn.Linear(waves, hidden, bias=False)
        self.bias = nn.Parameter(torch.randn(kinds, kinds, hidden))
        self.second = nn.Linear(hidden, hidden)
        self.last = nn.Linear(hidden, channels * (L + 1))

    def forward(self, r: Tensor, pair: tuple[Tensor, Tensor]) -> Tensor:
        """r [B, A, K] and the kinds of both ends [A, K] -> [B, A, K, C, L + 1]."""
        u = (r / self.cutoff).clamp(max=1)
        # Two derivatives vanish at the cutoff.
        smooth = (1 - u) ** 3 * (1 + 3 * u + 6 * u * u)
        waves = torch.sin(r[..., None] * self.frequencies) / r[..., None]
        hidden = nn.functional.silu(self.first(2 * waves) + self.bias[pair])
        hidden = nn.functional.silu(self.second(hidden))
        weights = self.last(hidden) * smooth[..., None]
        return weights.unflatten(-1, (self.channels, self.L + 1))


class Potential(nn.Module):
    """The energy of molecules of one composition.

    Args:
        kinds: [A], the kind of each atom, from 0.
        channels, L: signals per atom and their degree. order: the highest power.
        layers: how often atoms exchange signals.
        operators: a class with `product` and `power`; by default those of nnkernels.gaunt.

    Shapes: positions [B, A, 3] in angstrom -> energies [B].
    """

    def __init__(
        self, kinds: Tensor, *, channels=32, L=2, order=3, layers=2, cutoff=5.0, operators=None
    ):
        super().__init__()
        atoms, known = len(kinds), int(kinds.max()) + 1
        self.L = L
        # A class: modules cannot be copied.
        self.operators = operators or Gaunt
        everyone = torch.arange(atoms)
        neighbours = torch.stack([everyone[everyone != i] for i in range(atoms)])
        constants = {"kinds": kinds, "neighbours": neighbours, "degrees": degrees(L)}
        for name, value in constants.items():
            self.register_buffer(name, value, persistent=False)
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("shift", torch.zeros((), dtype=torch.float64))
        # Degree l of the signal (1 + r . u)^L is a positive multiple of Y_l(r): see `harmonics`.
        pole = torch.tensor([math.sqrt(4 * math.pi), 0, math.sqrt(4 * math.pi / 3), 0])
        power = gaunt.power(pole.double(), L, 1, L)
        order_zero = power[[degree * (degree + 1) for degree in range(L + 1)]]
        factors = (2 * torch.arange(L + 1) + 1).sqrt() / order_zero
        self.register_buffer("factors", factors[degrees(L)].float(), persistent=False)
        self.radial = nn.ModuleList(
            Radial(L, channels, known, cutoff=cutoff) for _ in range(layers)
        )
        self.powers = nn.ParameterList(
            torch.randn(known, order, channels, L + 1) * (order * 3.0**n) ** -0.5
            for n in range(layers)
        )
        self.mixes = nn.ModuleList(Mix(L, channels) for _ in range(layers))
        self.skips = nn.ModuleList(Mix(L, channels) for _ in range(layers - 1))
        self.embedding = nn.Parameter(torch.randn(known, channels))
        self.readouts = nn.ModuleList(
            nn.Sequential(nn.Linear(channels, 32), nn.SiLU(), nn.Linear(32, 1))
            for _ in range(layers)
        )

    def harmonics(self, directions: Tensor) -> Tensor:
        """Y up to degree L at unit vectors [..., 3], squares of a degree summing to 2 l + 1.

        (1 + r . u)^L, as a signal of u, has degree l in proportion to Y_l(r): one call of `power`.
        """
        ones = torch.full_like(directions[..., :1], math.sqrt(4 * math.pi))
        signal = torch.cat((ones, math.sqrt(4 * math.pi / 3) * directions), dim=-1)
        return self.operators.power(signal, self.L, 1, self.L) * self.factors

    def many_body(self, x: Tensor, weights: Tensor) -> Tensor:
        """The sum of powers of x [B, A, C, d], weighted for each kind, channel and degree."""
        weights = weights[self.kinds][..., self.degrees]
        out = weights[:, 0] * x
        for n in range(1, weights.shape[1]):
            out = out + weights[:, n] * self.operators.power(x, n + 1, self.L, self.L)
        return out

    def forward(self, positions: Tensor) -> Tensor:
        L, neighbours = self.L, self.neighbours
        difference = positions[:, neighbours] - positions[:, :, None]
        r = difference.norm(dim=-1)
        pair = self.kinds[:, None].expand(neighbours.shape), self.kinds[neighbours]
        y = self.harmonics(difference / r[..., None])[..., None, :]
        # Of unit size for a molecule, whose atoms have about this many neighbours at hand.
        share = neighbours.shape[1] ** -0.5
        energy, h = 0, None
        for layer, radial in enumerate(self.radial):
            weights = radial(r, pair)
            if h is None:
                sent = self.embedding[self.kinds[neighbours]][..., None] * weights
                message = sent[..., self.degrees] * y
            else:
                args = h[:, neighbours], y, L, L, L, None, weights
                message = self.operators.product(*args)
            gathered = message.sum(2) * share
            new = self.mixes[layer](self.many_body(gathered, self.powers[layer]))
            h = new if h is None else new + self.skips[layer - 1](h)
            energy = energy + self.readouts[layer](h[..., 0]).squeeze(-1).sum(-1)
        return self.scale * energy + self.shift.to(energy.dtype)

    def energy_and_forces(self, positions: Tensor, *, create_graph=False):
        leaf = positions.detach().requires_grad_()
        with torch.enable_grad():
            energy = self(leaf)
            (slope,) = torch.autograd.grad(energy.sum(), leaf, create_graph=create_graph)
        return energy, -slope


# ---- training ----


class Trainer:
    """Fits a Potential to energies and forces, and keeps a moving average of its parameters."""

    def __init__(self, model: Potential, positions, energies, forces, *, lr=5e-3, batch=5):
        self.model = model
        self.batch = batch
        self.lr = lr
        self.mean = energies.mean()
        model.scale.fill_(forces.square().mean().sqrt())
        self.positions, self.forces = positions.float(), forces.float()
        # Relative to the mean: float32 has no room for the total energy.
        self.energies = (energies - self.mean).float()
        self.optimizer = torch.optim.Adam(model.parameters(), lr=lr, betas=(0.9, 0.99))
        self.average = torch.optim.swa_utils.AveragedModel(
            model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.99)
        )

    def step(self, picked, progress: float):
        """One step on these frames; `progress` from 0 to 1 lowers the rate to nearly nothing."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * max(0.01, 0.5 * (1 + math.cos(math.pi * progress)))
        energy, forces = self.model.energy_and_forces(self.positions[picked], create_graph=True)
        scale = self.model.scale
        force_loss = ((forces - self.forces[picked]) / scale).square().mean()
        energy_loss = ((energy - self.energies[picked]) / scale).square().mean()
        loss = 10 * force_loss + 0.1 * energy_loss
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 10.0)
        self.optimizer.step()
        self.average.update_parameters(self.model)
        return loss.item()

    def errors(self, positions, energies, forces):
        """Mean absolute errors of the averaged model: energy, force component."""
        model = self.average.module
        energy, force = model.energy_and_forces(positions.float())
        energy_error = (energy.detach() - (energies - self.mean).float()).abs().mean()
        return energy_error.item(), (force - forces.float()).abs().mean().item()


def equivariance_error(model: Potential, positions: Tensor) -> float:
    """How far a rotated and mirrored molecule's energy and forces are from the rotated ones, in
    float64 and relative to the largest force."""
    model = model.double()
    positions = positions.double()
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(1)).double()).Q
    energy, forces = model.energy_and_forces(positions)
    turned_energy, turned_forces = model.energy_and_forces(positions @ turn.T)
    model.float()
    error = (turned_forces - forces @ turn.T).abs().max()
    error = max(error, (turned_energy - energy).abs().max())
    return (error / forces.abs().max()).item()

"""EM over many processes: expected counts are sums, so a step needs one all-reduce."""

import zlib

import torch
import torch.distributed as dist
from torch import Tensor

from nnkernels.pc import em
from nnkernels.pc.em import Report
from nnkernels.pc.errors import ArgumentError


def fit(
    model,
    x: Tensor,
    valid: Tensor | float | None = None,
    epochs: int = 10,
    batch: int = 512,
    pseudo_count: float = 0.1,
    callback=None,
    *,
    mask: Tensor | None = None,
    steps: tuple[float, float] = (0.25, 0.005),
    seed: int = 0,
    patience: int | None = None,
    checkpoint=None,
    resume: bool = False,
    group: dist.ProcessGroup | None = None,
) -> list[Report]:
    """HCLT.fit by all processes of a group: each takes its share of every batch.

    Args:
        model: an HCLT of the same sizes on every rank; parameters begin as those of rank 0.
        x, valid, mask: the same on every rank.
        group: of torch.distributed, on any backend for CPU tensors; default: the world.
        The others are those of HCLT.fit; rank 0 writes the checkpoint.

    Returns:
        The same reports on every rank. Ranks end with the same parameters; one process alone gets
        the same up to the order in which counts are added.

    Raises:
        As HCLT.fit; ArgumentError where the ranks hold different data; RuntimeError without a
        process group.

    >>> torch.distributed.init_process_group("gloo")  # under torchrun
    >>> nnkernels.distributed.fit(model, x, epochs=5)
    """
    op = "pc distributed.fit"
    if not dist.is_initialized():
        raise RuntimeError(f"{op}: there is no process group; call init_process_group first")
    _check_same(op, x, group)
    first = dist.get_global_rank(group, 0) if group is not None else 0
    for parameter in (model.pi, model.A, model.B):
        dist.broadcast(parameter.data, first, group)

    share = dist.get_rank(group), dist.get_world_size(group)
    return em.fit(
        *(model, x, valid, epochs, batch, pseudo_count, callback, mask, steps, seed, patience),
        *(checkpoint, resume, lambda tensors: _all_reduce(tensors, group), share),
    )


def _all_reduce(tensors: list[Tensor], group) -> None:
    """Sums over the ranks, in place, as one message in the dtype of the counts."""
    flat = torch.cat([tensor.to(tensors[-1].dtype).flatten() for tensor in tensors])
    dist.all_reduce(flat, group=group)
    for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))


def _check_same(op: str, x: Tensor, group) -> None:
    own = torch.tensor([*x.shape, zlib.crc32(x.contiguous().numpy())])
    found = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
    dist.all_gather(found, own, group)
    if any(not torch.equal(own, other) for other in found):
        raise ArgumentError(
            f"{op}: the ranks hold different data; pass the same x everywhere, each rank takes its "
            "share of every batch"
        )

"""What runs the pc operators where the compiled kernels do not.

The codec has no reference backend: its integers are defined by the order of its float32 operations,
which plain torch does not promise.
"""

from nnkernels._backend import install_plain
from nnkernels.pc import reference


def _forward(x, pi, A, B, parent, order, mask=None, save_u=True):
    ll, u = reference.forward(x, pi, A, B, parent, order, mask)
    return ll.to(pi.dtype), u.to(pi.dtype) if save_u else pi.new_empty(0)


def _forward_bwd(grad_ll, x, pi, A, B, parent, order, mask=None):
    found = reference.gradients(grad_ll, x, pi, A, B, parent, order, mask)
    return tuple(g.to(pi.dtype) for g in found)


def _flows(*arguments):
    return tuple(value.to(arguments[1].dtype) for value in reference.flows(*arguments))


def _em_update(theta, counts, pseudo_count, step):
    theta.copy_(reference.em_update(theta, counts, pseudo_count, step))


install_plain("pc_forward", _forward)
install_plain("pc_forward_fwd", _forward)
install_plain("pc_forward_bwd", _forward_bwd)
install_plain("pc_flows", _flows)
install_plain("pc_em_update", _em_update)
for _name in ("conditional_cdf", "intervals", "encode", "decode"):
    install_plain(f"pc_{_name}")
for _name in ("rans_encode", "rans_decode", "rans_decode_step"):
    install_plain(_name)

"""What runs the lmul operators where the compiled kernels do not."""

from nnkernels._backend import install
from nnkernels.lmul import reference

install(
    "lmul_mul",
    reference=reference.mul,
    reference_grad=reference.mul_grad,
    cuda=True,
    triton="nnkernels.triton_kernels.lmul:mul",
)
for _name, _reference, _reference_grad in (
    ("lmul_matmul", reference.matmul, reference.matmul_grad),
    ("lmul_bmm", reference.bmm, reference.matmul_grad),
    ("lmul_linear", reference.linear, reference.linear_grad),
    ("lmul_attention", reference.attention, reference.attention_grad),
):
    install(_name, reference=_reference, reference_grad=_reference_grad)

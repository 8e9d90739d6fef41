"""Products of signals on the sphere, exact and equivariant.

product, cross            Gaunt product of two signals, and the antisymmetric one
nfold, power              products of up to six signals
paths, path_list          a weight for every coupling of degrees
vector_product            products of vector signals
to_grid, from_grid        values at points of the sphere, and back
grid, coefficients, vsh_to_xyz, xyz_to_vsh      quadrature rules and tables
GauntTensorProduct, GauntPower                  modules
reference                 the same in plain PyTorch, float64 and slow

See nnkernels.gaunt.ops for bases and layouts.
"""

from nnkernels.gaunt import autograd, backends, reference, register  # noqa: F401
from nnkernels.gaunt.module import GauntPower, GauntTensorProduct
from nnkernels.gaunt.ops import (
    cross,
    from_grid,
    nfold,
    path_list,
    paths,
    power,
    product,
    to_grid,
    vector_product,
)
from nnkernels.gaunt.tables import Grid, coefficients, grid, vsh_to_xyz, xyz_to_vsh

__all__ = [
    "GauntPower",
    "GauntTensorProduct",
    "Grid",
    "coefficients",
    "cross",
    "from_grid",
    "grid",
    "nfold",
    "path_list",
    "paths",
    "power",
    "product",
    "reference",
    "to_grid",
    "vector_product",
    "vsh_to_xyz",
    "xyz_to_vsh",
]

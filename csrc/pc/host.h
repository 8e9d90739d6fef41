// What nnkernels._host offers of pc: the container, CRC-32C and rANS on NumPy arrays.
#pragma once

#include <pybind11/pybind11.h>

namespace nnkernels::pc {

void add_to_host(pybind11::module_& module);

}  // namespace nnkernels::pc

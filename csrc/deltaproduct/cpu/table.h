// The kernels of one instruction set, gathered; included last by the file that chose Vec.
#pragma once

#include "deltaproduct/cpu/pass.h"
#include "deltaproduct/cpu/products.h"
#include "deltaproduct/cpu/rows.h"

namespace nnkernels::deltaproduct {
namespace {

template <class Real>
constexpr Kernels<Real> kKernels = {
    .panel = kPanel<Real>,
    .load = load<Real>,
    .store = store<Real>,
    .load_panels = load_panels<Real>,
    .store_panels = store_panels<Real>,
    .dot = dot<Real>,
    .scale_rows = scale_rows<Real>,
    .add = add<Real>,
    .group_products = group_products<Real>,
    .run = run<Real>,
    .multiply = multiply<Real>,
    .substitute = substitute<Real>,
    .transpose = transpose<Real>,
};

}  // namespace
}  // namespace nnkernels::deltaproduct

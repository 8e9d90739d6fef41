// What the generated kernels of one degree stand on.
#pragma once

#include <iterator>

#include "gaunt/cpu/engine.h"

namespace nnkernels::gaunt {
namespace {

// Writes a sum to `at`, or adds it.
template <class V>
NNK_VEC void put(Store store, typename V::Value x, typename V::T* at) {
  if (store == Store::add) x = V::add(V::load(at), x);
  if (store == Store::subtract) x = V::sub(V::load(at), x);
  V::store(at, x);
}

}  // namespace
}  // namespace nnkernels::gaunt

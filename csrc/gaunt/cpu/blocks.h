// Moving blocks of samples between memory and buffers, and arithmetic coefficient by coefficient.
// Included by the file that chose the vectors.
#pragma once

#include <algorithm>

#include "gaunt/cpu/engine.h"

namespace nnkernels::gaunt {
namespace {

template <class V, Type type>
void load_block_as(const BlockIo& io, typename V::T* x) {
  using E = Element<type>;
  const E* lane[V::lanes];
  for (int i = 0; i < V::lanes; ++i) {
    lane[i] = reinterpret_cast<const E*>(io.even ? io.first + i * io.stride : io.lane[i]);
  }
  int64_t c = 0;
  switch (io.pattern) {
    case Pattern::rows:
      // The last piece may overlap the one before it.
      for (; c < io.count && io.count >= V::piece; c += V::piece) {
        const int64_t at = std::min(c, io.count - V::piece);
        typename V::Value columns[V::piece];
        V::template load_columns<type>(lane, at, columns);
        for (int i = 0; i < V::piece; ++i) V::store(x + (at + i) * V::lanes, columns[i]);
      }
      break;
    case Pattern::columns:
      for (; c < io.count; ++c) {
        V::store(x + c * V::lanes, V::template load_as<type>(lane[0] + c * io.step));
      }
      break;
    case Pattern::same:
      for (; c < io.count; ++c)
        V::store(x + c * V::lanes, V::set(read<type>(lane[0] + c * io.step)));
      break;
    case Pattern::scattered: break;
  }
  for (; c < io.count; ++c) {
    for (int i = 0; i < V::lanes; ++i) x[c * V::lanes + i] = read<type>(lane[i] + c * io.step);
  }
}

template <class V, Type type>
void store_block_as(const BlockIo& io, const typename V::T* x) {
  using E = Element<type>;
  E* lane[V::lanes];
  for (int i = 0; i < V::lanes; ++i) {
    lane[i] = reinterpret_cast<E*>(io.even ? io.first + i * io.stride : io.lane[i]);
  }
  int64_t c = 0;
  if (io.pattern == Pattern::rows) {
    for (; c < io.count && io.count >= V::piece; c += V::piece) {
      const int64_t at = std::min(c, io.count - V::piece);
      typename V::Value columns[V::piece];
      for (int i = 0; i < V::piece; ++i) columns[i] = V::load(x + (at + i) * V::lanes);
      V::template store_columns<type>(lane, at, columns);
    }
  } else if (io.pattern == Pattern::columns) {
    for (; c < io.count; ++c) {
      V::template store_as<type>(lane[0] + c * io.step, V::load(x + c * V::lanes));
    }
  }
  for (; c < io.count; ++c) {
    for (int i = 0; i < V::lanes; ++i) {
      if (lane[i] != nullptr) write<type>(lane[i] + c * io.step, x[c * V::lanes + i]);
    }
  }
}

template <class V>
void load_block(const BlockIo& io, void* x) {
  auto* to = static_cast<typename V::T*>(x);
  if constexpr (sizeof(typename V::T) == 8) {
    load_block_as<V, Type::float64>(io, to);
  } else if (io.type == Type::float32) {
    load_block_as<V, Type::float32>(io, to);
  } else if (io.type == Type::bfloat16) {
    load_block_as<V, Type::bfloat16>(io, to);
  } else {
    load_block_as<V, Type::float16>(io, to);
  }
}

template <class V>
void store_block(const BlockIo& io, const void* x) {
  const auto* from = static_cast<const typename V::T*>(x);
  if constexpr (sizeof(typename V::T) == 8) {
    store_block_as<V, Type::float64>(io, from);
  } else if (io.type == Type::float32) {
    store_block_as<V, Type::float32>(io, from);
  } else if (io.type == Type::bfloat16) {
    store_block_as<V, Type::bfloat16>(io, from);
  } else {
    store_block_as<V, Type::float16>(io, from);
  }
}

template <class V>
void weigh(int64_t L, const void* x, const void* w, void* out, bool add) {
  using T = typename V::T;
  const T* from = static_cast<const T*>(x);
  T* to = static_cast<T*>(out);
  for (int64_t l = 0; l <= L; ++l) {
    const auto weight = V::load(static_cast<const T*>(w) + l * V::lanes);
    for (int64_t a = l * l; a < (l + 1) * (l + 1); ++a) {
      const auto value = V::load(from + a * V::lanes);
      V::store(to + a * V::lanes,
               add ? V::fma(weight, value, V::load(to + a * V::lanes)) : V::mul(weight, value));
    }
  }
}

template <class V>
void dot(int64_t L, const void* x, const void* y, void* out, bool add) {
  using T = typename V::T;
  const T* f = static_cast<const T*>(x);
  const T* g = static_cast<const T*>(y);
  T* to = static_cast<T*>(out);
  for (int64_t l = 0; l <= L; ++l) {
    auto sum = add ? V::load(to + l * V::lanes) : V::set(0);
    for (int64_t a = l * l; a < (l + 1) * (l + 1); ++a) {
      sum = V::fma(V::load(f + a * V::lanes), V::load(g + a * V::lanes), sum);
    }
    V::store(to + l * V::lanes, sum);
  }
}

template <class V>
void scale(int64_t count, double factor, void* x) {
  using T = typename V::T;
  T* values = static_cast<T*>(x);
  const auto f = V::set(static_cast<T>(factor));
  for (int64_t a = 0; a < count; ++a) {
    V::store(values + a * V::lanes, V::mul(f, V::load(values + a * V::lanes)));
  }
}

template <class V>
void contract(const Term* terms, int64_t count, const void* x, const void* y, const void* w,
              void* out) {
  using T = typename V::T;
  const T* f = static_cast<const T*>(x);
  const T* g = static_cast<const T*>(y);
  const T* weights = static_cast<const T*>(w);
  T* to = static_cast<T*>(out);
  for (int64_t i = 0; i < count; ++i) {
    const Term& term = terms[i];
    const auto weight =
        V::mul(V::set(static_cast<T>(term.value)), V::load(weights + term.path * V::lanes));
    const auto product = V::mul(V::load(f + term.a * V::lanes), V::load(g + term.b * V::lanes));
    T* at = to + term.c * V::lanes;
    V::store(at, V::fma(weight, product, V::load(at)));
  }
}

template <class V>
void transform(int64_t rows, int64_t columns, const void* matrix, const void* x, void* out) {
  using T = typename V::T;
  constexpr int64_t kRows = 4;
  const T* from = static_cast<const T*>(x);
  for (int64_t r = 0; r < rows; r += kRows) {
    const T* row[kRows];
    for (int64_t i = 0; i < kRows; ++i) {
      row[i] = static_cast<const T*>(matrix) + (r + i < rows ? r + i : r) * columns;
    }
    typename V::Value sums[kRows];
    for (auto& sum : sums) sum = V::set(0);
    for (int64_t c = 0; c < columns; ++c) {
      const auto value = V::load(from + c * V::lanes);
      for (int64_t i = 0; i < kRows; ++i) sums[i] = V::fma(V::set(row[i][c]), value, sums[i]);
    }
    for (int64_t i = 0; i < kRows && r + i < rows; ++i) {
      V::store(static_cast<T*>(out) + (r + i) * V::lanes, sums[i]);
    }
  }
}

}  // namespace
}  // namespace nnkernels::gaunt

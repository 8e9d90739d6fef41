// Vectors of outputs, and how they are written as each type. Included by one file per instruction
// set.
#pragma once

#include <type_traits>

#include "binary/cpu/engine.h"

#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace nnkernels::binary {
namespace {

constexpr int64_t kLanes = Vec::word_lanes;
typedef int32_t Words __attribute__((vector_size(4 * kLanes)));
typedef float Floats __attribute__((vector_size(4 * kLanes)));

// The first n items at p (all lanes, if there are more), then zeros.
template <class V>
V load_some(const void* p, int64_t n) {
  V v = {};
  if (n >= kLanes) {
    memcpy(&v, p, sizeof v);
  } else {
    memcpy(&v, p, static_cast<size_t>(n) * 4);
  }
  return v;
}

// ---- the types of an output
template <Type type>
using Item = std::conditional_t<type_size(type) == 2, uint16_t, uint32_t>;
constexpr bool is_float(Type type) {
  return type == Type::float32 || type == Type::bfloat16 || type == Type::float16;
}
// What is computed with.
template <Type type>
using Value = std::conditional_t<is_float(type), Floats, Words>;

template <Type type>
Value<type> value_of(Words dots) {
  return __builtin_convertvector(dots, Value<type>);
}

// Rounds once and writes all lanes.
template <Type type>
void put(Value<type> v, Item<type>* out) {
  if constexpr (type_size(type) == 4) {
    memcpy(out, &v, sizeof v);
  } else if constexpr (type == Type::float16) {
#if defined(__F16C__)
    __m256 part;
    for (int i = 0; i < kLanes; i += 8) {
      memcpy(&part, reinterpret_cast<float*>(&v) + i, sizeof part);
      _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i),
                       _mm256_cvtps_ph(part, _MM_FROUND_TO_NEAREST_INT));
    }
#else
    for (int i = 0; i < kLanes; ++i) out[i] = word_to_float16(word_of(v[i]));
#endif
  } else {
    for (int i = 0; i < kLanes; ++i) {
      if constexpr (type == Type::bfloat16) out[i] = word_to_bfloat16(word_of(v[i]));
      if constexpr (type == Type::int16) out[i] = static_cast<uint16_t>(v[i]);
    }
  }
}

// Calls f.template operator()<type>().
template <class F>
void with_type(Type type, F&& f) {
  switch (type) {
    case Type::float32: return f.template operator()<Type::float32>();
    case Type::bfloat16: return f.template operator()<Type::bfloat16>();
    case Type::float16: return f.template operator()<Type::float16>();
    case Type::int16: return f.template operator()<Type::int16>();
    default: return f.template operator()<Type::int32>();
  }
}

}  // namespace
}  // namespace nnkernels::binary

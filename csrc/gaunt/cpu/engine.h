// What the kernels of one instruction set offer, and the storage types they read and write.
//
// A block of samples is `lanes` samples, one to a vector lane; every buffer is an array of vectors.
// Coefficients are [(L+1)^2]; a ring is [cos 0..L, sin 1..L]; a grid is an array of rings, north
// and south of pair 0, of pair 1, ... (tables.h).
#pragma once

#include <type_traits>

#include "common/convert.h"
#include "gaunt/gaunt.h"

#define NNK_VEC inline __attribute__((always_inline))

namespace nnkernels::gaunt {

template <Type type>
using Element = std::conditional_t<type == Type::float64, double,
                                   std::conditional_t<type == Type::float32, float, uint16_t>>;

constexpr int kMaxLanes = 16;
constexpr int64_t ring_size(int64_t L) { return 2 * L + 1; }

// How the samples of a block lie: coefficients side by side, samples side by side, one and the same
// sample, anything.
enum class Pattern : int { rows, columns, same, scattered };

// Coefficients [0, count) of a block in memory.
struct BlockIo {
  Type type = Type::float32;
  Pattern pattern = Pattern::rows;
  int64_t count = 0;
  int64_t step = 1;  // elements from coefficient to coefficient
  // Coefficient 0 of sample i is at first + i * stride (in bytes) or, where it is not even,
  // lane[i].
  bool even = true;
  char* first = nullptr;
  int64_t stride = 0;
  char* lane[kMaxLanes] = {};
};

// Pairs [first, first + count) of `pairs`; grids begin at pair `first`.
struct PairRange {
  int64_t first = 0, count = 0, pairs = 0;
};

enum class Store : int { set, add, subtract };

struct ConvArgs {
  int64_t a = 0, b = 0, c = 0;  // degrees of f, g and h <= a + b
  const void* f = nullptr;
  const void* g = nullptr;
  void* h = nullptr;
  int64_t rings = 0;
  Store store = Store::set;
};

struct Term {
  int32_t a, b, c, path;
  double value;
};

// `void*` are buffers of vectors, aligned to a vector, or tables of the vectors' number type.
//
// grid = rings of x; turn: of its derivative by alpha, from the table of m N.
using Synthesis = void (*)(int64_t L, const PairRange& pairs, const void* table, bool turn,
                           const void* x, void* grid);
// x (+)= projection of the grid; the first range sets. `mirror` is the sign of southern rings.
using Analysis = void (*)(int64_t L, const PairRange& pairs, const void* table, double mirror,
                          const void* grid, void* x);
// h (+)= f * g, ring by ring, frequencies above c dropped.
using Convolve = void (*)(const ConvArgs& args);

// out (+)= sum over a and b of K_abc x_a y_b, with every degree's coefficients in one term list;
// the table has a constant for each group of terms.
using Direct = void (*)(const void* table, const void* x, const void* y, void* out, bool add);
// Terms of degrees (l1, l2, l3) whose coefficient is +-value.
struct Group {
  int64_t l1, l2, l3;
  double value;
};
struct DirectKernel {
  Direct run = nullptr;
  const Group* groups = nullptr;
  int64_t count = 0;
};

// What is generated for one degree L: rings of degree L and, where L is not the half of another
// such degree, of 2L; products of degrees (L, L) -> L, (L, L) -> 2L, (L, 2L) -> L, on rings and,
// for the lowest degrees, without rings.
struct DegreeKernels {
  Synthesis synthesis;
  Analysis analysis;
  Synthesis synthesis_twice;
  Analysis analysis_twice;
  Convolve convolve_same, convolve_up, convolve_down;
  DirectKernel direct_same, direct_up, direct_down;
};
constexpr int64_t kDegrees = 8;

// Kernels for vectors of one number type.
struct Kernels {
  int64_t lanes, vector_bytes;
  void (*load)(const BlockIo& io, void* x);
  void (*store)(const BlockIo& io, const void* x);
  // For any degree; those of degrees[L - 1] are faster, nullptr: there are none.
  Synthesis synthesis;
  Analysis analysis;
  Convolve convolve;
  const DegreeKernels* const* degrees;
  // out (+)= w[l] * x[l, m], out[l] (+)= sum_m x[l, m] * y[l, m], out = factor * x
  void (*weigh)(int64_t L, const void* x, const void* w, void* out, bool add);
  void (*dot)(int64_t L, const void* x, const void* y, void* out, bool add);
  void (*scale)(int64_t count, double factor, void* x);
  // out[c] (+)= sum over terms of value * w[path] * x[a] * y[b].
  void (*contract)(const Term* terms, int64_t count, const void* x, const void* y, const void* w,
                   void* out);
  // out = matrix [rows, columns] * x
  void (*transform)(int64_t rows, int64_t columns, const void* matrix, const void* x, void* out);
};

// The kernels in use for a storage type.
const Kernels& kernels_for(Type type);
// The fastest kernels for these degrees; a <= b.
Synthesis synthesis_for(const Kernels& kernels, int64_t L);
Analysis analysis_for(const Kernels& kernels, int64_t L);
Convolve convolve_for(const Kernels& kernels, int64_t a, int64_t b, int64_t c);
// nullptr where rings are the faster way.
const DirectKernel* direct_for(const Kernels& kernels, int64_t a, int64_t b, int64_t c);

// Elements as numbers, one at a time.
template <Type type>
static NNK_VEC Element<type == Type::float64 ? Type::float64 : Type::float32> read(
    const Element<type>* p) {
  if constexpr (type == Type::bfloat16)
    return float_of(bfloat16_to_word(*p));
  else if constexpr (type == Type::float16)
    return float_of(float16_to_word(*p));
  else
    return *p;
}
template <Type type, class T>
static NNK_VEC void write(Element<type>* p, T x) {
  if constexpr (type == Type::bfloat16)
    *p = word_to_bfloat16(word_of(x));
  else if constexpr (type == Type::float16)
    *p = word_to_float16(word_of(x));
  else
    *p = x;
}

}  // namespace nnkernels::gaunt

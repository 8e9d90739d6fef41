// The vector types of the CUDA headers, for machines without them.
#pragma once

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

#define NNK_VECTOR_TYPES(scalar, name)                                 \
  struct alignas(2 * sizeof(scalar)) name##2 { scalar x, y; };         \
  struct alignas(4 * sizeof(scalar)) name##4 { scalar x, y, z, w; };   \
  inline name##2 make_##name##2(scalar x, scalar y) { return {x, y}; } \
  inline name##4 make_##name##4(scalar x, scalar y, scalar z, scalar w) { return {x, y, z, w}; }
NNK_VECTOR_TYPES(int, int)
NNK_VECTOR_TYPES(unsigned, uint)
NNK_VECTOR_TYPES(float, float)
#undef NNK_VECTOR_TYPES

// Direct convolution on AMX. Output channels are the rows of a product and positions of the image
// its columns, so that planes of outputs are written as they come.
#include <immintrin.h>

#include "binary/cpu/amx_tiles.h"
//
#include "binary/cpu/vec_avx512.h"
//
#include "binary/cpu/values.h"

namespace nnkernels::binary {
namespace {

constexpr int64_t kTile = 16;

// dots[channel][position] of kMatrixRows channels and positions.
void multiply_strip(const DirectConv& conv, const int8_t* image, int32_t* dots) {
  const int8_t *upper = conv.weights, *lower = upper + conv.steps * kMatrixTile;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t step = 0; step < conv.steps; ++step) {
    const int8_t* right = image + conv.offsets[step];
    _tile_loadd(4, upper + step * kMatrixTile, 64);
    _tile_loadd(5, lower + step * kMatrixTile, 64);
    _tile_loadd(6, right, conv.pitch);
    _tile_loadd(7, right + kTile * 4, conv.pitch);
    _tile_dpbssd(0, 4, 6);
    _tile_dpbssd(1, 4, 7);
    _tile_dpbssd(2, 5, 6);
    _tile_dpbssd(3, 5, 7);
  }
  constexpr int64_t row = kMatrixRows * 4;
  _tile_stored(0, dots, row);
  _tile_stored(1, dots + kTile, row);
  _tile_stored(2, dots + kTile * kMatrixRows, row);
  _tile_stored(3, dots + kTile * kMatrixRows + kTile, row);
}

// Writes the values whose bits are set in `wanted`, one after the other.
template <Type type>
void put_wanted(Value<type> v, __mmask16 wanted, Item<type>* out) {
  const auto compressed = (Value<type>)_mm512_maskz_compress_epi32(wanted, (__m512i)v);
  const uint32_t first = (1u << __builtin_popcount(wanted)) - 1;
  if constexpr (type_size(type) == 4) {
    _mm512_mask_storeu_epi32(out, static_cast<__mmask16>(first), (__m512i)compressed);
  } else {
    alignas(32) Item<type> narrow[kTile];
    put<type>(compressed, narrow);
    _mm256_mask_storeu_epi16(out, static_cast<__mmask16>(first),
                             _mm256_load_si256(reinterpret_cast<const __m256i*>(narrow)));
  }
}

template <Type type>
void store_strip(const DirectConv& conv, const Strip& strip, const int32_t* dots) {
  const Epilogue e = conv.epilogue;
  const auto low = static_cast<__mmask16>(strip.wanted), high = __mmask16(strip.wanted >> kTile);
  auto* out = static_cast<Item<type>*>(e.out) + strip.first;
  for (int64_t o = 0; o < conv.channels; ++o, dots += kMatrixRows, out += conv.plane) {
    Value<type> y[2];
    for (int half = 0; half < 2; ++half) {
      y[half] = value_of<type>(load_some<Words>(dots + half * kTile, kTile));
      if constexpr (is_float(type)) {
        if (e.column_scale != nullptr) y[half] *= e.column_scale[o];
        if (e.bias != nullptr) y[half] += e.bias[o];
      }
    }
    put_wanted<type>(y[0], low, out);
    put_wanted<type>(y[1], high, out + __builtin_popcount(low));
  }
}

}  // namespace

void convolve_strips(const DirectConv& conv, int64_t first_strip, int64_t last_strip) {
  configure_tiles();
  alignas(64) int32_t dots[kMatrixRows * kMatrixRows];
  with_type(conv.epilogue.type, [&]<Type type>() {
    for (int64_t i = first_strip; i < last_strip; ++i) {
      multiply_strip(conv, conv.image + i * kMatrixRows * 4, dots);
      store_strip<type>(conv, conv.strips[i], dots);
    }
  });
  _tile_release();
}

}  // namespace nnkernels::binary

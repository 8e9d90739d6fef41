#include <algorithm>
#include <vector>

#include "gaunt/cpu/program.h"

namespace nnkernels::gaunt {
namespace {

// Samples added up one after the other; longer sums are sums of such sums.
constexpr int64_t kChunk = 512;

struct Dimension {
  int64_t size, from, to;  // strides in `values` and in the result
};

int64_t product_of(const std::vector<Dimension>& dimensions) {
  int64_t count = 1;
  for (const Dimension& d : dimensions) count *= d.size;
  return count;
}

int64_t offset_of(const std::vector<Dimension>& dimensions, int64_t index,
                  int64_t Dimension::* stride) {
  int64_t offset = 0;
  for (size_t d = dimensions.size(); d-- > 0;) {
    offset += index % dimensions[d].size * (dimensions[d].*stride);
    index /= dimensions[d].size;
  }
  return offset;
}

void put(Type type, void* data, int64_t index, double value) {
  switch (type) {
    case Type::float64: static_cast<double*>(data)[index] = value; break;
    case Type::float32: static_cast<float*>(data)[index] = static_cast<float>(value); break;
    case Type::bfloat16:
      static_cast<uint16_t*>(data)[index] = word_to_bfloat16(word_of(static_cast<float>(value)));
      break;
    case Type::float16:
      static_cast<uint16_t*>(data)[index] = word_to_float16(word_of(static_cast<float>(value)));
      break;
  }
}

template <class T>
void reduce_as(const Samples& samples, const Array& array, int64_t count, const T* values,
               const Parallel& parallel) {
  std::vector<Dimension> kept, summed;
  int64_t stride = count;
  for (int d = samples.ndim - 1; d >= 0; --d) {
    const bool sum = array.strides[d] == 0 && samples.sizes[d] != 1;
    (sum ? summed : kept)
        .insert((sum ? summed : kept).begin(), {samples.sizes[d], stride, array.strides[d]});
    stride *= samples.sizes[d];
  }
  const int64_t results = product_of(kept), length = product_of(summed);
  const int64_t chunks = std::max<int64_t>(1, (length + kChunk - 1) / kChunk);
  std::vector<double> partial(static_cast<size_t>(results * chunks * count));
  parallel_for(parallel, results * chunks, std::max<int64_t>(1, 64 / count),
               [&](int64_t begin, int64_t end) {
                 for (int64_t job = begin; job < end; ++job) {
                   double* sum = partial.data() + job * count;
                   const T* from = values + offset_of(kept, job / chunks, &Dimension::from);
                   const int64_t first = job % chunks * kChunk;
                   for (int64_t r = first; r < std::min(first + kChunk, length); ++r) {
                     const T* row = from + offset_of(summed, r, &Dimension::from);
                     for (int64_t a = 0; a < count; ++a) sum[a] += static_cast<double>(row[a]);
                   }
                 }
               });
  parallel_for(parallel, results, 64, [&](int64_t begin, int64_t end) {
    for (int64_t job = begin; job < end; ++job) {
      const int64_t to = offset_of(kept, job, &Dimension::to);
      for (int64_t a = 0; a < count; ++a) {
        double sum = 0;
        for (int64_t c = 0; c < chunks; ++c) sum += partial[(job * chunks + c) * count + a];
        put(samples.type, array.data, to + a * array.step, sum);
      }
    }
  });
}

}  // namespace

void reduce(const Samples& samples, const Array& array, int64_t count, const void* values,
            const Parallel& parallel) {
  if (samples.type == Type::float64) {
    reduce_as(samples, array, count, static_cast<const double*>(values), parallel);
  } else {
    reduce_as(samples, array, count, static_cast<const float*>(values), parallel);
  }
}

}  // namespace nnkernels::gaunt

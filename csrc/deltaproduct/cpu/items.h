// Work that threads take in turn, and where the rows of a tensor are. For the drivers.
#pragma once

#include <atomic>

#include "deltaproduct/cpu/engine.h"
#include "deltaproduct/deltaproduct_math.h"

namespace nnkernels::deltaproduct {

// The row's first number.
inline const void* row_at(const Rows& rows, int64_t batch, int64_t row, int64_t head) {
  const int64_t at = batch * rows.batch_stride + row * rows.row_stride + head * rows.head_stride;
  return static_cast<const char*>(rows.data) + bytes_of(rows.type, at);
}

inline void* element_at(const Output& output, int64_t index) {
  return static_cast<char*>(output.data) + bytes_of(output.type, index);
}

inline void* state_at(const States& states, int64_t sequence, int64_t head, int64_t row,
                      int64_t column) {
  const int64_t at = sequence * states.sequence_stride + head * states.head_stride +
                     row * states.row_stride + column;
  return static_cast<char*>(states.data) + bytes_of(states.type, at);
}

// Asks for rows that will be read or written some thousand cycles later.
template <int write>
void prefetch_rows(const void* data, int64_t row_bytes, int64_t rows, int64_t bytes) {
  const char* row = static_cast<const char*>(data);
  for (int64_t r = 0; r < rows; ++r, row += row_bytes) {
    for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(row + at, write);
  }
}

// Calls worker(i) once for every i < count, on all threads: each makes one Worker, which takes the
// next item whenever it is free.
template <class MakeWorker>
void for_each_item(const Parallel& parallel, int64_t count, MakeWorker&& make_worker) {
  const int64_t threads = parallel.threads < count ? parallel.threads : count;
  std::atomic<int64_t> next{0};
  parallel_for(parallel, threads, 1, [&](int64_t, int64_t) {
    auto&& worker = make_worker();
    for (int64_t item = next++; item < count; item = next++) worker(item);
  });
}

}  // namespace nnkernels::deltaproduct

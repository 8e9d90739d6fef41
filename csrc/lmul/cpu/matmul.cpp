#include <stdexcept>

#include "lmul/cpu/product.h"

namespace nnkernels::lmul {

void matmul(const MatmulArgs& args, const Parallel& parallel) {
  const bool bits = args.options.mode == Mode::bits;
  if (args.algo == Algo::gemm2 && bits) {
    throw std::runtime_error("algo='gemm2' computes mode='formula' only");
  }
  if (args.algo == Algo::word && !bits) {
    throw std::runtime_error("algo='word' computes mode='bits' only");
  }
  if (args.b_packed != nullptr) {
    const PackedMatrix packed = packed_matrix(args.b_packed);
    if (packed.N != args.N || packed.K != args.K) {
      throw std::runtime_error("w_packed was made from a weight of another shape");
    }
  }
  const Plan plan = make_plan(args.options, args.algo);
  run_product(plan,
              {args.batch, args.M, args.N, args.K, args.a, args.b, args.out, args.b_packed,
               args.bias, args.bias_dtype},
              parallel);
}

}  // namespace nnkernels::lmul

// The deltaproduct scan, its gradient and the step against plain loops in double, on every
// instruction set of this machine.
#include "testing/check.h"
#include "testing/deltaproduct_reference.h"
#include "testing/machine.h"

namespace nnkernels::deltaproduct {
namespace {

struct Results {
  Tensor o, final, checkpoints, dq, dk, dv, dg, dbeta, dinitial;
};

Results run(const Call& call, Inputs& in, int thread_count) {
  Results out;
  const auto count = [](const Tensor& tensor) {
    return static_cast<int64_t>(tensor.numbers.size());
  };
  const Type own = call.type == Type::float64 ? Type::float64 : Type::float32;
  ScanArgs args = scan_args(call, in);
  args.o = {out.o.room(call.type, count(in.grad_o)), call.type};
  out.final.room(own, count(in.initial));
  args.final = states_of(out.final, call);
  args.checkpoints =
      out.checkpoints.room(own, args.sequences.checkpoints() * call.H * call.K * call.V);
  scan(args, threads(thread_count));

  ScanGradArgs grad;
  grad.forward = args;
  grad.grad_o = rows_of(in.grad_o, call.T, call.H, call.V);
  grad.grad_final = states_of(in.grad_final, call);
  grad.dq = {out.dq.room(call.type, count(in.q)), call.type};
  grad.dk = {out.dk.room(call.type, count(in.k)), call.type};
  grad.dv = {out.dv.room(call.type, count(in.v)), call.type};
  grad.dbeta = {out.dbeta.room(call.type, count(in.beta)), call.type};
  if (count(in.g) > 0) grad.dg = {out.dg.room(own, count(in.g)), own};
  grad.dinitial = {out.dinitial.room(own, count(in.initial)), own};
  scan_grad(grad, threads(thread_count));
  for (Tensor* tensor : {&out.o, &out.final, &out.checkpoints, &out.dq, &out.dk, &out.dv, &out.dg,
                         &out.dbeta, &out.dinitial}) {
    tensor->read();
  }
  return out;
}

struct Tolerance {
  double o, gradients, numbers;  // of o and states; of q, k, v, initial; of beta and g
};

Tolerance tolerance(Type type) {
  switch (type) {
    case Type::float64: return {1e-12, 1e-11, 1e-11};
    case Type::float32: return {5e-6, 2e-5, 5e-5};
    case Type::bfloat16: return {8e-3, 1.5e-2, 2e-2};
    default: return {5e-3, 8e-3, 2e-2};
  }
}

std::string describe(const Call& call, const std::string& isa) {
  std::string text = isa;
  for (const int64_t x : {call.B, call.T, call.Hk, call.H, call.K, call.V, call.n}) {
    text += " " + std::to_string(x);
  }
  return text + " type " + std::to_string(static_cast<int>(call.type));
}

void compare(const Call& call, unsigned seed) {
  Inputs in = random_inputs(call, seed);
  const Expected expected = Reference(call, in)();
  const Tolerance allowed = tolerance(call.type);
  each_isa([&](const std::string& isa) {
    const Results out = run(call, in, 1);
    const auto check = [&](const char* name, const Tensor& x, const Numbers& of, double limit) {
      const double error = error_of(x.numbers, of);
      if (error <= limit) return;
      testing::report_failure(
          __FILE__, __LINE__,
          describe(call, isa) + ": " + name + " is off by " + std::to_string(error));
    };
    check("o", out.o, expected.o, allowed.o);
    check("final", out.final, expected.final, allowed.o);
    check("dq", out.dq, expected.dq, allowed.gradients);
    check("dk", out.dk, expected.dk, allowed.gradients);
    check("dv", out.dv, expected.dv, allowed.gradients);
    check("dinitial", out.dinitial, expected.dinitial, allowed.gradients);
    check("dg", out.dg, expected.dg, allowed.numbers);
    check("dbeta", out.dbeta, expected.dbeta, allowed.numbers);
  });
}

constexpr Type kTypes[] = {Type::float64, Type::float32, Type::bfloat16, Type::float16};

TEST(sizes) {
  const Call calls[] = {
      {1, 1, 1, 1, 4, 4, 1},    {2, 15, 1, 1, 1, 3, 1},    {1, 16, 1, 2, 16, 16, 2},
      {1, 17, 2, 4, 60, 33, 3}, {1, 65, 1, 1, 16, 4, 4},   {1, 63, 1, 1, 5, 60, 5},
      {1, 130, 1, 3, 7, 9, 1},  {1, 3, 1, 1, 100, 128, 2}, {1, 20, 1, 1, 33, 1, 7},
  };
  unsigned seed = 0;
  for (Call call : calls) {
    for (const Type type : kTypes) {
      call.type = type;
      call.beta = type == Type::float32 || type == Type::float64 ? 2 : 1;
      // The norm of one number has no gradient to speak of.
      call.l2norm = ++seed % 2 == 0 && call.K > 1;
      call.gates = seed % 3 == 0 ? Gates::none : Gates::mild;
      compare(call, seed);
    }
  }
}

TEST(gates_that_reset) {
  Call call{1, 100, 1, 2, 12, 20, 2};
  call.gates = Gates::with_resets;
  compare(call, 31);
  Inputs in = random_inputs(call, 31);
  each_isa([&](const std::string&) {
    const Results out = run(call, in, 1);
    for (size_t i = 0; i < in.g.numbers.size(); ++i) {
      if (std::isinf(in.g.numbers[i])) CHECK_EQ(out.dg.numbers[i], 0.0);
    }
  });
  call.n = 1;
  compare(call, 32);
}

TEST(packed_sequences) {
  Call call{1, 150, 2, 2, 8, 24, 2};
  call.bounds = {0, 0, 3, 70, 70, 71, 140};
  compare(call, 41);
  call.n = 3;
  call.gates = Gates::with_resets;
  compare(call, 42);
}

// Equal keys and beta = 2 all along: where a power series would fail.
TEST(equal_keys) {
  Call call{1, 128, 1, 1, 16, 16, 3};
  call.gates = Gates::none;
  Inputs in = random_inputs(call, 51);
  Numbers k = in.k.numbers;
  double norm = 0;
  for (int64_t i = 0; i < call.K; ++i)
    norm += k[static_cast<size_t>(i)] * k[static_cast<size_t>(i)];
  for (size_t i = 0; i < k.size(); ++i) {
    k[i] = in.k.numbers[i % static_cast<size_t>(call.K)] / std::sqrt(norm);
  }
  in.k.set(call.type, k);
  in.beta.set(call.type, Numbers(in.beta.numbers.size(), 2.0));
  const Expected expected = Reference(call, in)();
  each_isa([&](const std::string&) {
    const Results out = run(call, in, 1);
    CHECK(error_of(out.o.numbers, expected.o) < 2e-5);
    CHECK(error_of(out.dk.numbers, expected.dk) < 1e-4);
    CHECK(error_of(out.dbeta.numbers, expected.dbeta) < 1e-4);
  });
}

TEST(threads_do_not_change_a_bit) {
  Call call{1, 90, 1, 1, 24, 100, 2};
  Inputs in = random_inputs(call, 61);
  each_isa([&](const std::string&) {
    const Results one = run(call, in, 1), many = run(call, in, 5);
    CHECK(one.o.bytes == many.o.bytes);
    CHECK(one.final.bytes == many.final.bytes);
    CHECK(one.checkpoints.bytes == many.checkpoints.bytes);
    CHECK(one.dq.bytes == many.dq.bytes);
    CHECK(one.dk.bytes == many.dk.bytes);
    CHECK(one.dv.bytes == many.dv.bytes);
    CHECK(one.dg.bytes == many.dg.bytes);
    CHECK(one.dbeta.bytes == many.dbeta.bytes);
    CHECK(one.dinitial.bytes == many.dinitial.bytes);
  });
}

// One head's NaN leaves the bits of the others alone, in whatever order threads take the work.
TEST(nan_stays_in_its_head) {
  Call call{1, 70, 3, 3, 20, 20, 1};
  Inputs clean = random_inputs(call, 71), dirty = clean;
  const double nan = std::numeric_limits<double>::quiet_NaN();
  Numbers k = clean.k.numbers;
  k[static_cast<size_t>(call.K)] = nan;  // of head 1
  dirty.k.set(call.type, k);
  each_isa([&](const std::string&) {
    const Results a = run(call, clean, 1), b = run(call, dirty, 1);
    const auto same = [&](const Tensor& x, const Tensor& y, int64_t width) {
      for (size_t i = 0; i < x.numbers.size(); ++i) {
        const int64_t head = static_cast<int64_t>(i) / width % call.H;
        if (head != 1 && x.numbers[i] != y.numbers[i]) return false;
      }
      return true;
    };
    CHECK(same(a.o, b.o, call.V));
    CHECK(same(a.dk, b.dk, call.K));
    CHECK(same(a.dq, b.dq, call.K));
    CHECK(same(a.dg, b.dg, 1));
    CHECK(same(a.final, b.final, call.K * call.V));
    CHECK(same(a.dinitial, b.dinitial, call.K * call.V));
  });
}

// Tokens one by one, from and to a pool of states, give the scan's outputs.
TEST(steps) {
  for (const Type state_type : {Type::float32, Type::bfloat16}) {
    Call call{2, 20, 1, 2, 24, 40, 3};
    Inputs in = random_inputs(call, 81);
    const Expected expected = Reference(call, in)();
    each_isa([&](const std::string&) {
      const int64_t size = call.H * call.K * call.V;
      Numbers pool(static_cast<size_t>(4 * size), 7.0);
      const int64_t slots[] = {3, 1};
      for (int64_t b = 0; b < call.B; ++b) {
        for (int64_t i = 0; i < size; ++i) {
          pool[static_cast<size_t>(slots[b] * size + i)] =
              in.initial.numbers[static_cast<size_t>(b * size + i)];
        }
      }
      Tensor states, o;
      states.set(state_type, pool);
      o.room(call.type, static_cast<int64_t>(in.grad_o.numbers.size()));
      Tensor token;
      for (int64_t t = 0; t < call.T; ++t) {
        ScanArgs args = scan_args(call, in);
        args.sequences.T = 1;
        const auto skip = [t](Rows& rows, int64_t tokens) {
          rows.data = static_cast<const char*>(rows.data) +
                      bytes_of(rows.type, t * tokens * rows.row_stride);
        };
        skip(args.q, 1);
        skip(args.g, 1);
        skip(args.k, call.n);
        skip(args.v, call.n);
        skip(args.beta, call.n);
        args.initial = args.final = states_of(states, call);
        args.slots = slots;
        args.o = {token.room(call.type, call.B * call.H * call.V), call.type};
        scan(args, {});
        token.read();
        for (int64_t b = 0; b < call.B; ++b) {
          for (int64_t i = 0; i < call.H * call.V; ++i) {
            o.numbers[static_cast<size_t>((b * call.T + t) * call.H * call.V + i)] =
                token.numbers[static_cast<size_t>(b * call.H * call.V + i)];
          }
        }
      }
      states.read();
      CHECK(error_of(o.numbers, expected.o) < (state_type == Type::float32 ? 5e-6 : 2e-2));
      CHECK_EQ(states.numbers[0], 7.0);
      CHECK_EQ(states.numbers[static_cast<size_t>(2 * size)], 7.0);
      const auto first = states.numbers.begin() + slots[0] * size;
      const Numbers final(first, first + size);
      const Numbers wanted(expected.final.begin(), expected.final.begin() + size);
      CHECK(error_of(final, wanted) < (state_type == Type::float32 ? 5e-6 : 2e-2));
    });
  }
}

}  // namespace
}  // namespace nnkernels::deltaproduct

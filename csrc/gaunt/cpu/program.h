// A call as a list of steps that every block of samples goes through: load, synthesis, products on
// the rings, analysis, store. Derivatives of any order are such lists over the same kernels.
#pragma once

#include <vector>

#include "gaunt/cpu/engine.h"
#include "gaunt/cpu/tables.h"

namespace nnkernels::gaunt {

struct Step {
  enum class Do {
    load,
    store,
    synthesis,
    convolve,
    analysis,
    weigh,
    dot,
    scale,
    contract,
    direct,
    transform
  };

  Do what;
  int64_t L = 0;                         // degree; of convolve: of the result
  int x = -1, y = -1, w = -1, out = -1;  // buffers
  int64_t Lx = 0, Ly = 0;                // of convolve: the degrees of x and y
  int operand = -1;                      // of load and store
  const void* table = nullptr;
  const std::vector<Term>* terms = nullptr;
  double factor = 1;  // of scale; of analysis: the sign of southern rings
  bool turn = false;  // of synthesis: derivative by alpha
  Store store = Store::set;
  // of steps on rings
  Synthesis synthesis = nullptr;
  Analysis analysis = nullptr;
  Convolve convolve = nullptr;
  Direct direct = nullptr;
};

// A signal on the rings: its values, or its derivatives by theta and alpha, synthesised where first
// used. x < 0: the signal is 0.
struct Signal {
  int x = -1;
  int64_t L = 0;
  Scale scale = Scale::none;
  int value = -1, theta = -1, alpha = -1;
};

class Program {
 public:
  // On `rings` rings; 0 for programs without.
  Program(Type type, int64_t rings) : type_(type), rings_(rings), kernels_(&kernels_for(type)) {}

  // Buffers of coefficients, -1 where the result is 0. `out`: an earlier result to add to.
  int zeros(int64_t count);
  int load(const Array& array, int64_t count);
  int weigh(int64_t L, int x, int w, int out = -1);
  int dot(int64_t L, int x, int y, int out = -1);
  int contract(const std::vector<Term>& terms, int x, int y, int w, int64_t count, int out = -1);
  // matrix [rows, columns] of the arithmetic type, times x.
  int transform(int64_t rows, int64_t columns, const void* matrix, int x);
  void scale(int x, int64_t count, double factor);
  // Writes `count` coefficients: those of x, and 0 beyond them.
  void store(const Array& array, int x, int64_t count);

  // Grids of degree L. `product` of signals for kind cross is their bracket.
  int product(Kind kind, Signal& f, Signal& g, int64_t L, int out = -1);
  int multiply(int f, int64_t Lf, int g, int64_t Lg, int64_t L, int out = -1,
               Store store = Store::add);
  // The product of signals as coefficients, without rings.
  bool direct_is_faster(int64_t Lf, int64_t Lg, int64_t L) const;
  int direct(const Signal& f, const Signal& g, int64_t L, Scale scale, int out = -1);
  int synthesis(Signal& f, Flavour flavour);
  int analysis(Kind kind, int64_t L, Scale scale, int grid);

  void run(const Samples& samples, const Parallel& parallel) const;

 private:
  friend class Runner;

  struct Buffer {
    int64_t vectors;      // of coefficients
    int64_t ring_degree;  // of a grid, else -1
    bool late;            // known only after the rings
  };
  struct Operand {
    Array array;
    int64_t count;
    bool output;
  };

  int add_buffer(Buffer buffer);
  std::vector<Step>& phase(bool late) { return late ? after_ : before_; }
  bool late(int x) const { return x >= 0 && buffers_[x].late; }
  // Makes room for more coefficients.
  void widen(int x, int64_t count);

  Type type_;
  int64_t rings_;
  const Kernels* kernels_;
  std::vector<Buffer> buffers_;
  std::vector<Operand> operands_;
  std::vector<Step> before_, on_rings_, after_;
};

// Sums a gradient [samples, count] of the arithmetic type over the dimensions along which `array`
// does not move, in an order that depends on the sizes alone.
void reduce(const Samples& samples, const Array& array, int64_t count, const void* values,
            const Parallel& parallel);

}  // namespace nnkernels::gaunt

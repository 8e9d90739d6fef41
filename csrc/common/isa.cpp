#include "common/isa.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

namespace nnkernels {
namespace {

constexpr const char* kNames[] = {"scalar", "avx2", "avx512"};

Isa parse(const std::string& name, const std::string& origin) {
  const Isa detected = detected_isa();
  for (int i = 0; i < 3; ++i) {
    if (name != kNames[i]) continue;
    if (static_cast<Isa>(i) > detected) {
      throw std::invalid_argument(origin + ": this machine cannot run '" + name +
                                  "', its best instruction set is '" + isa_name(detected) + "'");
    }
    return static_cast<Isa>(i);
  }
  throw std::invalid_argument(origin + ": '" + name + "' is not one of 'scalar', 'avx2', 'avx512'");
}

Isa initial() {
  const char* name = std::getenv("NNKERNELS_CPU_ISA");
  return name && *name ? parse(name, "NNKERNELS_CPU_ISA") : detected_isa();
}

std::atomic<Isa>& active() {
  static std::atomic<Isa> isa{initial()};
  return isa;
}

}  // namespace

const char* isa_name(Isa isa) { return kNames[static_cast<int>(isa)]; }

std::vector<std::string> isa_names() {
  return {kNames, kNames + static_cast<int>(detected_isa()) + 1};
}

Isa detected_isa() {
#if defined(__x86_64__)
  static const Isa isa = [] {
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") ||
        !__builtin_cpu_supports("f16c") || !__builtin_cpu_supports("bmi2")) {
      return Isa::scalar;
    }
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    return avx512 ? Isa::avx512 : Isa::avx2;
  }();
  return isa;
#else
  return Isa::scalar;
#endif
}

Isa active_isa() { return active().load(std::memory_order_relaxed); }

void set_isa(const std::string& name) { active().store(parse(name, "set_isa")); }

}  // namespace nnkernels

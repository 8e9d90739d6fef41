// Which instruction set the CPU kernels run with: detected once, capped by NNKERNELS_CPU_ISA.
#pragma once

#include <string>
#include <vector>

namespace nnkernels {

// Ordered: a machine that has one has all before it.
//   avx2: AVX2, FMA, F16C, BMI2.    avx512: also AVX-512 F, BW, DQ, VL.
enum class Isa : int { scalar, avx2, avx512 };

const char* isa_name(Isa isa);
std::vector<std::string> isa_names();

// What this machine and its operating system can run.
Isa detected_isa();

// What the kernels use: the detected one, or a lower one asked for by NNKERNELS_CPU_ISA (read at
// the first call) or set_isa. Both throw std::invalid_argument for a name that is not known or not
// runnable here.
Isa active_isa();
void set_isa(const std::string& name);

}  // namespace nnkernels

#include "ints_portable.hpp"

namespace tenfold {
namespace {
using Wide = Simd;
}
}  // namespace tenfold

#include "arch.inl"

#if defined(TENFOLD_HAS_AVX2)
#include <cpuid.h>
#endif

namespace tenfold {

const Arch& portable_arch() {
#if defined(__aarch64__)
  static constexpr Arch arch = make_arch("NEON");
#else
  static constexpr Arch arch = make_arch("portable");
#endif
  return arch;
}

#if defined(TENFOLD_HAS_AVX2)
namespace {

bool machine_has_avx2() {
  unsigned a, b, c = 0, d;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_F16C)) return false;
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

// The instructions, and a system that saves the wide registers and the mask registers.
bool machine_has_avx512() {
  unsigned a, b, c = 0, d, low, high;
  if (!machine_has_avx2() || !__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE)) return false;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  if ((low & 0xe6) != 0xe6) return false;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(c & bit_AVX512VNNI)) return false;
  const unsigned needed = bit_AVX512F | bit_AVX512BW | bit_AVX512VL | bit_AVX512DQ;
  return (b & needed) == needed;
}

}  // namespace
#endif

const Arch* choose_arch(const char* name) {
  const bool any = name == nullptr || *name == '\0';
#if defined(TENFOLD_HAS_AVX2)
  if ((any || std::strcmp(name, "avx512") == 0) && machine_has_avx512()) return &avx512_arch();
  if ((any || std::strcmp(name, "avx2") == 0) && machine_has_avx2()) return &avx2_arch();
#endif
  if (any || std::strcmp(name, "portable") == 0) return &portable_arch();
  return nullptr;
}

}  // namespace tenfold

#include "simd_portable.hpp"

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

}  // namespace
#endif

const Arch* choose_arch(const char* name) {
  const bool any = name == nullptr || *name == '\0';
#if defined(TENFOLD_HAS_AVX2)
  if ((any || std::strcmp(name, "avx2") == 0) && machine_has_avx2()) return &avx2_arch();
#endif
  if (any || std::strcmp(name, "portable") == 0) return &portable_arch();
  return nullptr;
}

}  // namespace tenfold

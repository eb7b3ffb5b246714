#include "instruction_sets.h"

#include <cstdlib>
#include <stdexcept>

#ifdef CELLO_HAS_AMX
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace cello {
namespace {

// Tiles are a part of a process's state that Linux grants on request.
#ifdef CELLO_HAS_AMX
bool has_amx() {
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  constexpr unsigned kBfloat16 = 1u << 22, kTiles = 1u << 24;
  if ((d & kBfloat16) == 0 || (d & kTiles) == 0) return false;
#if defined(__linux__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}
#endif

std::vector<std::string> supported() {
  std::vector<std::string> names;
#ifdef CELLO_HAS_AVX512
  const bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                          __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma");
#ifdef CELLO_HAS_AVX512_BF16
  const bool has_bfloat16 = has_avx512 && __builtin_cpu_supports("avx512bf16");
#ifdef CELLO_HAS_AMX
  if (has_bfloat16 && has_amx()) names.push_back("amx");
#endif
  if (has_bfloat16) names.push_back("avx512_bf16");
#endif
  if (has_avx512) names.push_back("avx512");
#endif
#ifdef CELLO_HAS_AVX2
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) names.push_back("avx2");
#endif
  names.push_back("baseline");
  return names;
}

std::vector<std::string> chosen() {
  const std::vector<std::string> names = supported();
  const char* forced = std::getenv("CELLO_ISA");
  if (forced == nullptr || *forced == '\0') return names;
  std::string possible;
  for (const std::string& name : names) {
    if (name == forced) return {name};
    possible += (possible.empty() ? "" : ", ") + name;
  }
  throw std::invalid_argument("CELLO_ISA is '" + std::string(forced) +
                              "'; on this machine it can be: " + possible);
}

}  // namespace

const std::vector<std::string>& instruction_sets() {
  static const std::vector<std::string> names = chosen();
  return names;
}

const Kernels& kernels() {
  static const Kernels* best = [] {
    [[maybe_unused]] const std::string& name = instruction_sets().front();
#ifdef CELLO_HAS_AMX
    if (name == "amx") return amx_kernels();
#endif
#ifdef CELLO_HAS_AVX512_BF16
    if (name == "avx512_bf16") return avx512_bf16_kernels();
#endif
#ifdef CELLO_HAS_AVX512
    if (name == "avx512") return avx512_kernels();
#endif
#ifdef CELLO_HAS_AVX2
    if (name == "avx2") return avx2_kernels();
#endif
    return baseline_kernels();
  }();
  return *best;
}

bool multiplies_bfloat16() { return kernels().bfloat16_unit > 0; }

}  // namespace cello

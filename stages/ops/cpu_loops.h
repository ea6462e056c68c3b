// What the CPU loops of the ops share: elements seen as fp32, and the instruction sets to compile
// for.
#pragma once

#include <c10/util/BFloat16.h>

#include <bit>
#include <cstdint>

// One copy of the function per instruction set, chosen when the program starts. Such a function
// belongs into an anonymous namespace: elsewhere its resolver is a weak symbol that may meet a
// namesake. Templates cannot be cloned, so loops are COPPICE_INLINE templates called by a cloned
// function per dtype.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define COPPICE_CLONES __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else
#define COPPICE_CLONES
#endif
#define COPPICE_INLINE __attribute__((always_inline)) inline

namespace coppice::cpu {

/// bf16 by its bits: c10's conversions branch on NaN, which keeps loops from being vectorised.
struct Bf16 {
  uint16_t bits;
};
static_assert(sizeof(Bf16) == sizeof(c10::BFloat16));

COPPICE_INLINE float load(float element) { return element; }
COPPICE_INLINE float load(Bf16 element) {
  return std::bit_cast<float>(static_cast<uint32_t>(element.bits) << 16);
}

COPPICE_INLINE void store(float& element, float value) { element = value; }
/// Round to nearest even; a NaN stays one.
COPPICE_INLINE void store(Bf16& element, float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  element.bits = static_cast<uint16_t>(value == value ? rounded : 0x7FC0u);
}

/// `value` as an element of type T would hold it.
template <typename T>
COPPICE_INLINE float round_to(float value) {
  T element;
  store(element, value);
  return load(element);
}

/// e^x within 2 ulp for x in [−87, 88], saturated outside; NaN stays NaN. Cody–Waite reduction and
/// the polynomial of Cephes' expf; without branches, so that loops over it are vectorised.
COPPICE_INLINE float exp(float x) {
  constexpr float kRound =
      12582912.0f;  // 1.5 · 2²³: adding it rounds to an integer in the low bits
  const float clamped = x > 88.0f ? 88.0f : (x < -87.0f ? -87.0f : x);
  const float shifted = clamped * 1.44269504f + kRound;
  const float n = shifted - kRound;
  const float r = (clamped - n * 0.693359375f) - n * -2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const uint32_t exponent = (std::bit_cast<uint32_t>(shifted) + 127u) << 23;
  return p * std::bit_cast<float>(exponent);
}

COPPICE_INLINE float sigmoid(float x) { return 1.0f / (1.0f + exp(-x)); }

}  // namespace coppice::cpu

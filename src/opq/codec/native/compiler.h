/* Attributes of GCC and Clang, and what the code assumes of the compiler.
 *
 * OPQ_PORTABLE, if it is defined, leaves out all that is specific to x86-64 and to little-endian machines. What remains is what
 * other processors compile. Both give the same bytes.
 */
#ifndef OPQ_COMPILER_H
#define OPQ_COMPILER_H

#include <stdint.h>

#if !defined(__GNUC__)
#error "the native module needs GCC or Clang: it uses vector types, __builtin_clz and __atomic_fetch_add"
#endif

#define ALWAYS_INLINE static inline __attribute__((always_inline))
#define NOINLINE static __attribute__((noinline))
#define COLD NOINLINE /* a rare path, kept out of the loops that call it */
#define UNLIKELY(condition) __builtin_expect(!!(condition), 0)

#if defined(__clang__)
#define UNROLLED
#else
#define UNROLLED _Pragma("GCC unroll 4")
#endif

#if defined(__SSE2__) && !defined(OPQ_PORTABLE)
#define OPQ_SSE2
#endif

#if defined(OPQ_SSE2) && defined(__x86_64__)
#define OPQ_AVX2 /* there is a decoder for processors with AVX2, beside the one for all */
#define TARGET_AVX2 __attribute__((target("avx2,bmi,bmi2,lzcnt")))
#include <immintrin.h>
#elif defined(OPQ_SSE2)
#include <emmintrin.h>
#endif

/* C11 leaves two operations to the implementation, and GCC and Clang define both:
 * - a right shift of a negative number is arithmetic, so that x >> k is floor(x / 2^k);
 * - an unsigned number too large for a signed type wraps modulo 2^N when it is converted.
 * Sums and products that may wrap are unsigned; no signed one overflows. */
_Static_assert((-1 >> 1) == -1, "right shifts of negative numbers must be arithmetic");
_Static_assert((int32_t)UINT32_MAX == -1, "conversions to signed types must wrap");

/* Functions for both directions and all instruction sets take these two as constant arguments and are inlined, so that the
 * machine code does not test them. */
typedef enum { ENCODE, DECODE } Direction;
typedef enum { BASELINE, AVX2 } InstructionSet;

#endif

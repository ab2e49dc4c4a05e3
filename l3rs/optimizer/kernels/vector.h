/* What the kernels have in common. */
#pragma once

/* GCC compiles each kernel for three generations of x86 and takes what the machine has; "x86-64-v4" means vectors of 512 bits. Not under
 * AddressSanitizer, which is not ready yet where a program chooses among them. */
#if defined(__SANITIZE_ADDRESS__)
#define VECTOR
#elif defined(__x86_64__) && defined(__GNUC__) && __GNUC__ >= 12 && !defined(__clang__)
#define VECTOR __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#elif defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define VECTOR __attribute__((target_clones("arch=skylake-avx512", "arch=haswell", "default")))
#else
#define VECTOR
#endif
#define EXPORT __attribute__((visibility("default")))
#define INLINE static inline __attribute__((always_inline))

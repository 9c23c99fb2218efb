// The kernels for x86-64 with AVX-512 VNNI, whose int8 products are faster; floats stay eight at a time. Only code of this namespace is compiled for them: the standard headers come before.
#if defined(__x86_64__)
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstring>
#include <memory>
#include <numeric>
#include <utility>
#include <vector>

#include "kernels.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,avx512f,avx512vl,avx512bw,avx512vnni"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avx512f,avx512vl,avx512bw,avx512vnni")
#endif
#include <immintrin.h>

#define SGL_AVX2 1
#define SGL_VNNI 1
namespace sgl::vnni {
#include "isa.h"
#include "linear.h"
#include "attention.h"
#include "pass.h"
#include "table.h"
}  // namespace sgl::vnni

namespace sgl {
const Kernels& vnni_kernels = vnni::table;
}
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif

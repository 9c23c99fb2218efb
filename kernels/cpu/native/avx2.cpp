// The kernels for x86-64 with AVX2, FMA and F16C. Only code of this namespace is compiled for them: the standard headers come before.
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
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif
#include <immintrin.h>

#define SGL_AVX2 1
namespace sgl::avx2 {
#include "isa.h"
#include "linear.h"
#include "attention.h"
#include "pass.h"
#include "table.h"
}  // namespace sgl::avx2

namespace sgl {
const Kernels& avx2_kernels = avx2::table;
}
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif

// What Python calls. `isa` is 0 for the portable kernels, 1 for AVX2, 2 for AVX-512 VNNI, -1 for the best that this processor has.
#include <cstring>

#include "kernels.h"

using sgl::Kernels;
using sgl::Pool;

namespace {

int best() {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw")) return 2;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) return 1;
#endif
    return 0;
}

const Kernels& kernels(int isa) {
#if defined(__x86_64__)
    switch (isa < 0 ? best() : isa) {
        case 2: return sgl::vnni_kernels;
        case 1: return sgl::avx2_kernels;
        default: break;
    }
#endif
    return sgl::portable_kernels;
}

struct EngineHandle {
    const Kernels& kernels;
    void* engine;
};

}  // namespace

SGL_EXPORT int sgl_abi() { return SGL_ABI; }
SGL_EXPORT int sgl_best_isa() { return best(); }

SGL_EXPORT void* sgl_pool_new(int threads) { return new Pool(threads); }
SGL_EXPORT void sgl_pool_free(void* pool) { delete (Pool*)pool; }

SGL_EXPORT size_t sgl_packed_bytes(int isa, int format, int out, int in) { return kernels(isa).packed_bytes(format, out, in); }
SGL_EXPORT void sgl_pack(int isa, int format, int out, int in, const void* values, const float* scale, const float* minimum, void* packed) {
    kernels(isa).pack(format, out, in, values, scale, minimum, packed);
}
SGL_EXPORT void sgl_unpack_rows(int isa, const sgl_linear* linear, const int64_t* rows, int count, float* out) {
    kernels(isa).unpack_rows(linear, rows, count, out);
}
SGL_EXPORT void sgl_linear_forward(void* pool, int isa, const sgl_linear* linear, const float* x, int rows, float* out) {
    kernels(isa).linear_forward(*(Pool*)pool, linear, x, rows, out);
}
SGL_EXPORT void sgl_attention_forward(void* pool, int isa, const sgl_attention* shape, const sgl_row* rows, int count, int cascade,
                                      const float* query, int64_t query_stride, const void* kv, float* out, int64_t out_stride) {
    kernels(isa).attention(*(Pool*)pool, shape, rows, count, cascade != 0, query, query_stride, kv, out, out_stride);
}

SGL_EXPORT void* sgl_engine_new(void* pool, int isa, const sgl_model* model) {
    const Kernels& chosen = kernels(isa);
    return new EngineHandle{chosen, chosen.engine_new(model, (Pool*)pool)};
}
SGL_EXPORT void sgl_engine_free(void* handle) {
    auto* own = (EngineHandle*)handle;
    own->kernels.engine_free(own->engine);
    delete own;
}
SGL_EXPORT void sgl_engine_forward(void* handle, void* kv, int64_t layer_bytes, const int64_t* tokens, const sgl_row* rows, int count,
                                   int cascade, float* hidden) {
    auto* own = (EngineHandle*)handle;
    own->kernels.engine_forward(own->engine, kv, layer_bytes, tokens, rows, count, cascade != 0, hidden);
}
SGL_EXPORT void sgl_engine_logits(void* handle, const float* hidden, int64_t stride, int count, float* logits) {
    auto* own = (EngineHandle*)handle;
    own->kernels.engine_logits(own->engine, hidden, stride, count, logits);
}
SGL_EXPORT void sgl_engine_timings(void* handle, double* seconds, int64_t* calls) {
    auto* own = (EngineHandle*)handle;
    own->kernels.engine_timings(own->engine, seconds, calls);
}
SGL_EXPORT int64_t sgl_engine_events(void* handle, int on, int64_t* events, int64_t room) {
    auto* own = (EngineHandle*)handle;
    return own->kernels.engine_events(own->engine, on != 0, events, room);
}

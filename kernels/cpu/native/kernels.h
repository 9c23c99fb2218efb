// What one instruction set offers; `api.cpp` chooses a table when the library is loaded.
#pragma once
#include "native.h"
#include "pool.h"

namespace sgl {

struct Kernels {
    size_t (*packed_bytes)(int format, int out, int in);
    void (*pack)(int format, int out, int in, const void* values, const float* scale, const float* minimum, void* packed);
    void (*unpack_rows)(const sgl_linear*, const int64_t* rows, int count, float* out);
    void (*linear_forward)(Pool&, const sgl_linear*, const float* x, int rows, float* out);
    void (*attention)(Pool&, const sgl_attention*, const sgl_row* rows, int count, bool cascade, const float* query,
                      int64_t query_stride, const void* kv, float* out, int64_t out_stride);
    void* (*engine_new)(const sgl_model*, Pool*);
    void (*engine_free)(void*);
    void (*engine_forward)(void*, void* kv, int64_t layer_bytes, const int64_t* tokens, const sgl_row* rows, int count, bool cascade,
                           float* hidden);
    void (*engine_logits)(void*, const float* hidden, int64_t stride, int count, float* logits);
    void (*engine_timings)(void*, double* seconds, int64_t* calls);
    int64_t (*engine_events)(void*, bool on, int64_t* events, int64_t room);
};

extern const Kernels& portable_kernels;
#if defined(__x86_64__)
extern const Kernels& avx2_kernels;
extern const Kernels& vnni_kernels;
#endif

}  // namespace sgl

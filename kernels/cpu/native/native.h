// The C interface between Python (ctypes) and the CPU kernels. Plain structs and pointers; whoever calls keeps the memory alive.
#pragma once
#include <cstddef>
#include <cstdint>

#if defined(_WIN32)
#define SGL_EXPORT extern "C" __declspec(dllexport)
#else
#define SGL_EXPORT extern "C" __attribute__((visibility("default")))
#endif

// How the weight of a linear layer is kept. BLOCK values of one output channel share a scale (and a minimum).
enum sgl_format : int32_t {
    SGL_F32 = 0,   // fp32
    SGL_BF16 = 1,  // bfloat16, computed in fp32
    SGL_Q8 = 2,    // int8 -127..127, scale fp16
    SGL_Q4 = 3,    // codes 0..15, scale and minimum fp16: value = scale * code + minimum
    SGL_Q4W = 4,   // the same with fp32 scale and minimum, for those that fp16 does not hold
};
constexpr int SGL_BLOCK = 32;

// Counts up with every change of a struct or a signature, so that a library of another day is not taken for this one.
constexpr int SGL_ABI = 1;

// y = W x + bias; W is [out, in]. `data` is in the packed layout of its format (linear.h).
struct sgl_linear {
    int32_t format, out, in, reserved;
    const void* data;
    const float* bias;  // [out] or null
};

struct sgl_layer {
    sgl_linear qkv, output, gate_up, down;
    const float* attention_norm;  // [hidden]
    const float* mlp_norm;        // [hidden]
    const float* query_norm;      // [head_dim] or null
    const float* key_norm;        // [head_dim] or null
    int32_t window;               // tokens that a token sees, itself included; 0 for all
    int32_t reserved;
};

enum sgl_kv_format : int32_t { SGL_KV_F32 = 0, SGL_KV_F16 = 1 };

struct sgl_model {
    int32_t hidden, layers, heads, kv_heads, head_dim, intermediate, vocabulary, kv_format;
    float norm_eps, scale;               // scale: factor on the products of queries and keys
    const sgl_layer* layer;              // [layers]
    const float* norm;                   // [hidden], the final one
    const float* inverse_frequencies;    // [head_dim / 2]
    sgl_linear embedding;                // [vocabulary, hidden], packed; only rows of it are read
    sgl_linear head;                     // [vocabulary, hidden]
};

// One sequence of a pass: its tokens live in slots[0 .. length), the last `count` of them are this pass's queries.
struct sgl_row {
    const int64_t* slots;
    int32_t length, count;
};

// What attention has to know. Keys and values of one layer are [slots, 2, kv_heads, head_dim], fp32 or fp16.
struct sgl_attention {
    int32_t heads, kv_heads, head_dim, window, kv_format;
    float scale;
};

// Kinds of operation whose time an engine adds up.
enum sgl_kind : int32_t {
    SGL_EMBED, SGL_NORM, SGL_QKV, SGL_ATTENTION, SGL_OUTPUT, SGL_GATE_UP, SGL_DOWN, SGL_HEAD, SGL_RANK, SGL_KINDS
};

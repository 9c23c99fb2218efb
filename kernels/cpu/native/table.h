// The table of one instruction set. Included last inside of its namespace.

static void linear_forward(sgl::Pool& pool, const sgl_linear* linear, const float* x, int rows, float* out) {
    if (rows == 0) return;
    Buffer codes;
    Activations input{rows, linear->in, x, linear->in, {}, {}, nullptr, 0};
    if (is_quantised(*linear)) {
        input = activations_at(codes.at_least(activation_bytes(rows, linear->in)), rows, linear->in, x, linear->in, true);
        for (int r = 0; r < rows; r++) quantize(x + (size_t)r * linear->in, input, r);
    }
    std::vector<Buffer> scratch(pool.threads());
    const Tiling size = tiling(*linear, rows, pool.threads());
    const int row_blocks = divide_up(rows, size.rows);
    pool.run(row_blocks * divide_up(linear->out, size.channels), [&](int task, int thread) {
        const int r0 = task % row_blocks * size.rows, c0 = task / row_blocks * size.channels;
        linear_tile(*linear, input, r0, std::min(rows, r0 + size.rows), c0, std::min(linear->out, c0 + size.channels),
                    out + (size_t)r0 * linear->out + c0, linear->out, scratch[thread].at_least(linear_scratch_bytes(linear->in)));
    });
}

static void unpack_rows(const sgl_linear* linear, const int64_t* rows, int count, float* out) {
    for (int i = 0; i < count; i++) unpack_row(*linear, (int)rows[i], out + (size_t)i * linear->in);
}

static void attention(sgl::Pool& pool, const sgl_attention* shape, const sgl_row* rows, int count, bool cascade, const float* query,
                      int64_t query_stride, const void* kv, float* out, int64_t out_stride) {
    static thread_local AttentionPlan plan;  // its buffers are kept, as an engine keeps them
    plan.build({shape->heads, shape->kv_heads, shape->head_dim, shape->scale, shape->window, shape->kv_format}, rows, count, pool.threads(),
               cascade);
    plan.run(query, query_stride, kv, out, out_stride, pool);
}

static const sgl::Kernels table = {
    packed_bytes,
    pack,
    unpack_rows,
    linear_forward,
    attention,
    [](const sgl_model* model, sgl::Pool* pool) -> void* { return new Engine(*model, pool); },
    [](void* engine) { delete (Engine*)engine; },
    [](void* engine, void* kv, int64_t layer_bytes, const int64_t* tokens, const sgl_row* rows, int count, bool cascade, float* hidden) {
        ((Engine*)engine)->forward((char*)kv, layer_bytes, tokens, rows, count, cascade, hidden);
    },
    [](void* engine, const float* hidden, int64_t stride, int count, float* logits) {
        ((Engine*)engine)->logits(hidden, stride, count, logits);
    },
    [](void* engine, double* seconds, int64_t* calls) { ((Engine*)engine)->timings(seconds, calls); },
    [](void* engine, bool on, int64_t* events, int64_t room) { return ((Engine*)engine)->events(on, events, room); },
};

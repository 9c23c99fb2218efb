// A forward pass of a model of the Llama family, and its logits. Included inside of a namespace, after linear.h and attention.h.
//
// One call runs all layers. Operations follow one another in the calling thread, the tasks of each are spread over the pool. What is computed for
// a token depends on it and the tokens it sees alone: no sum's order changes with the batch, the chunk or the threads.

// Candidates whose logits are made anew in fp32: those less than RANK_MARGIN below the greatest (far more than int8 can be wrong by).
constexpr float RANK_MARGIN = 1.0f;
constexpr int RANK_MOST = 128;
// Most events kept until they are taken: as many as engine.py takes at once.
constexpr int MOST_EVENTS = 1 << 18;

// Memory that grows and is kept.
struct Buffer {
    std::unique_ptr<char[]> memory;
    size_t size = 0;
    void* at_least(size_t bytes) {
        if (bytes + 64 > size) {
            size = bytes + bytes / 4 + 64;
            memory.reset(new char[size]);
        }
        return (void*)(((uintptr_t)memory.get() + 63) & ~(uintptr_t)63);
    }
    float* floats(size_t count) { return (float*)at_least(count * sizeof(float)); }
};

static inline bool is_quantised(const sgl_linear& linear) { return linear.format >= SGL_Q8; }

static inline float root_mean_square_inverse(const float* x, int size, float eps) {
    F8 squares = zero();
    int i = 0;
    for (; i + 8 <= size; i += 8) squares = fma(load(x + i), load(x + i), squares);
    float total = sum(squares);
    for (; i < size; i++) total += x[i] * x[i];
    return 1.0f / std::sqrt(total / (float)size + eps);
}

static inline void rms_norm(const float* x, const float* weight, int size, float eps, float* out) {
    const float inverse = root_mean_square_inverse(x, size, eps);
    const F8 wide = set1(inverse);
    int i = 0;
    for (; i + 8 <= size; i += 8) store(out + i, mul(mul(load(x + i), wide), load(weight + i)));
    for (; i < size; i++) out[i] = x[i] * inverse * weight[i];
}

// x += y
static inline void accumulate(float* x, const float* y, int size) {
    int i = 0;
    for (; i + 8 <= size; i += 8) store(x + i, add(load(x + i), load(y + i)));
    for (; i < size; i++) x[i] += y[i];
}

// out = silu(gate) * up
static inline void silu_mul(const float* gate, const float* up, int size, float* out) {
    int i = 0;
    for (; i + 8 <= size; i += 8) {
        const F8 g = load(gate + i);
        store(out + i, mul(divide(g, add(set1(1.0f), exp(sub(zero(), g)))), load(up + i)));
    }
    for (; i < size; i++) out[i] = gate[i] / (1.0f + std::exp(-gate[i])) * up[i];
}

static inline int divide_up(int a, int b) { return (a + b - 1) / b; }

class Engine {
public:
    Engine(const sgl_model& model, sgl::Pool* pool) : model_(model), pool_(*pool), scratch_(pool->threads()) {
        int widest = model.head.in;
        for (int l = 0; l < model.layers; l++) {
            const sgl_layer& layer = model.layer[l];
            for (const sgl_linear* linear : {&layer.qkv, &layer.output, &layer.gate_up, &layer.down}) widest = std::max(widest, linear->in);
        }
        linear_bytes_ = linear_scratch_bytes(widest);
    }

    // All layers over the new tokens of `rows`, whose keys and values are written; `hidden` [tokens, hidden] is what the final norm takes.
    void forward(char* kv, int64_t layer_bytes, const int64_t* tokens, const sgl_row* rows, int count, bool cascade, float* hidden) {
        const sgl_model& m = model_;
        mark_ = now();
        int total = 0;
        for (int r = 0; r < count; r++) total += rows[r].count;
        places_.resize(total);
        for (int r = 0, token = 0; r < count; r++)
            for (int i = rows[r].length - rows[r].count; i < rows[r].length; i++, token++) places_[token] = {rows[r].slots[i], i};
        embed(tokens, total, hidden);
        turn(total);
        took(SGL_EMBED);
        build_plans(rows, count, cascade);
        took(SGL_ATTENTION);
        const int queries = m.heads * m.head_dim;
        float* query = query_.floats((size_t)total * queries);
        float* seen = seen_.floats((size_t)total * queries);
        for (int l = 0; l < m.layers; l++) {
            const sgl_layer& layer = m.layer[l];
            char* pool = kv + l * layer_bytes;
            normalise(hidden, layer.attention_norm, total, layer.qkv);
            took(SGL_NORM);
            project(layer, total, query, pool);
            took(SGL_QKV);
            plan_of(layer.window).run(query, queries, pool, seen, queries, pool_);
            took(SGL_ATTENTION);
            take_up(seen, total, queries, layer.output, false);
            add_linear(layer.output, total, hidden);
            took(SGL_OUTPUT);
            normalise(hidden, layer.mlp_norm, total, layer.gate_up);
            took(SGL_NORM);
            const float* gated = gate(layer, total);
            took(SGL_GATE_UP);
            take_up(gated, total, m.intermediate, layer.down, true);
            add_linear(layer.down, total, hidden);
            took(SGL_DOWN);
        }
    }

    // [count, hidden] of `forward`, rows `stride` apart, to [count, vocabulary].
    void logits(const float* hidden, int64_t stride, int count, float* out) {
        const sgl_model& m = model_;
        mark_ = now();
        float* rows = query_.floats((size_t)count * m.hidden);
        for (int r = 0; r < count; r++) std::memcpy(rows + (size_t)r * m.hidden, hidden + r * stride, sizeof(float) * m.hidden);
        float* normed = normalise(rows, m.norm, count, m.head);
        took(SGL_NORM);
        const Tiling size = tiling(m.head, count, pool_.threads());
        each_tile(count, m.vocabulary, size, [&](int r0, int r1, int c0, int c1, int thread) {
            linear_tile(m.head, input_, r0, r1, c0, c1, out + (size_t)r0 * m.vocabulary + c0, m.vocabulary, scratch(thread, 0));
        });
        took(SGL_HEAD);
        if (is_quantised(m.head)) {
            pool_.run(count, [&](int r, int thread) {
                rank(normed + (size_t)r * m.hidden, out + (size_t)r * m.vocabulary, scratch(thread, m.hidden));
            });
            took(SGL_RANK);
        }
    }

    void timings(double* seconds, int64_t* calls) const {
        for (int kind = 0; kind < SGL_KINDS; kind++) seconds[kind] = seconds_[kind], calls[kind] = calls_[kind];
    }

    // Hand over what was recorded, (kind, start, duration in ns of the monotonic clock) each, at most `room` of them; record from here on if `on`.
    int64_t events(bool on, int64_t* out, int64_t room) {
        const int64_t count = std::min<int64_t>(room, (int64_t)events_.size() / 3);
        if (count) std::memcpy(out, events_.data(), sizeof(int64_t) * 3 * count);
        events_.clear();
        recording_ = on;
        return count;
    }

private:
    struct Place {
        int64_t slot;
        int position;
    };

    const sgl_model model_;
    sgl::Pool& pool_;
    std::vector<Buffer> scratch_;
    size_t linear_bytes_ = 0;
    std::vector<Place> places_;
    std::vector<std::pair<int, AttentionPlan>> plans_;
    Buffer query_, seen_, normed_, codes_, gated_, turns_;
    Activations input_{};
    int64_t mark_ = 0;
    double seconds_[SGL_KINDS] = {};
    int64_t calls_[SGL_KINDS] = {};
    bool recording_ = false;
    std::vector<int64_t> events_;

    static int64_t now() {
        return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
    }

    void took(int kind) {
        const int64_t at = now();
        seconds_[kind] += (double)(at - mark_) * 1e-9;
        calls_[kind]++;
        if (recording_ && events_.size() < 3 * (size_t)MOST_EVENTS) events_.insert(events_.end(), {kind, mark_, at - mark_});
        mark_ = at;
    }

    // `floats` for the caller behind what linear_tile needs. Each thread has its own.
    void* scratch(int thread, size_t floats) {
        return scratch_[thread].at_least(linear_bytes_ + floats * sizeof(float));
    }
    float* beside(void* scratch) { return (float*)((char*)scratch + linear_bytes_); }

    // f(first row, last, first channel, last, thread) over all tiles; those of one channel block follow each other, so that its weights stay near.
    template <class F>
    void each_tile(int rows, int channels, Tiling size, F&& f) {
        if (rows == 0) return;
        const int row_blocks = divide_up(rows, size.rows), channel_blocks = divide_up(channels, size.channels);
        pool_.run(row_blocks * channel_blocks, [&](int task, int thread) {
            const int r0 = task % row_blocks * size.rows, c0 = task / row_blocks * size.channels;
            f(r0, std::min(rows, r0 + size.rows), c0, std::min(channels, c0 + size.channels), thread);
        });
    }

    // f(first row, last, thread) over blocks of rows.
    template <class F>
    void each_rows(int rows, F&& f) {
        const int size = std::max(1, std::min(16, divide_up(rows, pool_.threads())));
        if (rows <= 2) return f(0, rows, 0);
        pool_.run(divide_up(rows, size), [&](int task, int thread) { f(task * size, std::min(rows, (task + 1) * size), thread); });
    }

    void embed(const int64_t* tokens, int total, float* hidden) {
        each_rows(total, [&](int r0, int r1, int) {
            for (int r = r0; r < r1; r++) unpack_row(model_.embedding, (int)tokens[r], hidden + (size_t)r * model_.hidden);
        });
    }

    // Cosines and sines of all tokens' positions: [tokens, 2, head_dim / 2].
    void turn(int total) {
        const int half = model_.head_dim / 2;
        float* turns = turns_.floats((size_t)total * 2 * half);
        each_rows(total, [&](int r0, int r1, int) {
            for (int r = r0; r < r1; r++) {
                float* cosines = turns + (size_t)r * 2 * half;
                for (int i = 0; i < half; i++) {
                    const float angle = (float)places_[r].position * model_.inverse_frequencies[i];
                    cosines[i] = std::cos(angle);
                    cosines[half + i] = std::sin(angle);
                }
            }
        });
    }

    void build_plans(const sgl_row* rows, int count, bool cascade) {
        for (auto& plan : plans_) plan.second.build(shape(plan.first), rows, count, pool_.threads(), cascade);
        for (int l = 0; l < model_.layers; l++) {
            const int window = model_.layer[l].window;
            if (std::none_of(plans_.begin(), plans_.end(), [&](auto& plan) { return plan.first == window; })) {
                plans_.emplace_back(window, AttentionPlan());
                plans_.back().second.build(shape(window), rows, count, pool_.threads(), cascade);
            }
        }
    }

    AttentionShape shape(int window) const {
        return {model_.heads, model_.kv_heads, model_.head_dim, model_.scale, window, model_.kv_format};
    }

    AttentionPlan& plan_of(int window) {
        for (auto& plan : plans_)
            if (plan.first == window) return plan.second;
        return plans_.front().second;
    }

    // Norm of all rows as the input of the next linear layer. Returns the floats, which stay until the next call.
    float* normalise(const float* x, const float* weight, int rows, const sgl_linear& next) {
        const int size = model_.hidden;
        float* normed = normed_.floats((size_t)rows * size);
        prepare(normed, rows, size, next, &next != &model_.head);
        each_rows(rows, [&](int r0, int r1, int) {
            for (int r = r0; r < r1; r++) {
                rms_norm(x + (size_t)r * size, weight, size, model_.norm_eps, normed + (size_t)r * size);
                if (is_quantised(next)) quantize(normed + (size_t)r * size, input_, r);
            }
        });
        return normed;
    }

    // Rows of floats as the input of the next linear layer.
    void take_up(const float* x, int rows, int size, const sgl_linear& next, bool twice) {
        prepare(x, rows, size, next, twice);
        if (!is_quantised(next)) return;
        each_rows(rows, [&](int r0, int r1, int) {
            for (int r = r0; r < r1; r++) quantize(x + (size_t)r * size, input_, r);
        });
    }

    // With second codes, but for the head, whose best are made anew, and for the attention's output, on which little depends.
    void prepare(const float* x, int rows, int size, const sgl_linear& next, bool twice) {
        input_ = is_quantised(next) ? activations_at(codes_.at_least(activation_bytes(rows, size)), rows, size, x, size, twice)
                                    : Activations{rows, size, x, size, {}, {}, nullptr, 0};
    }

    // Queries, keys and values; queries and keys turned by their position, keys and values into the pool.
    void project(const sgl_layer& layer, int rows, float* query, char* pool) {
        const int d = model_.head_dim, queries = model_.heads * d;
        Tiling size = tiling(layer.qkv, rows, pool_.threads());
        size.channels = std::max(d, size.channels / d * d);
        each_tile(rows, layer.qkv.out, size, [&](int r0, int r1, int c0, int c1, int thread) {
            void* own = scratch(thread, (size_t)(r1 - r0) * (c1 - c0));
            float* tile = beside(own);
            linear_tile(layer.qkv, input_, r0, r1, c0, c1, tile, c1 - c0, own);
            for (int r = r0; r < r1; r++)
                for (int c = c0; c < c1; c += d) {
                    float* head = tile + (size_t)(r - r0) * (c1 - c0) + (c - c0);
                    const int place = c / d - model_.heads;  // below 0: a query; then keys, then values
                    if (place < model_.kv_heads) {
                        const float* weight = place < 0 ? layer.query_norm : layer.key_norm;
                        if (weight) rms_norm(head, weight, d, model_.norm_eps, head);
                        rotate(head, r);
                    }
                    if (place < 0) std::memcpy(query + (size_t)r * queries + c, head, sizeof(float) * d);
                    else keep(head, pool, places_[r].slot, place);
                }
        });
    }

    void rotate(float* head, int row) {
        const int half = model_.head_dim / 2;
        const float* cosines = (const float*)turns_.at_least(0) + (size_t)row * 2 * half;
        const float* sines = cosines + half;
        int i = 0;
        for (; i + 8 <= half; i += 8) {
            const F8 a = load(head + i), b = load(head + half + i), c = load(cosines + i), s = load(sines + i);
            store(head + i, sub(mul(a, c), mul(b, s)));
            store(head + half + i, fma(a, s, mul(b, c)));
        }
        for (; i < half; i++) {
            const float a = head[i], b = head[half + i];
            head[i] = a * cosines[i] - b * sines[i];
            head[half + i] = b * cosines[i] + a * sines[i];
        }
    }

    // One head's keys or values of one token; `place` counts through the keys' heads, then the values'. What fp16 does not hold becomes its greatest
    // number, not infinity: times a weight of zero that would spoil those who do not even see it.
    void keep(const float* head, char* pool, int64_t slot, int place) {
        const int d = model_.head_dim;
        const size_t at = ((size_t)slot * 2 * model_.kv_heads + place) * d;
        if (model_.kv_format == SGL_KV_F32) {
            std::memcpy((float*)pool + at, head, sizeof(float) * d);
        } else {
            for (int i = 0; i < d; i += 8) store_half((uint16_t*)pool + at + i, max(set1(-65504.0f), min(set1(65504.0f), load(head + i))));
        }
    }

    // x += the linear layer of the input.
    void add_linear(const sgl_linear& linear, int rows, float* x) {
        const Tiling size = tiling(linear, rows, pool_.threads());
        each_tile(rows, linear.out, size, [&](int r0, int r1, int c0, int c1, int thread) {
            void* own = scratch(thread, (size_t)(r1 - r0) * (c1 - c0));
            float* tile = beside(own);
            linear_tile(linear, input_, r0, r1, c0, c1, tile, c1 - c0, own);
            for (int r = r0; r < r1; r++)
                accumulate(x + (size_t)r * linear.out + c0, tile + (size_t)(r - r0) * (c1 - c0), c1 - c0);
        });
    }

    // silu(gate) * up: [rows, intermediate].
    const float* gate(const sgl_layer& layer, int rows) {
        const int size = model_.intermediate;
        float* gated = gated_.floats((size_t)rows * size);
        Tiling block = tiling(layer.gate_up, rows, pool_.threads());
        block.channels = std::max(SGL_BLOCK, block.channels / 2 / SGL_BLOCK * SGL_BLOCK);
        each_tile(rows, size, block, [&](int r0, int r1, int c0, int c1, int thread) {
            const int width = c1 - c0;
            void* own = scratch(thread, (size_t)2 * (r1 - r0) * width);
            float* gates = beside(own);
            float* ups = gates + (size_t)(r1 - r0) * width;
            linear_tile(layer.gate_up, input_, r0, r1, c0, c1, gates, width, own);
            linear_tile(layer.gate_up, input_, r0, r1, size + c0, size + c1, ups, width, own);
            for (int r = r0; r < r1; r++) {
                const size_t at = (size_t)(r - r0) * width;
                silu_mul(gates + at, ups + at, width, gated + (size_t)r * size + c0);
            }
        });
        return gated;
    }

    // The logits near the greatest once more, in fp32 from the floats.
    void rank(const float* normed, float* logits, void* own) {
        const sgl_linear& head = model_.head;
        float greatest = -INFINITY;
        for (int i = 0; i < head.out; i++) greatest = logits[i] > greatest ? logits[i] : greatest;
        int found[RANK_MOST], count = RANK_MOST + 1;
        for (float margin = RANK_MARGIN; count > RANK_MOST && margin > 1e-3f; margin *= 0.5f) {
            const float least = greatest - margin;
            count = 0;
            for (int i = 0; i < head.out && count <= RANK_MOST; i++)
                if (logits[i] >= least) {
                    if (count < RANK_MOST) found[count] = i;
                    count++;
                }
        }
        if (count > RANK_MOST) return;
        float* weight = beside(own);
        for (int k = 0; k < count; k++) {
            unpack_row(head, found[k], weight);
            F8 total = zero();
            int i = 0;
            for (; i + 8 <= head.in; i += 8) total = fma(load(weight + i), load(normed + i), total);
            float value = sum(total);
            for (; i < head.in; i++) value += weight[i] * normed[i];
            logits[found[k]] = head.bias ? value + head.bias[found[k]] : value;
        }
    }
};

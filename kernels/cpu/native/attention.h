// Attention straight from the paged pool of keys and values. Included inside of a namespace, after isa.h.
//
// Order of operations, the same for every query whatever else is in the pass: positions are cut into partitions of 64 from position 0.
// A partition gives each query its largest score, the sum of its weights and the weighted sum of values: a product of query and key is
// eight running sums over the dimensions and `sum`'s tree, weights are summed in eight lanes and that tree, values key by key. Partitions
// are then folded one after the other from the first that the query sees. A key that a query does not see has weight 0, which changes
// nothing. So a decode, a chunk of a prefill and rows that share their prefix give the same bits, on any number of threads.
//
// Rows of few new tokens run as units, (partition, rows) for each head of keys: rows whose slots of that partition are the same numbers
// form one unit (cascade), keys and values are read once for all of them. What units found is folded per row at the end. Rows of more
// new tokens run in blocks of tokens, each of which walks its partitions itself.

struct AttentionShape {
    int heads, kv_heads, head_dim;
    float scale;
    int window;  // tokens that a token sees, itself included; 0 for all
    int kv_format;
};

struct KeyF32 {
    using Value = float;
    static F8 get(const float* p) { return load(p); }
};
struct KeyF16 {
    using Value = uint16_t;
    static F8 get(const uint16_t* p) { return load_half(p); }
};

constexpr int PARTITION = 64;       // keys
constexpr int BLOCK_ROWS = 48;      // most rows (new token x query head) of a block that share a head of keys, if a token has not more
constexpr int UNIT_TOKENS = 8;      // most new tokens of a row that runs in units
constexpr float NO_SCORE = -1e30f;  // below every score

#if defined(SGL_AVX2)
// The first two steps of sum()'s tree for four at once; `dots` does the third.
static inline __m256 half_sums(F8 a, F8 b, F8 c, F8 d) {  // a02 a13 c02 c13 | b02 b13 d02 d13
    const F8 ab = add(_mm256_permute2f128_ps(a, b, 0x21), _mm256_blend_ps(a, b, 0xf0));
    const F8 cd = add(_mm256_permute2f128_ps(c, d, 0x21), _mm256_blend_ps(c, d, 0xf0));
    return add(_mm256_shuffle_ps(ab, cd, 0x4e), _mm256_blend_ps(ab, cd, 0xcc));
}
#endif

// Products of Q queries with keys at[0..7], to scores[row][0..7]. D is the head's size, 0 for `dim`.
template <class Key, int D, int Q>
static inline void dots(const float* query, int dim, const typename Key::Value* keys, const int64_t* at, float* scores) {
    const int size = D ? D : dim;
#if defined(SGL_AVX2)
    F8 halves[2][Q];
#endif
    for (int part = 0; part < 2; part++, at += 4) {
        F8 total[Q][4];
        for (int q = 0; q < Q; q++)
            for (int k = 0; k < 4; k++) total[q][k] = zero();
#pragma GCC unroll 1  // else the queries go through the stack
        for (int d = 0; d < size; d += 8) {
            F8 x[Q];
            for (int q = 0; q < Q; q++) x[q] = load(query + q * size + d);
            for (int k = 0; k < 4; k++) {
                const F8 key = Key::get(keys + at[k] + d);
                for (int q = 0; q < Q; q++) total[q][k] = fma(x[q], key, total[q][k]);
            }
        }
        for (int q = 0; q < Q; q++)
#if defined(SGL_AVX2)
            halves[part][q] = half_sums(total[q][0], total[q][2], total[q][1], total[q][3]);
#else
            for (int k = 0; k < 4; k++) scores[q * PARTITION + part * 4 + k] = sum(total[q][k]);
#endif
    }
#if defined(SGL_AVX2)
    // hadd: a c | b d of each part -> k0 k1 k4 k5 | k2 k3 k6 k7
    for (int q = 0; q < Q; q++) {
        const __m256d mixed = _mm256_castps_pd(_mm256_hadd_ps(halves[0][q], halves[1][q]));
        store(scores + q * PARTITION, _mm256_castpd_ps(_mm256_permute4x64_pd(mixed, 0xd8)));
    }
#endif
}

// What is read next, fetched a little at every step of the computation: memory keeps up only if it never waits for a multiplication.
struct Ahead {
    const char* pool;
    const int64_t* slots;
    int64_t stride;            // bytes of a slot
    int count, bytes, each;    // slots; bytes of each; cache lines at a step
    int done = 0;              // bytes of the first slot

    void step() {
        for (int left = each; left > 0 && count > 0;) {
            const char* from = pool + *slots * stride + done;
            const int lines = std::min(left, (bytes - done + 63) / 64);
            for (int i = 0; i < lines; i++) __builtin_prefetch(from + 64 * i, 0, 1);
            left -= lines;
            done += 64 * lines;
            if (done >= bytes) {
                done = 0;
                slots++;
                count--;
            }
        }
    }
    void all() {
        each = INT32_MAX;
        step();
    }
};

// total[row][0..8*V) = sum over the keys of weight x value, in their order.
template <class Key, int Q, int V>
static inline void weighted(const float* weights, const typename Key::Value* values, const int64_t* at, int first, int last, float* total, int dim,
                            Ahead& ahead) {
    F8 sums[Q][V];
    for (int q = 0; q < Q; q++)
        for (int v = 0; v < V; v++) sums[q][v] = zero();
    for (int k = first; k < last; k++) {
        F8 weight[Q];
        if ((k & 7) == 0) ahead.step();
        for (int q = 0; q < Q; q++) weight[q] = set1(weights[q * PARTITION + k]);
        for (int v = 0; v < V; v++) {
            const F8 value = Key::get(values + at[k] + v * 8);
            for (int q = 0; q < Q; q++) sums[q][v] = fma(weight[q], value, sums[q][v]);
        }
    }
    for (int q = 0; q < Q; q++)
        for (int v = 0; v < V; v++) store(total + q * dim + v * 8, sums[q][v]);
}

// What rows found in a partition, or in all so far. Rows are padded to a multiple of eight in `top` and `weight`.
struct Found {
    float* top;     // [rows] largest score
    float* weight;  // [rows] sum of e^(score - top)
    float* total;   // [rows, dim] sum of e^(score - top) x value
};

// Rows of a block: queries already times the scale, and which keys of the partition at hand each one sees, [first, last).
struct BlockRows {
    const float* query;  // [rows, dim]
    int rows, dim;
    const int* first;
    const int* last;
};

static inline int tile_rows(int left) { return left == 1 ? 1 : left == 2 || left == 4 ? 2 : 3; }

template <class F>
static inline void with_query_rows(int rows, F&& f) {
    if (rows == 3) f(std::integral_constant<int, 3>());
    else if (rows == 2) f(std::integral_constant<int, 2>());
    else f(std::integral_constant<int, 1>());
}

// One partition for one block. `keys` and `values` point at the head's part of slot 0; a slot is `stride` values.
// `scores` has room for [rows, PARTITION].
template <class Key, int D>
static void attend_partition(const BlockRows& block, const typename Key::Value* keys, const typename Key::Value* values, int64_t stride,
                             const int64_t* slots, float* scores, Found found, Ahead& ahead) {
    struct Tile {
        int row, rows, first, begin, last;  // first: `begin` rounded down to eight
    } tiles[BLOCK_ROWS];
    const int dim = D ? D : block.dim;
    for (int base = 0; base < block.rows; base += BLOCK_ROWS) {
        int count = 0, first = PARTITION, last = 0;
        const int end = std::min(block.rows, base + BLOCK_ROWS);
        for (int row = base; row < end;) {
            Tile tile{row, tile_rows(end - row), 0, PARTITION, 0};
            for (int i = 0; i < tile.rows; i++, row++) {
                tile.begin = std::min(tile.begin, block.first[row]);
                tile.last = std::max(tile.last, block.last[row]);
            }
            tile.first = tile.begin & ~7;
            first = std::min(first, tile.begin);
            last = std::max(last, tile.last);
            tiles[count++] = tile;
        }
        int64_t at[PARTITION];  // no other key than these is read: places around them repeat one, and are masked below
        for (int k = first; k < last; k++) at[k] = slots[k] * stride;
        for (int k = first & ~7; k < first; k++) at[k] = at[first];
        for (int k = last; k & 7; k++) at[k] = at[last - 1];
        for (int k = first & ~7; k < last; k += 8)
            for (int t = 0; t < count; t++) {
                ahead.step();
                if (k < tiles[t].last && k >= tiles[t].first)
                    with_query_rows(tiles[t].rows, [&](auto rows) {
                        dots<Key, D, rows.value>(block.query + tiles[t].row * dim, dim, keys, at + k, scores + tiles[t].row * PARTITION + k);
                    });
            }
        for (int t = 0; t < count; t++) {
            for (int row = tiles[t].row; row < tiles[t].row + tiles[t].rows; row++) {
                float* own = scores + row * PARTITION;
                for (int k = tiles[t].first; k < block.first[row]; k++) own[k] = -INFINITY;
                for (int k = std::max(block.last[row], tiles[t].first); k < ((tiles[t].last + 7) & ~7); k++) own[k] = -INFINITY;
                F8 top = set1(NO_SCORE), weight = zero();
                for (int k = tiles[t].first; k < tiles[t].last; k += 8) top = max(top, load(own + k));
                found.top[row] = largest(top);
                top = set1(found.top[row]);
                for (int k = tiles[t].first; k < tiles[t].last; k += 8) {
                    const F8 e = exp(sub(load(own + k), top));
                    weight = add(weight, e);
                    store(own + k, e);
                }
                found.weight[row] = sum(weight);
            }
        }
        for (int d = 0; d < dim; d += 32)
            for (int t = 0; t < count; t++)
                with_query_rows(tiles[t].rows, [&](auto rows) {
                    constexpr int Q = rows.value;
                    const float* own = scores + tiles[t].row * PARTITION;
                    float* total = found.total + tiles[t].row * dim + d;
                    const int first = tiles[t].begin, last = tiles[t].last, left = D && D % 32 == 0 ? 32 : dim - d;
                    if (left >= 32) weighted<Key, Q, 4>(own, values + d, at, first, last, total, dim, ahead);
                    else if (left == 24) weighted<Key, Q, 3>(own, values + d, at, first, last, total, dim, ahead);
                    else if (left == 16) weighted<Key, Q, 2>(own, values + d, at, first, last, total, dim, ahead);
                    else weighted<Key, Q, 1>(own, values + d, at, first, last, total, dim, ahead);
                });
    }
}

// Add what rows found in one more partition.
static void fold(int rows, int dim, Found all, const Found& one) {
    for (int r = 0; r < rows; r += 8) {
        float keep[8], take[8];
        const F8 before = load(all.top + r), own = load(one.top + r), top = max(before, own);
        const F8 a = exp(sub(before, top)), b = exp(sub(own, top));
        store(all.top + r, top);
        store(all.weight + r, fma(load(one.weight + r), b, mul(load(all.weight + r), a)));
        store(keep, a);
        store(take, b);
        for (int i = 0; i < 8 && r + i < rows; i++) {
            const F8 x = set1(keep[i]), y = set1(take[i]);
            float* total = all.total + (r + i) * dim;
            const float* other = one.total + (r + i) * dim;
            for (int d = 0; d < dim; d += 8) store(total + d, fma(load(other + d), y, mul(load(total + d), x)));
        }
    }
}

static inline void clear(int rows, int dim, Found all) {
    for (int r = 0; r < rows; r += 8) {
        store(all.top + r, set1(NO_SCORE));
        store(all.weight + r, zero());
    }
    for (int i = 0; i < rows * dim; i += 8) store(all.total + i, zero());
}

// One pass's attention, planned once and used by every layer with the same window.
class AttentionPlan {
public:
    // rows: in the order of their tokens in the flat batch; they and their slots stay alive while the plan is used.
    // cascade: read what rows share once for all of them.
    void build(const AttentionShape& shape, const sgl_row* rows, int count, int threads, bool cascade = true) {
        shape_ = shape;
        group_ = shape.heads / shape.kv_heads;
        capacity_ = std::max(BLOCK_ROWS, group_);
        rows_.clear();
        blocks_.clear();
        units_.clear();
        members_.clear();
        parts_.clear();
        order_.clear();
        room_ = 0;
        work_ = 0;
        int token = 0, longest = 0, earliest = INT32_MAX;
        for (int r = 0; r < count; token += rows[r++].count) {
            rows_.push_back({rows[r].slots, rows[r].length, rows[r].count, token, 0, 0, 0});
            Row& row = rows_.back();
            if (row.count > UNIT_TOKENS || (row.count > 1 && row.count * group_ > capacity_)) {
                add_blocks(r);
            } else if (row.count > 0) {
                row.first = seen_from(row.length - row.count) / PARTITION;
                row.last = (row.length - 1) / PARTITION;
                row.parts = (int)parts_.size();
                parts_.resize(parts_.size() + row.last + 1 - row.first);
                longest = std::max(longest, row.last);
                earliest = std::min(earliest, row.first);
                order_.push_back(r);
            }
        }
        if (!order_.empty() && cascade && order_.size() > 1) add_units(earliest, longest);
        else
            for (int i = 0; i < (int)order_.size(); i++)
                for (int partition = rows_[order_[i]].first; partition <= rows_[order_[i]].last; partition++) add_run(i, i + 1, partition);
        std::sort(blocks_.begin(), blocks_.end(), [](const Block& a, const Block& b) { return a.cost > b.cost; });
        add_tasks(threads);
    }

    // query: [tokens, heads, head_dim], `query_stride` floats from token to token; kv: [slots, 2, kv_heads, head_dim] of this layer, the
    // new tokens' in it already; out: [tokens, heads * head_dim] at `out_stride`.
    void run(const float* query, int64_t query_stride, const void* kv, float* out, int64_t out_stride, sgl::Pool& pool) {
        const Call call{query, query_stride, kv, out, out_stride};
        if (shape_.kv_format == SGL_KV_F16) run_as<KeyF16>(call, pool);
        else run_as<KeyF32>(call, pool);
    }

private:
    struct Row {
        const int64_t* slots;
        int length, count, token;
        int first, last, parts;  // first and last partition; where they begin in parts_
    };
    struct Part {  // where a row's results of one partition are
        int unit, row;
    };
    struct Block {  // tokens [first, last) of a row for one head of keys
        int row, first, last, head;
        int64_t cost;
    };
    struct Unit {  // one partition for some rows; their results begin at `room`, `size` floats for each head of keys
        int partition, members, count, rows;
        int64_t room, size;
    };
    struct Task {
        int first, last;  // of blocks_, or behind them of (unit, head of keys)
    };
    struct Call {
        const float* query;
        int64_t query_stride;
        const void* kv;
        float* out;
        int64_t out_stride;
    };

    int seen_from(int position) const { return shape_.window > 0 ? std::max(0, position - shape_.window + 1) : 0; }
    static int padded(int rows) { return ((rows + 7) & ~7) + 8; }

    void add_blocks(int r) {
        const Row& row = rows_[r];
        const int tokens = std::max(1, capacity_ / group_);
        for (int first = 0; first < row.count; first += tokens)
            for (int head = 0; head < shape_.kv_heads; head++) {
                const int last = std::min(row.count, first + tokens), position = row.length - row.count + last;
                blocks_.push_back({r, first, last, head, (int64_t)(last - first) * (position - seen_from(position - (last - first)))});
            }
    }

    // Does every query of the row see the whole partition?
    bool sees(const Row& row, int partition) const {
        return partition * PARTITION >= seen_from(row.length - 1) && (partition + 1) * PARTITION <= row.length - row.count + 1;
    }
    bool same(const Row& a, const Row& b, int partition) const {
        const int first = partition * PARTITION, last = first + PARTITION - 1;
        return last < a.length && last < b.length && a.slots[first] == b.slots[first] && a.slots[last] == b.slots[last] &&
               std::memcmp(a.slots + first, b.slots + first, PARTITION * sizeof(int64_t)) == 0;
    }

    // order_ holds the rows so that those which are the same up to here stand together; runs_ where such a run ends.
    void add_units(int earliest, int longest) {
        runs_.assign(1, (int)order_.size());
        for (int partition = earliest; partition <= longest; partition++) {
            next_runs_.clear();
            int begin = 0;
            for (int end : runs_)
                while (begin < end) {
                    const Row& leader = rows_[order_[begin]];
                    int middle = begin + 1;
                    if (end - begin > 1)
                        middle = (int)(std::stable_partition(order_.begin() + begin + 1, order_.begin() + end,
                                                             [&](int r) { return same(leader, rows_[r], partition); }) -
                                       order_.begin());
                    add_run(begin, middle, partition);
                    next_runs_.push_back(middle);
                    begin = middle;
                }
            runs_.swap(next_runs_);
        }
    }
    void add_run(int begin, int end, int partition) {
        bool open = false;  // the last unit takes more rows
        for (int i = begin; i < end; i++) {
            Row& row = rows_[order_[i]];
            if (partition < row.first || partition > row.last) continue;
            const int rows = row.count * group_;
            const bool whole = sees(row, partition);
            if (!whole || !open || units_.back().rows + rows > capacity_) {
                close_unit();
                units_.push_back({partition, (int)members_.size(), 0, 0, 0, 0});
                open = whole;
            }
            Unit& unit = units_.back();
            parts_[row.parts + partition - row.first] = {(int)units_.size() - 1, unit.rows};
            members_.push_back(order_[i]);
            unit.count++;
            unit.rows += rows;
            if (!whole) open = false;
        }
        close_unit();
    }
    void close_unit() {
        if (units_.empty() || units_.back().size) return;
        Unit& unit = units_.back();
        unit.room = room_;
        unit.size = 2 * padded(unit.rows) + (int64_t)unit.rows * shape_.head_dim;
        room_ += unit.size * shape_.kv_heads;
    }

    // Each takes a share of what is left: long ones first, as each starts with a wait for memory, and short ones so that all threads end together.
    void add_tasks(int threads) {
        tasks_.clear();
        for (int i = 0; i < (int)blocks_.size(); i++) tasks_.push_back({i, i + 1});
        int64_t left = 0;
        for (const Unit& unit : units_) left += cost_of(unit) * shape_.kv_heads;
        const int before = (int)blocks_.size(), items = (int)units_.size() * shape_.kv_heads;
        int64_t cost = 0;
        for (int item = 0, first = 0; item < items; item++) {
            cost += cost_of(units_[item / shape_.kv_heads]);
            const int64_t least = std::max<int64_t>(left / (threads * 2), PARTITION);
            if ((cost >= least && (item - first < shape_.kv_heads || (item + 1) % shape_.kv_heads == 0)) || item == items - 1) {
                tasks_.push_back({before + first, before + item + 1});
                first = item + 1;
                left -= std::exchange(cost, 0);
            }
        }
        for (int r : order_) work_ += (int64_t)(rows_[r].last + 1 - rows_[r].first) * rows_[r].count * shape_.heads * shape_.head_dim;
    }
    int keys_in(const Unit& unit) const {
        return std::min(PARTITION, rows_[members_[unit.members]].length - unit.partition * PARTITION);
    }
    int64_t cost_of(const Unit& unit) const { return (int64_t)keys_in(unit) * (3 + unit.rows) / 6; }  // keys, and half as much for every three rows

    // Each thread's: queries, scores, what one partition gave, what all did, what rows see.
    size_t scratch_floats() const {
        const size_t rows = padded(capacity_), dim = shape_.head_dim;
        return rows * (dim * 3 + PARTITION + 6) + 16;
    }
    struct Scratch {
        float *query, *scores;
        Found one, all;
        int *first, *last;
    };
    Scratch scratch_of(int thread) {
        const size_t rows = padded(capacity_), dim = shape_.head_dim;
        float* p = scratch_.data() + thread * scratch_floats();
        p += (64 - (uintptr_t)p % 64) % 64 / 4;
        auto take = [&](size_t floats) { return std::exchange(p, p + floats); };
        Scratch own;
        own.query = take(rows * dim);
        own.scores = take(rows * PARTITION);
        own.one = {nullptr, nullptr, take(rows * dim)};
        own.all = {nullptr, nullptr, take(rows * dim)};
        own.one.top = take(rows);
        own.one.weight = take(rows);
        own.all.top = take(rows);
        own.all.weight = take(rows);
        own.first = (int*)take(rows);
        own.last = (int*)take(rows);
        return own;
    }
    Found found_at(const Unit& unit, int head) {
        float* p = results_.data() + unit.room + unit.size * head;
        return {p, p + padded(unit.rows), p + 2 * padded(unit.rows)};
    }

    // Queries of tokens [first, last) of a row, for one head of keys.
    void copy_queries(const Call& call, const Row& row, int first, int last, int head, float* to) const {
        const int size = group_ * shape_.head_dim;
        const F8 scale = set1(shape_.scale);
        for (int t = first; t < last; t++, to += size) {
            const float* from = call.query + (row.token + t) * call.query_stride + (int64_t)head * size;
            for (int i = 0; i < size; i += 8) store(to + i, mul(load(from + i), scale));
        }
    }
    // Keys of the partition that tokens [first, last) see.
    void mark_seen(const Row& row, int first, int last, int partition, int* from, int* to) const {
        for (int t = first; t < last; t++) {
            const int position = row.length - row.count + t, start = partition * PARTITION;
            const int end = std::clamp(position + 1 - start, 0, PARTITION), begin = std::clamp(seen_from(position) - start, 0, end);
            for (int g = 0; g < group_; g++) {
                *from++ = begin;
                *to++ = end;
            }
        }
    }
    template <class Key>
    void attend(const Call& call, const BlockRows& block, int head, const int64_t* slots, float* scores, const Found& found,
                Ahead& ahead) const {
        const int dim = shape_.head_dim;
        const auto* keys = (const typename Key::Value*)call.kv + (int64_t)head * dim;
        const auto* values = keys + (int64_t)shape_.kv_heads * dim;
        const int64_t stride = 2LL * shape_.kv_heads * dim;
        if (dim == 64) attend_partition<Key, 64>(block, keys, values, stride, slots, scores, found, ahead);
        else if (dim == 128) attend_partition<Key, 128>(block, keys, values, stride, slots, scores, found, ahead);
        else if (dim == 80) attend_partition<Key, 80>(block, keys, values, stride, slots, scores, found, ahead);
        else attend_partition<Key, 0>(block, keys, values, stride, slots, scores, found, ahead);
    }
    void finish(const Call& call, const Row& row, int first, int last, int head, const Found& all) const {
        const int dim = shape_.head_dim, size = group_ * dim;
        int r = 0;
        for (int t = first; t < last; t++) {
            float* to = call.out + (row.token + t) * call.out_stride + (int64_t)head * size;
            for (int g = 0; g < group_; g++, r++) {
                const F8 share = set1(1.0f / all.weight[r]);
                for (int d = 0; d < dim; d += 8) store(to + g * dim + d, mul(load(all.total + r * dim + d), share));
            }
        }
    }

    template <class Key>
    void run_block(const Call& call, const Block& block, const Scratch& own) {
        const Row& row = rows_[block.row];
        const int rows = (block.last - block.first) * group_, dim = shape_.head_dim, before = row.length - row.count;
        copy_queries(call, row, block.first, block.last, block.head, own.query);
        clear(rows, dim, own.all);
        const int last = (before + block.last - 1) / PARTITION;
        for (int partition = seen_from(before + block.first) / PARTITION; partition <= last; partition++) {
            mark_seen(row, block.first, block.last, partition, own.first, own.last);
            const int64_t* slots = row.slots + partition * PARTITION;
            Ahead ahead{};
            attend<Key>(call, {own.query, rows, dim, own.first, own.last}, block.head, slots, own.scores, own.one, ahead);
            fold(rows, dim, own.all, own.one);
        }
        finish(call, row, block.first, block.last, block.head, own.all);
    }
    // All that a unit reads, in equal parts over the steps of the one before it.
    Ahead ahead_of(const Call& call, int unit, int before) const {
        const Row& row = rows_[members_[units_[unit].members]];
        const int first = units_[unit].partition * PARTITION, count = keys_in(units_[unit]);
        const int stride = 2 * shape_.kv_heads * shape_.head_dim * (shape_.kv_format == SGL_KV_F16 ? 2 : 4);
        const int tiles = (units_[before].rows + 2) / 3, groups = (keys_in(units_[before]) + 7) / 8;
        const int steps = shape_.kv_heads * tiles * groups * (1 + (shape_.head_dim + 31) / 32);
        return {(const char*)call.kv, row.slots + first, stride, count, stride, count * (stride / 64 + 1) / steps + 1};
    }
    template <class Key>
    void run_unit(const Call& call, int item, Ahead& ahead, const Scratch& own) {
        const Unit& unit = units_[item / shape_.kv_heads];
        const int head = item % shape_.kv_heads;
        int done = 0;
        for (int i = 0; i < unit.count; i++) {
            const Row& row = rows_[members_[unit.members + i]];
            copy_queries(call, row, 0, row.count, head, own.query + done * shape_.head_dim);
            mark_seen(row, 0, row.count, unit.partition, own.first + done, own.last + done);
            done += row.count * group_;
        }
        const int64_t* slots = rows_[members_[unit.members]].slots + unit.partition * PARTITION;
        attend<Key>(call, {own.query, done, shape_.head_dim, own.first, own.last}, head, slots, own.scores, found_at(unit, head), ahead);
    }
    template <class Key>
    void run_units(const Call& call, int first, int last, const Scratch& own) {
        const int kv_heads = shape_.kv_heads;
        Ahead ahead = ahead_of(call, first / kv_heads, first / kv_heads);
        if (last - first < kv_heads) {
            const int size = (int)ahead.stride / kv_heads / 2;
            ahead.pool += first % kv_heads * size;
            ahead.bytes = size * (last - first);
            Ahead values = ahead;
            values.pool += ahead.stride / 2;
            values.all();
        }
        ahead.all();
        for (int item = first; item < last; item++) {
            const int unit = item / kv_heads;
            if ((item == first || item % kv_heads == 0) && unit < (last - 1) / kv_heads) ahead = ahead_of(call, unit + 1, unit);
            run_unit<Key>(call, item, ahead, own);
        }
    }
    void merge(const Call& call, const Row& row, int head, const Scratch& own) {
        const int rows = row.count * group_, dim = shape_.head_dim;
        clear(rows, dim, own.all);
        for (int i = 0; i <= row.last - row.first; i++) {
            const Part& part = parts_[row.parts + i];
            const Found found = found_at(units_[part.unit], head);
            fold(rows, dim, own.all, {found.top + part.row, found.weight + part.row, found.total + (int64_t)part.row * dim});
        }
        finish(call, row, 0, row.count, head, own.all);
    }

    template <class Key>
    void run_as(const Call& call, sgl::Pool& pool) {
        scratch_.resize(std::max(scratch_.size(), scratch_floats() * pool.threads()));
        results_.resize(std::max(results_.size(), (size_t)room_ + 16));
        const int blocks = (int)blocks_.size(), kv_heads = shape_.kv_heads;
        pool.run((int)tasks_.size(), [&](int index, int thread) {
            const Scratch own = scratch_of(thread);
            const auto [first, last] = tasks_[index];
            if (first < blocks) return run_block<Key>(call, blocks_[first], own);
            run_units<Key>(call, first - blocks, last - blocks, own);
        });
        const int merges = (int)order_.size() * kv_heads;
        auto one = [&](int index, int thread) { merge(call, rows_[order_[index / kv_heads]], index % kv_heads, scratch_of(thread)); };
        if (work_ > 20000) pool.run(merges, std::move(one));
        else
            for (int i = 0; i < merges; i++) one(i, 0);
    }

    AttentionShape shape_{};
    int group_ = 1, capacity_ = BLOCK_ROWS;
    int64_t room_ = 0, work_ = 0;
    std::vector<Row> rows_;
    std::vector<Block> blocks_;
    std::vector<Unit> units_;
    std::vector<int> members_, order_, runs_, next_runs_;
    std::vector<Part> parts_;
    std::vector<Task> tasks_;
    std::vector<float> scratch_, results_;
};

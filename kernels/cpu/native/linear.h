// Linear layers with weights in fp32, bf16, int8 or 4 bits. Included inside of a namespace named after the instruction set.
//
// Weights are packed once in panels of 16 output channels. In a panel:
//   F32, BF16   k by k the 16 channels' values;
//   Q8, Q4, Q4W block by block (32 k): the codes, then 16 scales, then (Q4, Q4W) 16 minimums.
// Codes come as vectors of 32 bytes, 8 channels x 4 k, so that one broadcast of four activations feeds eight channels:
// [k / 4][channels 0-7, 8-15]; Q4 keeps k / 4 = j in the low and 4 + j in the high nibbles of vector j.
//
// One order of operations for every element of the output, whatever the rows, the tile and the thread. Quantised: per block
// the exact integer sum, t = fma(float(sum), weight_scale * scale, t), with a minimum then t = fma(minimum, scaled sum, t), blocks
// ascending. F32, BF16: t = fma(w[k], x[k], t), k ascending. Then the bias is added. What differs by rows is only where unpacked codes live.

#if defined(__clang__)
#define SGL_UNROLL _Pragma("unroll")
#else
#define SGL_UNROLL _Pragma("GCC unroll 16")
#endif
#if defined(_MSC_VER)
#define SGL_APART __declspec(noinline)
#else
#define SGL_APART __attribute__((noinline))  // inner loops keep their registers to themselves
#endif

constexpr int PANEL = 16;       // output channels
constexpr int CHUNK = 24;       // blocks unpacked at a time
constexpr int TILE_ROWS = 128;  // rows that share them

// Int8 codes of rows, in blocks of 32.
struct CodeRows {
    int8_t* q;        // [rows][columns]
    float* scale;     // [rows][columns / 32], 0 for a block of zeros, NaN for one with a NaN
    float* sum;       // the same: scale * sum of the codes
    int32_t* offset;  // the same: -128 * sum of the codes
};

// Rows of activations, ready for a linear layer. Quantised in blocks of 32: code = round(x / scale), scale = max|x| / 127.
//
// Most of what that loses is lost in the few blocks that hold a row's outliers. Blocks whose scale is more than OUTLIER times the mean of
// their row's scales therefore have a second code for what is left, in steps of scale / 254: 16 bits where it matters.
struct Activations {
    int rows, columns;
    const float* x;  // null if the format is quantised
    int64_t x_stride;
    CodeRows first, second;  // the second codes exist where `fine` says so
    uint8_t* fine;           // [columns / 32][fine_stride], 0 or 1 for every row; null without second codes
    int64_t fine_stride;
};
constexpr float OUTLIER = 2.5f;

static inline size_t aligned64(size_t bytes) { return (bytes + 63) & ~(size_t)63; }

static inline size_t code_row_bytes(int rows, int columns) {
    const size_t codes = (size_t)rows * columns;
    return aligned64(codes) + 3 * aligned64(codes / SGL_BLOCK * 4);
}

static inline CodeRows code_rows_at(char* memory, int rows, int columns) {
    const size_t codes = (size_t)rows * columns, part = aligned64(codes / SGL_BLOCK * 4);
    char* scales = memory + aligned64(codes);
    return {(int8_t*)memory, (float*)scales, (float*)(scales + part), (int32_t*)(scales + 2 * part)};
}

// Bytes of what `activations_at` places, each part at a multiple of 64.
static inline size_t activation_bytes(int rows, int columns) {
    return 2 * code_row_bytes(rows, columns) + (size_t)(columns / SGL_BLOCK) * aligned64(rows);
}

// `twice`: with second codes.
static inline Activations activations_at(void* memory, int rows, int columns, const float* x, int64_t x_stride, bool twice) {
    const size_t part = code_row_bytes(rows, columns);
    char* at = (char*)memory;
    return {rows, columns, x, x_stride, code_rows_at(at, rows, columns), code_rows_at(at + part, rows, columns),
            twice ? (uint8_t*)at + 2 * part : nullptr, (int64_t)aligned64(rows)};
}

static inline float bits_to_float(uint32_t bits) {
    float f;
    std::memcpy(&f, &bits, 4);
    return f;
}

// max|x| / 127 of one block; then its codes, and their sum.
#if defined(SGL_AVX2)
static inline float block_scale(const float* x) {
    const __m256i size = _mm256_set1_epi32(0x7fffffff);  // as integers, so that a NaN is the largest
    __m256i m = _mm256_and_si256(size, _mm256_castps_si256(load(x)));
    for (int i = 8; i < SGL_BLOCK; i += 8) m = _mm256_max_epi32(m, _mm256_and_si256(size, _mm256_castps_si256(load(x + i))));
    __m128i n = _mm_max_epi32(_mm256_castsi256_si128(m), _mm256_extracti128_si256(m, 1));
    n = _mm_max_epi32(n, _mm_shuffle_epi32(n, 0x4e));
    n = _mm_max_epi32(n, _mm_shuffle_epi32(n, 0xb1));
    return bits_to_float((uint32_t)_mm_cvtsi128_si32(n)) / 127.0f;
}
static inline int32_t block_codes(const float* x, float scale, int8_t* q) {
    const F8 s = set1(scale);
    const auto code = [&](int i) { return _mm256_cvtps_epi32(divide(load(x + i), s)); };
    const __m256i low = _mm256_packs_epi32(code(0), code(8)), high = _mm256_packs_epi32(code(16), code(24));
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    const __m256i codes = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(low, high), order);
    _mm256_storeu_si256((__m256i*)q, codes);
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), codes);
    const __m256i fours = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
    __m128i n = _mm_add_epi32(_mm256_castsi256_si128(fours), _mm256_extracti128_si256(fours, 1));
    n = _mm_add_epi32(n, _mm_shuffle_epi32(n, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(n, _mm_shuffle_epi32(n, 0xb1)));
}
#else
static inline float block_scale(const float* x) {
    uint32_t largest = 0;  // as integers, so that a NaN is the largest
    for (int i = 0; i < SGL_BLOCK; i++) {
        uint32_t bits;
        std::memcpy(&bits, x + i, 4);
        bits &= 0x7fffffff;
        if (bits > largest) largest = bits;
    }
    return bits_to_float(largest) / 127.0f;
}
static inline int32_t block_codes(const float* x, float scale, int8_t* q) {
    int32_t total = 0;
    for (int i = 0; i < SGL_BLOCK; i++) total += q[i] = (int8_t)std::nearbyint(x[i] / scale);
    return total;
}
#endif

// Codes of one block, and what comes with them.
static inline void quantize_block(const float* x, float scale, const CodeRows& to, int64_t block) {
    int32_t total = 0;
    if (scale >= 0x1p-126f && scale <= 0x1.fffffep127f) {
        total = block_codes(x, scale, to.q + block * SGL_BLOCK);
    } else {
        std::memset(to.q + block * SGL_BLOCK, 0, SGL_BLOCK);
        if (scale < 0x1p-126f) scale = 0.0f;
    }
    to.scale[block] = scale;
    to.sum[block] = scale * (float)total;
    to.offset[block] = -128 * total;
}

// Quantise one row from its `a.columns` values; any thread, for rows of its own.
static inline void quantize(const float* x, Activations& a, int row) {
    const int blocks = a.columns / SGL_BLOCK;
    const int64_t begin = (int64_t)row * blocks;
    float total = 0.0f;
    for (int b = 0; b < blocks; b++) {
        quantize_block(x + b * SGL_BLOCK, block_scale(x + b * SGL_BLOCK), a.first, begin + b);
        total += a.first.scale[begin + b];
    }
    if (!a.fine) return;
    const float least = OUTLIER * total / (float)blocks;
    for (int b = 0; b < blocks; b++) {
        const float scale = a.first.scale[begin + b];
        const bool fine = scale > least && scale <= 0x1.fffffep127f;
        a.fine[b * a.fine_stride + row] = fine;
        if (!fine) continue;
        float left[SGL_BLOCK];
        const int8_t* q = a.first.q + (begin + b) * SGL_BLOCK;
        for (int i = 0; i < SGL_BLOCK; i++) left[i] = x[b * SGL_BLOCK + i] - scale * (float)q[i];
        quantize_block(left, scale / 254.0f, a.second, begin + b);
    }
}

// ---- Packing ----

static inline int code_bytes(int format) { return format == SGL_Q8 ? 512 : 256; }
static inline int scale_bytes(int format) { return format == SGL_Q4W ? 64 : 32; }
static inline int block_bytes(int format) { return code_bytes(format) + (format == SGL_Q8 ? 1 : 2) * scale_bytes(format); }
static inline size_t panel_bytes(int format, int in) {
    if (format == SGL_F32) return (size_t)in * PANEL * 4;
    if (format == SGL_BF16) return (size_t)in * PANEL * 2;
    return (size_t)(in / SGL_BLOCK) * block_bytes(format);
}
static inline size_t packed_bytes(int format, int out, int in) { return (size_t)((out + PANEL - 1) / PANEL) * panel_bytes(format, in); }

static inline void pack_scales(int format, const float values[PANEL], char* to) {
    for (int c = 0; c < PANEL; c += 8) {
        if (format == SGL_Q4W) store((float*)to + c, load(values + c));
        else store_half((uint16_t*)to + c, load(values + c));
    }
}

static inline void unpack_scales(int format, const char* from, float values[PANEL]) {
    for (int c = 0; c < PANEL; c += 8) {
        store(values + c, format == SGL_Q4W ? load((const float*)from + c) : load_half((const uint16_t*)from + c));
    }
}

// Where the code of channel c (of 16) and element k (of 32) is: the byte within a block. Q4: the high nibble if k >= 16.
static inline int code_at(int format, int c, int k) {
    if (format != SGL_Q8) k &= 15;
    return (k / 4 * 2 + c / 8) * 32 + c % 8 * 4 + k % 4;
}

static inline void pack_block(int format, const uint8_t* codes, int in, int channels, uint8_t* to) {
    std::memset(to, 0, code_bytes(format));
    for (int c = 0; c < channels; c++, codes += in) {
        for (int k = 0; k < SGL_BLOCK; k++) {
            uint8_t& byte = to[code_at(format, c, k)];
            byte = (uint8_t)(format == SGL_Q8 || k < 16 ? byte | codes[k] : byte | codes[k] << 4);
        }
    }
}

template <class T>
static void pack_values(int out, int in, const T* values, T* packed) {
    for (int first = 0; first < out; first += PANEL) {
        for (int k = 0; k < in; k++) {
            for (int c = 0; c < PANEL; c++) *packed++ = first + c < out ? values[(int64_t)(first + c) * in + k] : T(0);
        }
    }
}

// F32, BF16: values [out, in]. Q8: int8 codes [out, in] and scale [out, in / 32]. Q4, Q4W: uint8 codes 0..15, scale and minimum.
static void pack(int format, int out, int in, const void* values, const float* scale, const float* minimum, void* packed) {
    if (format == SGL_F32) return pack_values(out, in, (const float*)values, (float*)packed);
    if (format == SGL_BF16) return pack_values(out, in, (const uint16_t*)values, (uint16_t*)packed);
    const int blocks = in / SGL_BLOCK;
    char* to = (char*)packed;
    for (int first = 0; first < out; first += PANEL) {
        const int channels = out - first < PANEL ? out - first : PANEL;
        for (int b = 0; b < blocks; b++, to += block_bytes(format)) {
            float scales[PANEL] = {}, minimums[PANEL] = {};
            for (int c = 0; c < channels; c++) {
                const int64_t at = (int64_t)(first + c) * blocks + b;
                scales[c] = scale[at];
                if (minimum) minimums[c] = minimum[at];
            }
            pack_block(format, (const uint8_t*)values + (int64_t)first * in + b * SGL_BLOCK, in, channels, (uint8_t*)to);
            pack_scales(format, scales, to + code_bytes(format));
            if (format != SGL_Q8) pack_scales(format, minimums, to + code_bytes(format) + scale_bytes(format));
        }
    }
}

// Row `row` of W, dequantised: value = scale * code (+ minimum).
static void unpack_row(const sgl_linear& w, int row, float* out) {
    const char* from = (const char*)w.data + row / PANEL * panel_bytes(w.format, w.in);
    const int c = row % PANEL;
    if (w.format == SGL_F32) {
        for (int k = 0; k < w.in; k++) out[k] = ((const float*)from)[k * PANEL + c];
        return;
    }
    if (w.format == SGL_BF16) {
        for (int k = 0; k < w.in; k++) out[k] = bits_to_float((uint32_t)((const uint16_t*)from)[k * PANEL + c] << 16);
        return;
    }
    for (int b = 0; b < w.in / SGL_BLOCK; b++, from += block_bytes(w.format), out += SGL_BLOCK) {
        float scales[PANEL], minimums[PANEL] = {};
        unpack_scales(w.format, from + code_bytes(w.format), scales);
        if (w.format != SGL_Q8) unpack_scales(w.format, from + code_bytes(w.format) + scale_bytes(w.format), minimums);
        for (int k = 0; k < SGL_BLOCK; k++) {
            const uint8_t byte = (uint8_t)from[code_at(w.format, c, k)];
            const int code = w.format == SGL_Q8 ? (int8_t)byte : k < 16 ? byte & 15 : byte >> 4;
            out[k] = scales[c] * (float)code + minimums[c];
        }
    }
}

// ---- Multiplying ----

// Blocks of one panel, unpacked.
struct Unpacked {
    const uint8_t* codes;
    const float* scale;
    const float* minimum;
};

// What one thread needs while it computes a tile.
struct LinearScratch {
    alignas(64) uint8_t codes[CHUNK * 1024];  // of one panel, unpacked
    alignas(64) float scale[CHUNK * PANEL];
    alignas(64) float minimum[CHUNK * PANEL];
    alignas(64) float sums[TILE_ROWS * PANEL];  // of one panel
    alignas(64) float more[TILE_ROWS * PANEL];  // what the second codes add
    int32_t* used;                              // [count of used blocks + 1]: blocks with second codes, ascending
    int32_t* begin;                             // [the same + 1]: where each one's entries begin
    CodeRows second;                            // [entries], block by block: their codes
    uint8_t* row;                               // [entries]: whose they are, in the tile
    int blocks_used;
    bool has_second[TILE_ROWS];
};

// Blocks of a row that can have second codes: each takes more than OUTLIER shares of the sum of all scales.
static inline int most_second(int in) { return (int)((float)(in / SGL_BLOCK) / OUTLIER) + 1; }

// Bytes for layers of up to `in` inputs.
static inline size_t linear_scratch_bytes(int in) {
    const int entries = TILE_ROWS * most_second(in), blocks = in / SGL_BLOCK + 2;
    return aligned64(sizeof(LinearScratch)) + 2 * aligned64(blocks * 4) + code_row_bytes(entries, SGL_BLOCK) + aligned64(entries);
}

static inline LinearScratch& place_scratch(void* memory, int in) {
    LinearScratch& p = *(LinearScratch*)memory;
    const int entries = TILE_ROWS * most_second(in), blocks = in / SGL_BLOCK + 2;
    char* at = (char*)memory + aligned64(sizeof(LinearScratch));
    p.used = (int32_t*)at, at += aligned64(blocks * 4);
    p.begin = (int32_t*)at, at += aligned64(blocks * 4);
    p.second = code_rows_at(at, entries, SGL_BLOCK), at += code_row_bytes(entries, SGL_BLOCK);
    p.row = (uint8_t*)at;
    p.blocks_used = 0;
    return p;
}

// Ask for memory that is read soon; past the end of a weight it does nothing.
static inline void fetch(const char* p, int bytes) {
    for (int i = 0; i < bytes; i += 64) __builtin_prefetch(p + i);
}

// R rows of F32 or BF16, x and sums from the first of them.
template <int R>
static SGL_APART void multiply_values(const sgl_linear& w, const char* panel, const float* x, int64_t stride, float* sums, int ahead) {
    F8 t[R][2];
    for (int r = 0; r < R; r++) t[r][0] = t[r][1] = zero();
    const int step = w.format == SGL_F32 ? 64 : 32;
    for (int k = 0; k < w.in; k++) {
        F8 w0, w1;
        fetch(panel + k * step + 4096, ahead);
        if (w.format == SGL_F32) {
            w0 = load((const float*)panel + k * PANEL), w1 = load((const float*)panel + k * PANEL + 8);
        } else {
            w0 = load_bf16((const uint16_t*)panel + k * PANEL), w1 = load_bf16((const uint16_t*)panel + k * PANEL + 8);
        }
        SGL_UNROLL for (int r = 0; r < R; r++) {
            const F8 v = set1(x[r * stride + k]);
            t[r][0] = fma(w0, v, t[r][0]);
            t[r][1] = fma(w1, v, t[r][1]);
        }
    }
    for (int r = 0; r < R; r++) store(sums + r * PANEL, t[r][0]), store(sums + r * PANEL + 8, t[r][1]);
}

// What the rows of one multiplication read, from the first of them and the first block on.
struct Codes {
    const int8_t* q;
    const float* scale;
    const float* sum;
    const int32_t* offset;
    int64_t stride, blocks;  // from row to row
};

#if defined(SGL_AVX2)

using I8 = __m256i;
static inline I8 four(const int8_t* q) {
    int32_t v;
    std::memcpy(&v, q, 4);
    return _mm256_set1_epi32(v);
}
static inline I8 bytes(const void* p) { return _mm256_loadu_si256((const __m256i*)p); }
static inline I8 pairs(I8 sums) { return _mm256_madd_epi16(sums, _mm256_set1_epi16(1)); }
// sum += u * s, u unsigned, s signed; `first` starts it. VNNI: int32 sums of four; else int16 sums of two, at most 8 * 2 * 15 * 127 = 30480 per block.
#if defined(SGL_VNNI)
static inline void dot(I8& sum, I8 u, I8 s, bool first) { sum = _mm256_dpbusd_epi32(first ? _mm256_setzero_si256() : sum, u, s); }
static inline I8 total(I8 sum) { return sum; }
#else
static inline void dot(I8& sum, I8 u, I8 s, bool first) {
    const I8 n = _mm256_maddubs_epi16(u, s);
    sum = first ? n : _mm256_add_epi16(sum, n);
    asm("" : "+x"(sum));  // in this order: else GCC sums in a tree, whose terms are alive at once and go through memory
}
static inline I8 total(I8 sum) { return pairs(sum); }
#endif
static inline F8 added(I8 sum, F8 weight_scale, float scale, F8 t) {
    return fma(_mm256_cvtepi32_ps(sum), mul(weight_scale, set1(scale)), t);
}
template <int FORMAT>
static inline F8 scale_of(const char* p, int v) {
    return FORMAT == SGL_Q4W ? load((const float*)p + v * 8) : load_half((const uint16_t*)p + v * 8);
}

constexpr int AHEAD = 4096;  // bytes

// R <= 4 rows straight from packed 4-bit codes, all blocks.
template <int FORMAT, int R>
static SGL_APART void multiply_packed4(const char* panel, Codes a, int blocks, float* sums) {
    const I8 low = _mm256_set1_epi8(15);
    F8 t[R][2];
    for (int r = 0; r < R; r++) t[r][0] = t[r][1] = zero();
    constexpr int SCALES = FORMAT == SGL_Q4W ? 64 : 32, BYTES = 256 + 2 * SCALES;
    for (int b = 0; b < blocks; b++, panel += BYTES) {
        I8 s[R][2];
        fetch(panel + AHEAD, BYTES);
        SGL_UNROLL for (int j = 0; j < 4; j++) {
            SGL_UNROLL for (int v = 0; v < 2; v++) {
                const I8 both = bytes(panel + j * 64 + v * 32);
                const I8 w0 = _mm256_and_si256(both, low), w1 = _mm256_and_si256(_mm256_srli_epi16(both, 4), low);
                SGL_UNROLL for (int r = 0; r < R; r++) {
                    const int8_t* q = a.q + r * a.stride + b * SGL_BLOCK + j * 4;
                    dot(s[r][v], w0, four(q), j == 0);
                    dot(s[r][v], w1, four(q + 16), false);
                }
            }
        }
        SGL_UNROLL for (int v = 0; v < 2; v++) {
            const F8 scale = scale_of<FORMAT>(panel + 256, v), minimum = scale_of<FORMAT>(panel + 256 + SCALES, v);
            SGL_UNROLL for (int r = 0; r < R; r++) {
                const int64_t at = r * a.blocks + b;
                t[r][v] = fma(minimum, set1(a.sum[at]), added(total(s[r][v]), scale, a.scale[at], t[r][v]));
            }
        }
    }
    for (int r = 0; r < R; r++) store(sums + r * PANEL, t[r][0]), store(sums + r * PANEL + 8, t[r][1]);
}

// The same for int8 codes: (w + 128) times the activation, less 128 times the activation; without VNNI |w| times the activation with w's sign.
template <int R>
static SGL_APART void multiply_packed8(const char* panel, Codes a, int blocks, float* sums) {
    F8 t[R][2];
    for (int r = 0; r < R; r++) t[r][0] = t[r][1] = zero();
    for (int b = 0; b < blocks; b++, panel += 544) {
        I8 s[R][2];
        fetch(panel + AHEAD, 544);
#if defined(SGL_VNNI)
        for (int r = 0; r < R; r++) s[r][0] = s[r][1] = _mm256_set1_epi32(a.offset[r * a.blocks + b]);
#else
        for (int r = 0; r < R; r++) s[r][0] = s[r][1] = _mm256_setzero_si256();
#endif
        SGL_UNROLL for (int j = 0; j < 8; j++) {
            SGL_UNROLL for (int v = 0; v < 2; v++) {
                const I8 w = bytes(panel + j * 64 + v * 32);
#if defined(SGL_VNNI)
                const I8 size = _mm256_xor_si256(w, _mm256_set1_epi8((char)128));
#else
                const I8 size = _mm256_abs_epi8(w);
#endif
                SGL_UNROLL for (int r = 0; r < R; r++) {
                    const I8 q = four(a.q + r * a.stride + b * SGL_BLOCK + j * 4);
#if defined(SGL_VNNI)
                    dot(s[r][v], size, q, false);
#else
                    s[r][v] = _mm256_add_epi32(s[r][v], pairs(_mm256_maddubs_epi16(size, _mm256_sign_epi8(q, w))));
#endif
                }
            }
        }
        SGL_UNROLL for (int v = 0; v < 2; v++) {
            const F8 scale = scale_of<SGL_Q8>(panel + 512, v);
            SGL_UNROLL for (int r = 0; r < R; r++) t[r][v] = added(s[r][v], scale, a.scale[r * a.blocks + b], t[r][v]);
        }
    }
    for (int r = 0; r < R; r++) store(sums + r * PANEL, t[r][0]), store(sums + r * PANEL + 8, t[r][1]);
}

// One block's codes as unsigned bytes: Q4 [k / 4][channels 0-7, 8-15]; Q8 as code + 128, with VNNI alike,
// else as nibbles: [half of the channels][k / 4][low, high].
static inline void unpack_codes(int format, const char* from, uint8_t* to) {
    const I8 low = _mm256_set1_epi8(15), middle = _mm256_set1_epi8((char)128);
    const auto put = [](uint8_t* p, I8 v) { _mm256_store_si256((__m256i*)p, v); };
    if (format != SGL_Q8) {
        SGL_UNROLL for (int i = 0; i < 8; i++) {
            const I8 both = bytes(from + i * 32);
            put(to + i * 32, _mm256_and_si256(both, low));
            put(to + 256 + i * 32, _mm256_and_si256(_mm256_srli_epi16(both, 4), low));
        }
        return;
    }
#if defined(SGL_VNNI)
    SGL_UNROLL for (int i = 0; i < 16; i++) put(to + i * 32, _mm256_xor_si256(bytes(from + i * 32), middle));
#else
    SGL_UNROLL for (int j = 0; j < 8; j++) {
        SGL_UNROLL for (int v = 0; v < 2; v++) {
            const I8 both = _mm256_xor_si256(bytes(from + j * 64 + v * 32), middle);
            put(to + v * 512 + j * 64, _mm256_and_si256(both, low));
            put(to + v * 512 + j * 64 + 32, _mm256_and_si256(_mm256_srli_epi16(both, 4), low));
        }
    }
#endif
}

// Sums of R rows of one block with two vectors of codes per four k.
template <int R>
static inline void code_sums(const uint8_t* codes, const int8_t* q, int64_t stride, I8 s[R][2]) {
    SGL_UNROLL for (int j = 0; j < 8; j++) {
        const I8 w0 = bytes(codes + j * 64), w1 = bytes(codes + j * 64 + 32);
        SGL_UNROLL for (int r = 0; r < R; r++) {
            const I8 v = four(q + r * stride + j * 4);
            dot(s[r][0], w0, v, j == 0);
            dot(s[r][1], w1, v, j == 0);
        }
    }
}

template <int R>
static SGL_APART void multiply_unpacked4(Unpacked p, Codes a, int blocks, float* sums, const char* next, int bytes) {
    for (int b = 0; b < blocks; b++) {
        fetch(next + b * bytes, bytes);
        I8 s[R][2];
        code_sums<R>(p.codes + b * 512, a.q + b * SGL_BLOCK, a.stride, s);
        SGL_UNROLL for (int v = 0; v < 2; v++) {
            const F8 scale = load(p.scale + b * PANEL + v * 8), minimum = load(p.minimum + b * PANEL + v * 8);
            SGL_UNROLL for (int r = 0; r < R; r++) {
                float* to = sums + r * PANEL + v * 8;
                const int64_t at = r * a.blocks + b;
                store(to, fma(minimum, set1(a.sum[at]), added(total(s[r][v]), scale, a.scale[at], load(to))));
            }
        }
    }
}

template <int R>
static SGL_APART void multiply_unpacked8(Unpacked p, Codes a, int blocks, float* sums, const char* next, int bytes) {
    for (int b = 0; b < blocks; b++) {
        fetch(next + b * bytes, bytes);
#if defined(SGL_VNNI)
        I8 s[R][2];
        code_sums<R>(p.codes + b * 512, a.q + b * SGL_BLOCK, a.stride, s);
        const auto product = [&](int r, int v) { return s[r][v]; };
#endif
        SGL_UNROLL for (int v = 0; v < 2; v++) {
#if !defined(SGL_VNNI)
            I8 s[R][2];
            code_sums<R>(p.codes + b * 1024 + v * 512, a.q + b * SGL_BLOCK, a.stride, s);
            const auto product = [&](int r, int) { return _mm256_add_epi32(pairs(s[r][0]), _mm256_madd_epi16(s[r][1], _mm256_set1_epi16(16))); };
#endif
            const F8 scale = load(p.scale + b * PANEL + v * 8);
            SGL_UNROLL for (int r = 0; r < R; r++) {
                float* to = sums + r * PANEL + v * 8;
                const int64_t at = r * a.blocks + b;
                store(to, added(_mm256_add_epi32(product(r, v), _mm256_set1_epi32(a.offset[at])), scale, a.scale[at], load(to)));
            }
        }
    }
}

template <int R>
static SGL_APART void multiply_packed(int format, const char* panel, Codes a, int blocks, float* sums) {
    if (format == SGL_Q4) multiply_packed4<SGL_Q4, R>(panel, a, blocks, sums);
    else if (format == SGL_Q4W) multiply_packed4<SGL_Q4W, R>(panel, a, blocks, sums);
    else multiply_packed8<R>(panel, a, blocks, sums);
}

template <int R>
static SGL_APART void multiply_unpacked(int format, Unpacked p, Codes a, int blocks, float* sums, const char* next, int bytes) {
    if (format == SGL_Q8) multiply_unpacked8<R>(p, a, blocks, sums, next, bytes);
    else multiply_unpacked4<R>(p, a, blocks, sums, next, bytes);
}

#if defined(SGL_VNNI)
constexpr int GROUP = 6;
static inline int unpacked_bytes(int) { return 512; }
#else
constexpr int GROUP = 4;
static inline int unpacked_bytes(int format) { return format == SGL_Q8 ? 1024 : 512; }
#endif
// Up to so many rows read the packed codes directly. GOP/s of a core (Zen 4, 576 inputs, Q4): packed 170, 223, 241, 225 with 1 to 4 rows, unpacked 261 with 4
// (VNNI 189, 257, 293, 301; 327 with 6), but unpacking a panel costs as much as multiplying 1.3 rows.
constexpr int PACKED_ROWS = 8;  // up to so many rows the packed codes are read directly

#else

// Codes as they are: [block][k][channel], int16.
static inline void unpack_codes(int format, const char* from, uint8_t* to) {
    for (int k = 0; k < SGL_BLOCK; k++) {
        for (int c = 0; c < PANEL; c++) {
            const uint8_t byte = (uint8_t)from[code_at(format, c, k)];
            ((int16_t*)to)[k * PANEL + c] = (int16_t)(format == SGL_Q8 ? (int8_t)byte : k < 16 ? byte & 15 : byte >> 4);
        }
    }
}

template <int R>
static SGL_APART void multiply_unpacked(int format, Unpacked p, Codes a, int blocks, float* sums, const char*, int) {
    for (int b = 0; b < blocks; b++) {
        for (int r = 0; r < R; r++) {
            const int16_t* codes = (const int16_t*)p.codes + b * SGL_BLOCK * PANEL;
            const int8_t* q = a.q + r * a.stride + b * SGL_BLOCK;
            int32_t n[PANEL] = {};
            for (int k = 0; k < SGL_BLOCK; k++) {
                for (int c = 0; c < PANEL; c++) n[c] += codes[k * PANEL + c] * q[k];
            }
            const int64_t at = r * a.blocks + b;
            for (int c = 0; c < PANEL; c++) {
                float t = sums[r * PANEL + c];
                t += (float)n[c] * (p.scale[b * PANEL + c] * a.scale[at]);
                if (format != SGL_Q8) t += p.minimum[b * PANEL + c] * a.sum[at];
                sums[r * PANEL + c] = t;
            }
        }
    }
}

template <int R>
static SGL_APART void multiply_packed(int, const char*, Codes, int, float*) {}
constexpr int PACKED_ROWS = 0, GROUP = 4;
static inline int unpacked_bytes(int) { return 1024; }

#endif

// Call f(R) with R = rows (1..6) as a constant.
template <class F>
static inline void with_rows(int rows, F&& f) {
    switch (rows) {
        case 1: return f(std::integral_constant<int, 1>());
        case 2: return f(std::integral_constant<int, 2>());
        case 3: return f(std::integral_constant<int, 3>());
        case 4: return f(std::integral_constant<int, 4>());
        case 5: return f(std::integral_constant<int, 5>());
        default: return f(std::integral_constant<int, 6>());
    }
}

// Call f(row, R) for groups of nearly equal size, at most `most` rows each.
template <class F>
static inline void in_groups(int rows, int most, F&& f) {
    for (int groups = (rows + most - 1) / most, row = 0; groups > 0; groups--) {
        const int size = (rows - row + groups - 1) / groups;
        with_rows(size, [&](auto R) { f(row, R); });
        row += size;
    }
}

static inline Codes codes_of(const Activations& a, const CodeRows& rows, int row, int block) {
    const int64_t blocks = a.columns / SGL_BLOCK, at = row * blocks + block;
    return {rows.q + at * SGL_BLOCK, rows.scale + at, rows.sum + at, rows.offset + at, a.columns, blocks};
}

static inline Unpacked unpacked_at(int format, const LinearScratch& p, int block) {
    return {p.codes + block * unpacked_bytes(format), p.scale + block * PANEL, p.minimum + block * PANEL};
}

static inline void unpack_chunk(int format, const char* from, int blocks, LinearScratch& p) {
    for (int b = 0; b < blocks; b++, from += block_bytes(format)) {
        unpack_codes(format, from, p.codes + b * unpacked_bytes(format));
        unpack_scales(format, from + code_bytes(format), p.scale + b * PANEL);
        if (format != SGL_Q8) unpack_scales(format, from + code_bytes(format) + scale_bytes(format), p.minimum + b * PANEL);
    }
}

// Gather the second codes of a tile's rows, block by block: the panels of the tile go through them again and again.
static SGL_APART void gather_second(const Activations& a, int row, int rows, LinearScratch& p) {
    const int blocks = a.columns / SGL_BLOCK;
    int entries = 0, used = 0;
    std::memset(p.has_second, 0, sizeof(p.has_second));
    for (int b = 0; b < blocks; b++) {
        const uint8_t* fine = a.fine + b * a.fine_stride + row;
        const int before = entries;
        for (int r = 0; r < rows; r += 8) {
            uint64_t word = 0;
            std::memcpy(&word, fine + r, rows - r < 8 ? rows - r : 8);
            for (int i = r; word; i++, word >>= 8) {
                if (!(word & 255)) continue;
                const int64_t from = (int64_t)(row + i) * blocks + b;
                std::memcpy(p.second.q + entries * SGL_BLOCK, a.second.q + from * SGL_BLOCK, SGL_BLOCK);
                p.second.scale[entries] = a.second.scale[from];
                p.second.sum[entries] = a.second.sum[from];
                p.second.offset[entries] = a.second.offset[from];
                p.row[entries++] = (uint8_t)i;
                p.has_second[i] = true;
            }
        }
        if (entries > before) p.used[used] = b, p.begin[used++] = before;
    }
    p.begin[used] = entries;
    p.used[used] = blocks;
    p.blocks_used = used;
}

// What the second codes of the blocks [first, last) add to p.more. `multiply(R, block, codes, sums)` is the product of one block.
template <class F>
static inline void add_second(int& next, int last, int most, LinearScratch& p, F&& multiply) {
    alignas(64) float sums[6 * PANEL] = {};
    for (; p.used[next] < last && next < p.blocks_used; next++) {
        const int begin = p.begin[next];
        in_groups(p.begin[next + 1] - begin, most, [&](int e, auto R) {
            const int at = begin + e;
            multiply(R, p.used[next], Codes{p.second.q + at * SGL_BLOCK, p.second.scale + at, p.second.sum + at, p.second.offset + at, SGL_BLOCK, 1},
                     sums);
            for (int i = 0; i < R(); i++) {
                float* to = p.more + p.row[at + i] * PANEL;
                store(to, add(load(to), load(sums + i * PANEL)));
                store(to + 8, add(load(to + 8), load(sums + i * PANEL + 8)));
            }
        });
    }
}

// The sums of one panel for `rows` rows from `row` on, into p.sums.
static SGL_APART void multiply_panel(const sgl_linear& w, const Activations& a, const char* panel, int row, int rows, LinearScratch& p) {
    if (w.format == SGL_F32 || w.format == SGL_BF16) {
        in_groups(rows, 6, [&](int r, auto R) {
            multiply_values<R()>(w, panel, a.x + (row + r) * a.x_stride, a.x_stride, p.sums + r * PANEL, r ? 0 : 64);
        });
        return;
    }
    const int blocks = w.in / SGL_BLOCK;
    for (int r = 0; p.blocks_used && r < rows; r++)
        if (p.has_second[r]) store(p.more + r * PANEL, zero()), store(p.more + r * PANEL + 8, zero());
    int next_used = 0;
    if (rows <= PACKED_ROWS) {
        in_groups(rows, 4, [&](int r, auto R) {
            multiply_packed<R()>(w.format, panel, codes_of(a, a.first, row + r, 0), blocks, p.sums + r * PANEL);
        });
        if (p.blocks_used) add_second(next_used, blocks, 4, p, [&](auto R, int b, Codes codes, float* sums) {
            multiply_packed<R()>(w.format, panel + (size_t)b * block_bytes(w.format), codes, 1, sums);
        });
    } else {
        std::memset(p.sums, 0, (size_t)rows * PANEL * 4);
        for (int first = 0; first < blocks; first += CHUNK) {
            const int some = blocks - first < CHUNK ? blocks - first : CHUNK;
            const char* from = panel + (size_t)first * block_bytes(w.format);
            const char* next = from + (size_t)some * block_bytes(w.format);
            unpack_chunk(w.format, from, some, p);
            in_groups(rows, GROUP, [&](int r, auto R) {
                const int bytes = r ? 0 : block_bytes(w.format);  // to fetch per block: once
                multiply_unpacked<R()>(w.format, unpacked_at(w.format, p, 0), codes_of(a, a.first, row + r, first), some, p.sums + r * PANEL,
                                       next, bytes);
            });
            if (p.blocks_used) add_second(next_used, first + some, GROUP, p, [&](auto R, int b, Codes codes, float* sums) {
                std::memset(sums, 0, R() * PANEL * 4);
                multiply_unpacked<R()>(w.format, unpacked_at(w.format, p, b - first), codes, 1, sums, nullptr, 0);
            });
        }
    }
    for (int r = 0; p.blocks_used && r < rows; r++) {
        if (!p.has_second[r]) continue;
        float* sums = p.sums + r * PANEL;
        store(sums, add(load(sums), load(p.more + r * PANEL)));
        store(sums + 8, add(load(sums + 8), load(p.more + r * PANEL + 8)));
    }
}

// out[(r - r0) * ld + (c - c0)] = W x + bias for the rows r0..r1 and the channels c0..c1; fastest with c0 a multiple of 16.
// `scratch`: linear_scratch_bytes(in) at a multiple of 64, one per thread.
static void linear_tile(const sgl_linear& w, const Activations& a, int r0, int r1, int c0, int c1, float* out, int64_t ld, void* scratch) {
    LinearScratch& p = place_scratch(scratch, w.in);
    for (int row = r0; row < r1; row += TILE_ROWS) {
        const int rows = r1 - row < TILE_ROWS ? r1 - row : TILE_ROWS;
        if (a.fine) gather_second(a, row, rows, p);
        for (int first = c0 / PANEL * PANEL; first < c1; first += PANEL) {
            multiply_panel(w, a, (const char*)w.data + first / PANEL * panel_bytes(w.format, w.in), row, rows, p);
            const int begin = first < c0 ? c0 : first, end = first + PANEL < c1 ? first + PANEL : c1;
            for (int r = 0; r < rows; r++) {
                float* to = out + (row - r0 + r) * ld - c0;
                const float* sums = p.sums + r * PANEL - first;
                if (w.bias) {
                    for (int c = begin; c < end; c++) to[c] = sums[c] + w.bias[c];
                } else if (end - begin == PANEL) {
                    store(to + first, load(sums + first)), store(to + first + 8, load(sums + first + 8));
                } else {
                    for (int c = begin; c < end; c++) to[c] = sums[c];
                }
            }
        }
    }
}

// Rows and channels of one task; channels is a multiple of 16. Measured with two threads (all linear layers of a 135M Llama in Q4, ms), by tasks per thread:
//   rows    2      4      8     16
//      1    2.7    2.8    3.3    3.5
//     16   13.9   13.0   13.0   13.8
//    512  289    289    295    294
// Four leave less to wait for at the end than two. 32, 64 and 128 rows per tile are alike (within 3 %).
struct Tiling {
    int rows, channels;
};
constexpr int TASKS_PER_THREAD = 4;
static inline Tiling tiling(const sgl_linear& w, int rows, int threads) {
    const int panels = (w.out + PANEL - 1) / PANEL, tasks = threads * TASKS_PER_THREAD;
    const int each = (panels + tasks - 1) / tasks;
    return {rows < TILE_ROWS ? rows : TILE_ROWS, each * PANEL};
}

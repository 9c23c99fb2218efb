// Eight floats, for AVX2 and for any machine. Included inside of a namespace named after the instruction set.
// Every operation has one fixed order, so that a result depends on the instruction set alone.
#if defined(SGL_AVX2)

using F8 = __m256;
static inline F8 load(const float* p) { return _mm256_loadu_ps(p); }
static inline void store(float* p, F8 a) { _mm256_storeu_ps(p, a); }
static inline F8 set1(float a) { return _mm256_set1_ps(a); }
static inline F8 zero() { return _mm256_setzero_ps(); }
static inline F8 add(F8 a, F8 b) { return _mm256_add_ps(a, b); }
static inline F8 sub(F8 a, F8 b) { return _mm256_sub_ps(a, b); }
static inline F8 mul(F8 a, F8 b) { return _mm256_mul_ps(a, b); }
static inline F8 max(F8 a, F8 b) { return _mm256_max_ps(a, b); }
static inline F8 min(F8 a, F8 b) { return _mm256_min_ps(a, b); }
static inline F8 fma(F8 a, F8 b, F8 c) { return _mm256_fmadd_ps(a, b, c); }  // a * b + c
static inline F8 load_half(const uint16_t* p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)); }
static inline void store_half(uint16_t* p, F8 a) {
    _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
static inline F8 load_bf16(const uint16_t* p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16));
}
static inline float sum(F8 a) {
    __m128 x = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}
static inline float largest(F8 a) {
    __m128 x = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    x = _mm_max_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
}
// e^x, relative error below 2e-7 (Cephes' polynomial after reduction by ln 2); x below -87 gives 0, -inf too. NaN stays.
static inline F8 exp(F8 x) {
    const F8 low = set1(-87.0f);
    const F8 in = _mm256_cmp_ps(x, low, _CMP_NLT_UQ);
    x = min(set1(88.0f), max(low, x));  // of a NaN and a number the instructions give the second
    const F8 n = _mm256_round_ps(mul(x, set1(1.44269504088896341f)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    F8 r = fma(n, set1(-0.693359375f), x);
    r = fma(n, set1(2.12194440e-4f), r);
    F8 p = set1(1.9875691500e-4f);
    p = fma(p, r, set1(1.3981999507e-3f));
    p = fma(p, r, set1(8.3334519073e-3f));
    p = fma(p, r, set1(4.1665795894e-2f));
    p = fma(p, r, set1(1.6666665459e-1f));
    p = fma(p, r, set1(5.0000001201e-1f));
    p = add(fma(mul(p, r), r, r), set1(1.0f));
    const __m256i power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return _mm256_and_ps(mul(p, _mm256_castsi256_ps(power)), in);
}
static inline F8 divide(F8 a, F8 b) { return _mm256_div_ps(a, b); }

#else

struct F8 {
    float v[8];
};
#define SGL_EACH for (int i = 0; i < 8; i++)
static inline F8 load(const float* p) { F8 r; SGL_EACH r.v[i] = p[i]; return r; }
static inline void store(float* p, F8 a) { SGL_EACH p[i] = a.v[i]; }
static inline F8 set1(float a) { F8 r; SGL_EACH r.v[i] = a; return r; }
static inline F8 zero() { return set1(0.0f); }
static inline F8 add(F8 a, F8 b) { SGL_EACH a.v[i] += b.v[i]; return a; }
static inline F8 sub(F8 a, F8 b) { SGL_EACH a.v[i] -= b.v[i]; return a; }
static inline F8 mul(F8 a, F8 b) { SGL_EACH a.v[i] *= b.v[i]; return a; }
static inline F8 max(F8 a, F8 b) { SGL_EACH a.v[i] = a.v[i] > b.v[i] ? a.v[i] : b.v[i]; return a; }
static inline F8 min(F8 a, F8 b) { SGL_EACH a.v[i] = a.v[i] < b.v[i] ? a.v[i] : b.v[i]; return a; }
static inline F8 fma(F8 a, F8 b, F8 c) { SGL_EACH c.v[i] += a.v[i] * b.v[i]; return c; }
static inline F8 divide(F8 a, F8 b) { SGL_EACH a.v[i] /= b.v[i]; return a; }
static inline float half_to_float(uint16_t h) {
    const uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = h >> 10 & 31, mantissa = h & 1023;
    uint32_t bits;
    if (exponent == 31) bits = sign | 0x7f800000 | mantissa << 13;
    else if (exponent) bits = sign | (exponent + 112) << 23 | mantissa << 13;
    else { const float f = (float)mantissa * 0x1p-24f; return sign ? -f : f; }
    float f; std::memcpy(&f, &bits, 4); return f;
}
static inline uint16_t float_to_half(float f) {
    uint32_t bits; std::memcpy(&bits, &f, 4);
    const uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
    const float size = std::fabs(f);
    if (!(size < 65520.0f)) return sign | (size != size ? 0x7e00 : 0x7c00);
    if (size < 0x1p-14f) return sign | (uint16_t)std::nearbyint(size * 0x1p24f);
    bits &= 0x7fffffff;
    const uint32_t rounded = bits + 0xfff + (bits >> 13 & 1);
    return sign | (uint16_t)((rounded - (112u << 23)) >> 13);
}
static inline F8 load_half(const uint16_t* p) { F8 r; SGL_EACH r.v[i] = half_to_float(p[i]); return r; }
static inline void store_half(uint16_t* p, F8 a) { SGL_EACH p[i] = float_to_half(a.v[i]); }
static inline F8 load_bf16(const uint16_t* p) {
    F8 r;
    SGL_EACH { const uint32_t bits = (uint32_t)p[i] << 16; std::memcpy(&r.v[i], &bits, 4); }
    return r;
}
static inline float sum(F8 a) {
    const float x0 = a.v[0] + a.v[4], x1 = a.v[1] + a.v[5], x2 = a.v[2] + a.v[6], x3 = a.v[3] + a.v[7];
    return (x0 + x2) + (x1 + x3);
}
static inline float largest(F8 a) { float m = a.v[0]; SGL_EACH m = a.v[i] > m ? a.v[i] : m; return m; }
static inline F8 exp(F8 a) { SGL_EACH a.v[i] = a.v[i] < -87.0f ? 0.0f : std::exp(a.v[i]); return a; }

#endif

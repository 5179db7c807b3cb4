/* Kernels for one instruction set. native.c includes this file several times, each time with
 *   ISA(name)  the name's variant,  VW  floats in a vector,  LEVEL  0 portable, 1 AVX2 and FMA, 2 AVX-512,
 *   MR1..MR4   rows of a product's register tile that is 1 to NV vectors wide,  NV  vectors of the widest.
 * Vectors are GCC's and Clang's own, so that the same source serves every processor. */

typedef float ISA(vf) __attribute__((vector_size(VW * 4)));
typedef int ISA(vi) __attribute__((vector_size(VW * 4)));
typedef float ISA(vu) __attribute__((vector_size(VW * 4), aligned(4), may_alias));
#define VF ISA(vf)
#define VI ISA(vi)
#define LOAD(p) ((VF) * (const ISA(vu) *)(p))
#define STORE(p, v) (*(ISA(vu) *)(p) = (ISA(vu))(v))

ALWAYS VF ISA(splat)(float x) { return (VF){0} + x; }
ALWAYS VF ISA(select)(VI mask, VF yes, VF no) { return (VF)(((VI)yes & mask) | ((VI)no & ~mask)); }

/* Of the four below, those of two arguments return the second where either is a NaN. The first `n` floats, 1 to VW, of a
 * vector are read and written without a touch of what follows them. */
#if LEVEL == 2
ALWAYS VF ISA(smaller)(VF x, VF y) { return (VF)_mm512_min_ps((__m512)x, (__m512)y); }
ALWAYS VF ISA(larger)(VF x, VF y) { return (VF)_mm512_max_ps((__m512)x, (__m512)y); }
ALWAYS float ISA(total)(VF x) { return _mm512_reduce_add_ps((__m512)x); }
ALWAYS VF ISA(get)(const float *p, int n) { return (VF)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p); }
ALWAYS void ISA(put)(float *p, int n, VF x) { _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), (__m512)x); }
#elif LEVEL == 1
ALWAYS VF ISA(smaller)(VF x, VF y) { return (VF)_mm256_min_ps((__m256)x, (__m256)y); }
ALWAYS VF ISA(larger)(VF x, VF y) { return (VF)_mm256_max_ps((__m256)x, (__m256)y); }
ALWAYS float ISA(total)(VF x) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128((__m256)x), _mm256_extractf128_ps((__m256)x, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}
ALWAYS VF ISA(get)(const float *p, int n) {
    static const int ones[16] = {-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0};
    return (VF)_mm256_maskload_ps(p, _mm256_loadu_si256((const __m256i *)(const void *)(ones + 8 - n)));
}
ALWAYS void ISA(put)(float *p, int n, VF x) { /* masked stores take AMD's processors some twenty cycles */
    __m128 part = _mm256_castps256_ps128((__m256)x);
    if (n == 8) {
        _mm256_storeu_ps(p, (__m256)x);
        return;
    }
    if (n & 4) {
        _mm_storeu_ps(p, part);
        part = _mm256_extractf128_ps((__m256)x, 1);
        p += 4;
    }
    if (n & 2) {
        _mm_storel_pi((__m64 *)(void *)p, part);
        part = _mm_movehl_ps(part, part);
        p += 2;
    }
    if (n & 1) _mm_store_ss(p, part);
}
#else
ALWAYS VF ISA(smaller)(VF x, VF y) { return ISA(select)(x < y, x, y); }
ALWAYS VF ISA(larger)(VF x, VF y) { return ISA(select)(x > y, x, y); }
ALWAYS float ISA(total)(VF x) { return (x[0] + x[2]) + (x[1] + x[3]); }
ALWAYS VF ISA(get)(const float *p, int n) {
    return (VF){p[0], n > 1 ? p[1] : 0.0f, n > 2 ? p[2] : 0.0f, n > 3 ? p[3] : 0.0f};
}
ALWAYS void ISA(put)(float *p, int n, VF x) {
    p[0] = x[0];
    if (n > 1) p[1] = x[1];
    if (n > 2) p[2] = x[2];
    if (n > 3) p[3] = x[3];
}
#endif

/* --- elementary functions: to 1 unit in the last place, quotients to 3; NaNs pass ----------------------------- */

/* e^x: x = n log 2 + r, a polynomial for e^r (S. Moshier, Cephes), and 2^n in two factors, either of which is normal. */
ALWAYS VF ISA(exp)(VF x) {
    x = ISA(smaller)(ISA(splat)(89.0f), ISA(larger)(ISA(splat)(-104.0f), x));
    VF shifted = x * 1.44269504088896341f + 12582912.0f; /* 1.5 * 2^23: what is left of the fraction is a whole number */
    VF whole = shifted - 12582912.0f;
    VF r = x - whole * 0.693359375f;
    r = r - whole * -2.12194440e-4f;
    VF p = ISA(splat)(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
#if LEVEL == 2
    return (VF)_mm512_scalef_ps((__m512)p, (__m512)whole);
#else
    VI n = (VI)shifted - 0x4b400000, half = n >> 1;
    return p * (VF)((half + 127) << 23) * (VF)((n - half + 127) << 23);
#endif
}

/* log x of a normal number above zero: x = 2^n m, m in [sqrt 1/2, sqrt 2), a polynomial for log m (Cephes). */
ALWAYS VF ISA(log)(VF x) {
    VI bits = (VI)x - 0x3f3504f3; /* sqrt 1/2 */
    VF n = __builtin_convertvector(bits >> 23, VF);
    VF m = (VF)((bits & 0x007fffff) + 0x3f3504f3) - 1.0f, z = m * m;
    VF p = ISA(splat)(7.0376836292e-2f);
    p = p * m + -1.1514610310e-1f;
    p = p * m + 1.1676998740e-1f;
    p = p * m + -1.2420140846e-1f;
    p = p * m + 1.4249322787e-1f;
    p = p * m + -1.6668057665e-1f;
    p = p * m + 2.0000714765e-1f;
    p = p * m + -2.4999993993e-1f;
    p = p * m + 3.3333331174e-1f;
    VF y = n * -2.12194440e-4f + p * m * z;
    y = y - 0.5f * z;
    return ISA(select)(x == x, n * 0.693359375f + (m + y), x);
}

/* log(1 + e^x) = max(x, 0) + log(1 + e), e = e^-|x|; what 1 + e loses of e is given back to first order. */
ALWAYS VF ISA(softplus)(VF x) {
    VF zero = ISA(splat)(0.0f), e = ISA(exp)(ISA(select)(x > zero, -x, x)), u = e + 1.0f;
    return ISA(larger)(zero, x) + (ISA(log)(u) + (e - (u - 1.0f)) / u);
}

/* tanh |x| = t / (t + 2) with t = e^2|x| - 1 = 2^n (e^2s - 1) + (2^n - 1), |x| = n log 2 / 2 + s, which keeps the digits of
 * small x; the polynomial for e^2s - 1 is fitted to 1e-08 by Lawson's iteration. Beyond 9.1 it is 1. */
ALWAYS VF ISA(tanh)(VF x) {
    VI sign = (VI)x & ((VI){0} + INT_MIN);
    VF y = ISA(smaller)(ISA(splat)(9.1f), (VF)((VI)x ^ sign)); /* a NaN is passed on */
    VF shifted = y * 2.88539008177792681f + 12582912.0f, s = y - (shifted - 12582912.0f) * 0.34657359027997265f;
    VF p = ISA(splat)(8.884798210e-02f);
    p = p * s + 2.677327376e-01f;
    p = p * s + 6.666752634e-01f;
    p = p * s + 1.333323414e+00f;
    p = p * s + 1.999999925e+00f;
    p = p * (s * s) + (s + s);
    VF power = (VF)(((VI)shifted + (127 - 0x4b400000)) << 23);
    VF t = p * power + (power - 1.0f);
    return (VF)((VI)(t / (t + 2.0f)) | sign);
}

ALWAYS VF ISA(sigmoid)(VF x) { return 1.0f / (1.0f + ISA(exp)(-x)); }

ALWAYS VF ISA(activation)(int code, VF y) {
    VF zero = ISA(splat)(0.0f);
    switch (code) {
    case 1: return ISA(tanh)(y);
    case 2: return ISA(larger)(zero, y);
    case 3: {
        /* e^x - 1 loses all digits near zero, where its Taylor polynomial has them. */
        VF near = y * (1.0f + y * (0.5f + y * (0.166666667f + y * (0.0416666667f + y * 0.00833333333f))));
        VF far = ISA(exp)(ISA(smaller)(zero, y)) - 1.0f;
        return ISA(select)(y > zero, y, ISA(select)(y > -0.1f, near, far));
    }
    case 4: return ISA(select)(y < zero, y * 0.01f, y);
    case 5: return ISA(sigmoid)(y);
    default: return y;
    }
}

/* f'(z) from y = f(z) */
ALWAYS VF ISA(slope)(int code, VF y) {
    VF zero = ISA(splat)(0.0f), one = ISA(splat)(1.0f);
    switch (code) {
    case 1: return 1.0f - y * y;
    case 2: return ISA(select)(y > zero, one, zero);
    case 3: return ISA(smaller)(zero, y) + 1.0f;
    case 4: return ISA(select)(y > zero, one, ISA(splat)(0.01f));
    case 5: return y * (1.0f - y);
    default: return one;
    }
}

#define BY_CODE(call) \
    switch (code) {   \
    case 0: call(0) break; case 1: call(1) break; case 2: call(2) break; \
    case 3: call(3) break; case 4: call(4) break; case 5: call(5) break; \
    }

ALWAYS void ISA(activate_as)(const int code, float *y, ptrdiff_t count) {
    ptrdiff_t i = 0;
    for (; i + VW <= count; i += VW) STORE(y + i, ISA(activation)(code, LOAD(y + i)));
    if (i < count) ISA(put)(y + i, (int)(count - i), ISA(activation)(code, ISA(get)(y + i, (int)(count - i))));
}

ALWAYS void ISA(through_as)(const int code, const float *y, const float *g, float *out, ptrdiff_t count) {
    ptrdiff_t i = 0;
    for (; i + VW <= count; i += VW) STORE(out + i, LOAD(g + i) * ISA(slope)(code, LOAD(y + i)));
    if (i < count) {
        int n = (int)(count - i);
        ISA(put)(out + i, n, ISA(get)(g + i, n) * ISA(slope)(code, ISA(get)(y + i, n)));
    }
}

/* y = f(y) */
static void ISA(activate)(int code, float *y, ptrdiff_t count) {
#define CALL(c) ISA(activate_as)(c, y, count);
    BY_CODE(CALL)
#undef CALL
}

/* out = g f'(y) */
static void ISA(through)(int code, const float *y, const float *g, float *out, ptrdiff_t count) {
#define CALL(c) ISA(through_as)(c, y, g, out, count);
    BY_CODE(CALL)
#undef CALL
}
#undef BY_CODE

#define MAP(name, function)                                                                                       \
    static void ISA(name)(const float *x, float *out, ptrdiff_t count) {                                          \
        ptrdiff_t i = 0;                                                                                          \
        for (; i + VW <= count; i += VW) STORE(out + i, ISA(function)(LOAD(x + i)));                              \
        if (i < count) ISA(put)(out + i, (int)(count - i), ISA(function)(ISA(get)(x + i, (int)(count - i))));     \
    }
MAP(exp_of, exp)
MAP(log_of, log)
MAP(softplus_of, softplus)
MAP(sigmoid_of, sigmoid)
#undef MAP

/* --- products ------------------------------------------------------------------------------------------------------ */

/* A register tile: mr rows by nv vectors, constants wherever this is called; `edge` floats of the last vector count.
 * Without masked loads (LEVEL < 2) b has whole vectors. */
ALWAYS void ISA(tile)(const int mr, const int nv, ptrdiff_t depth, const float *a, ptrdiff_t a_row, ptrdiff_t a_col,
                      const float *b, ptrdiff_t b_row, float *c, ptrdiff_t c_row, const float *start, int add, int relu,
                      int edge) {
    VF sum[MR1][NV];
#pragma GCC unroll 16
    for (int i = 0; i < mr; i++)
#pragma GCC unroll 4
        for (int j = 0; j < nv; j++) {
            if (!start) sum[i][j] = ISA(splat)(0.0f);
            else if (j < nv - 1) sum[i][j] = LOAD(start + j * VW);
            else sum[i][j] = ISA(get)(start + j * VW, edge);
        }
    for (ptrdiff_t k = 0; k < depth; k++) {
        VF row[NV];
#pragma GCC unroll 4
        for (int j = 0; j < nv - 1; j++) row[j] = LOAD(b + j * VW);
        row[nv - 1] = LEVEL < 2 ? LOAD(b + (nv - 1) * VW) : ISA(get)(b + (nv - 1) * VW, edge);
#pragma GCC unroll 16
        for (int i = 0; i < mr; i++) {
            float scalar = a[i * a_row + k * a_col];
#pragma GCC unroll 4
            for (int j = 0; j < nv; j++) sum[i][j] += scalar * row[j];
        }
        b += b_row;
    }
#pragma GCC unroll 16
    for (int i = 0; i < mr; i++)
#pragma GCC unroll 4
        for (int j = 0; j < nv; j++) {
            float *to = c + i * c_row + j * VW;
            int whole = j < nv - 1;
            if (add) sum[i][j] += whole ? LOAD(to) : ISA(get)(to, edge);
            if (relu) sum[i][j] = ISA(larger)(ISA(splat)(0.0f), sum[i][j]);
            if (whole) STORE(to, sum[i][j]);
            else ISA(put)(to, edge, sum[i][j]);
        }
}

/* What is done to a tile once it is summed, while it is in the nearest cache. */
static __attribute__((noinline)) void ISA(finish)(const struct product *p, ptrdiff_t row, ptrdiff_t column, ptrdiff_t rows,
                                                  ptrdiff_t columns) {
    float *c = p->c + row * p->c_row + column;
    if (columns == p->c_row && !p->rows) columns *= rows, rows = 1;
    for (ptrdiff_t i = 0; i < rows; i++) {
        float *to = c + i * p->c_row;
        if (p->activation) ISA(activate)(p->activation, to, columns);
        if (p->slope) {
            ptrdiff_t from = p->rows ? p->rows[row + i] : row + i;
            ISA(through)(p->slope, p->y + from * p->c_row + column, to, to, columns);
        }
    }
}

ALWAYS void ISA(panel)(const int mr, const int nv, const struct product *p, ptrdiff_t from, ptrdiff_t to, ptrdiff_t j,
                       ptrdiff_t k, ptrdiff_t depth, const float *b, ptrdiff_t b_row, int edge) {
    const float *start = p->bias && k == 0 ? p->bias + j : NULL;
    int add = p->add || k > 0, last = k + depth >= p->depth, relu = last && p->activation == 2;
    ptrdiff_t columns = (nv - 1) * VW + edge;
    for (ptrdiff_t i = from; i < to; i += mr) {
        const float *a = p->a + i * p->a_row + k * p->a_col;
        float *c = p->c + i * p->c_row + j;
#define ROWS(m)                                                                                                         \
    case m:                                                                                                             \
        if (m <= mr) ISA(tile)(m, nv, depth, a, p->a_row, p->a_col, b, b_row, c, p->c_row, start, add, relu, edge);     \
        break;
        switch (to - i < mr ? to - i : mr) {
            ROWS(1) ROWS(2) ROWS(3) ROWS(4) ROWS(5) ROWS(6) ROWS(7) ROWS(8) ROWS(9) ROWS(10) ROWS(11) ROWS(12)
        }
#undef ROWS
        if (last && (p->slope || (p->activation && p->activation != 2)))
            ISA(finish)(p, i, j, to - i < mr ? to - i : mr, columns);
    }
}

/* pack[k][j] = b[j * b_col + k] of `deep` by `width`, in rows of `stride` */
static void ISA(turn)(const float *b, ptrdiff_t b_col, ptrdiff_t deep, ptrdiff_t width, float *pack, ptrdiff_t stride) {
    ptrdiff_t done_j = 0;
#if LEVEL
    for (; done_j + 8 <= width; done_j += 8) {
        const float *from = b + done_j * b_col;
        ptrdiff_t k = 0;
        for (; k + 8 <= deep; k += 8) {
            __m256 r[8], s[8];
#pragma GCC unroll 8
            for (int i = 0; i < 8; i++) r[i] = _mm256_loadu_ps(from + i * b_col + k);
#pragma GCC unroll 4
            for (int i = 0; i < 8; i += 2) s[i] = _mm256_unpacklo_ps(r[i], r[i + 1]), s[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
#pragma GCC unroll 2
            for (int i = 0; i < 8; i += 4) {
                r[i] = _mm256_shuffle_ps(s[i], s[i + 2], 0x44), r[i + 1] = _mm256_shuffle_ps(s[i], s[i + 2], 0xee);
                r[i + 2] = _mm256_shuffle_ps(s[i + 1], s[i + 3], 0x44), r[i + 3] = _mm256_shuffle_ps(s[i + 1], s[i + 3], 0xee);
            }
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++) {
                _mm256_storeu_ps(pack + (k + i) * stride + done_j, _mm256_permute2f128_ps(r[i], r[i + 4], 0x20));
                _mm256_storeu_ps(pack + (k + i + 4) * stride + done_j, _mm256_permute2f128_ps(r[i], r[i + 4], 0x31));
            }
        }
        for (; k < deep; k++)
            for (int i = 0; i < 8; i++) pack[k * stride + done_j + i] = from[i * b_col + k];
    }
#endif
    for (ptrdiff_t k0 = 0; k0 < deep; k0 += 16)
        for (ptrdiff_t j = done_j; j < width; j++)
            for (ptrdiff_t k = k0; k < deep && k < k0 + 16; k++) pack[k * stride + j] = b[j * b_col + k];
    if (width < stride)
        for (ptrdiff_t k = 0; k < deep; k++) memset(pack + k * stride + width, 0, (stride - width) * 4);
}

/* A product of one column: four rows of A at a time with the column, which is contiguous as they are. */
static void ISA(dots)(const struct product *p, ptrdiff_t from, ptrdiff_t to) {
    float bias = p->bias ? *p->bias : 0.0f;
    for (ptrdiff_t i = from; i < to; i += 4) {
        const float *a[4];
        VF sum[4];
#pragma GCC unroll 4
        for (int r = 0; r < 4; r++) a[r] = p->a + (i + r < to ? i + r : to - 1) * p->a_row, sum[r] = ISA(splat)(0.0f);
        ptrdiff_t k = 0;
        for (; k + VW <= p->depth; k += VW) {
            VF column = LOAD(p->b + k);
#pragma GCC unroll 4
            for (int r = 0; r < 4; r++) sum[r] += LOAD(a[r] + k) * column;
        }
        if (k < p->depth) {
            VF column = ISA(get)(p->b + k, (int)(p->depth - k));
#pragma GCC unroll 4
            for (int r = 0; r < 4; r++) sum[r] += ISA(get)(a[r] + k, (int)(p->depth - k)) * column;
        }
        for (int r = 0; r < 4 && i + r < to; r++) {
            float value = ISA(total)(sum[r]) + bias, *c = p->c + (i + r) * p->c_row;
            *c = p->add ? *c + value : value;
        }
    }
    if (p->activation || p->slope) ISA(finish)(p, from, 0, to - from, 1);
}

/* Rows `from` to `to` and columns `left` to `right` of a product. */
static void ISA(multiply)(const struct product *p, ptrdiff_t from, ptrdiff_t to, ptrdiff_t left, ptrdiff_t right,
                          float *pack) {
    if (p->columns == 1 && p->a_col == 1 && p->b_row == 1 && p->depth > 0) {
        ISA(dots)(p, from, to);
        return;
    }
    for (ptrdiff_t k = 0; k == 0 || k < p->depth; k += DEPTH) {
        ptrdiff_t deep = p->depth - k < DEPTH ? p->depth - k : DEPTH;
        for (ptrdiff_t j = left; j < right; j += NV * VW) {
            ptrdiff_t width = right - j < NV * VW ? right - j : NV * VW;
            int vectors = (int)((width + VW - 1) / VW), edge = (int)(width - (vectors - 1) * VW);
            const float *b = p->b + k * p->b_row + j * p->b_col;
            ptrdiff_t b_row = p->b_row;
            if (p->b_col != 1) {
                ISA(turn)(b, p->b_col, deep, width, pack, vectors * VW);
                b = pack, b_row = vectors * VW;
            } else if (LEVEL < 2 && edge != VW) {
                /* Whole vectors must not read past a row's end. Elsewhere reading B in place is faster than any packing. */
                for (ptrdiff_t r = 0; r < deep; r++) {
                    float *row = pack + r * vectors * VW;
                    ptrdiff_t i = 0;
                    for (; i + VW <= width; i += VW) STORE(row + i, LOAD(b + r * b_row + i));
                    if (i < width) STORE(row + i, ISA(get)(b + r * b_row + i, edge));
                }
                b = pack, b_row = vectors * VW;
            }
            switch (vectors) {
            case 1: ISA(panel)(MR1, 1, p, from, to, j, k, deep, b, b_row, edge); break;
            case 2: ISA(panel)(MR2, 2, p, from, to, j, k, deep, b, b_row, edge); break;
#if NV > 2
            case 3: ISA(panel)(MR3, 3, p, from, to, j, k, deep, b, b_row, edge); break;
            case 4: ISA(panel)(MR4, 4, p, from, to, j, k, deep, b, b_row, edge); break;
#endif
            }
        }
    }
}

/* out[j] = sum_i g[i, j] for columns `left` to `right`, in blocks of rows so that long sums keep their digits */
static void ISA(column_sums)(ptrdiff_t rows, ptrdiff_t left, ptrdiff_t right, const float *g, ptrdiff_t g_row, float *out) {
    for (ptrdiff_t i = 0; i == 0 || i < rows; i += DEPTH) {
        ptrdiff_t to = rows - i < DEPTH ? rows : i + DEPTH, j = left;
        for (; j + 4 * VW <= right; j += 4 * VW) {
            VF sum[4];
#pragma GCC unroll 4
            for (int v = 0; v < 4; v++) sum[v] = ISA(splat)(0.0f);
            for (ptrdiff_t r = i; r < to; r++)
#pragma GCC unroll 4
                for (int v = 0; v < 4; v++) sum[v] += LOAD(g + r * g_row + j + v * VW);
#pragma GCC unroll 4
            for (int v = 0; v < 4; v++) STORE(out + j + v * VW, i ? LOAD(out + j + v * VW) + sum[v] : sum[v]);
        }
        for (; j < right; j += VW) {
            int n = (int)(right - j < VW ? right - j : VW);
            VF sum = ISA(splat)(0.0f);
            for (ptrdiff_t r = i; r < to; r++) sum += ISA(get)(g + r * g_row + j, n);
            ISA(put)(out + j, n, i ? ISA(get)(out + j, n) + sum : sum);
        }
    }
}

/* --- the rest ------------------------------------------------------------------------------------------------------ */

static double ISA(sum_of_squares)(const float *x, ptrdiff_t count) {
    double total = 0.0;
    for (ptrdiff_t from = 0; from < count; from += 4096) {
        ptrdiff_t n = count - from < 4096 ? count - from : 4096, i = 0;
        VF sum[4];
#pragma GCC unroll 4
        for (int v = 0; v < 4; v++) sum[v] = ISA(splat)(0.0f);
        for (; i + 4 * VW <= n; i += 4 * VW)
#pragma GCC unroll 4
            for (int v = 0; v < 4; v++) {
                VF u = LOAD(x + from + i + v * VW);
                sum[v] += u * u;
            }
        total += ISA(total)((sum[0] + sum[1]) + (sum[2] + sum[3]));
        for (; i < n; i++) total += (double)x[from + i] * x[from + i];
    }
    return total;
}

/* Whether no word has all bits of its exponent set, as those of infinities and NaNs have. */
static int ISA(finite32)(const uint32_t *x, ptrdiff_t count) {
    uint32_t found = 0;
    for (ptrdiff_t i = 0; i < count; i++) found |= (x[i] & 0x7f800000u) == 0x7f800000u;
    return !found;
}

static int ISA(finite64)(const uint64_t *x, ptrdiff_t count) {
    uint64_t found = 0;
    for (ptrdiff_t i = 0; i < count; i++) found |= (x[i] & 0x7ff0000000000000u) == 0x7ff0000000000000u;
    return !found;
}

static void ISA(adam)(float *restrict theta, const float *restrict grad, float *restrict first, float *restrict second,
                      ptrdiff_t count, const struct adam *c) {
    float rate = c->rate, root = c->root, keep1 = c->keep1, beta2 = c->beta2, keep2 = c->keep2, epsilon = c->epsilon;
    float scale = c->scale;
    for (ptrdiff_t i = 0; i < count; i++) {
        float g = grad[i] * scale, m = first[i] + keep1 * (g - first[i]), v = beta2 * second[i] + keep2 * (g * g);
        first[i] = m;
        second[i] = v;
        theta[i] -= rate * (m / (__builtin_sqrtf(v) * root + epsilon));
    }
}

static void ISA(polyak)(const float *restrict theta, float *restrict target, ptrdiff_t count, float tau) {
    float keep = 1.0f - tau;
    for (ptrdiff_t i = 0; i < count; i++) target[i] = target[i] * keep + theta[i] * tau;
}

/* a = tanh(mean + sigma e) and each term of -log pi, elementwise; whole vectors, so all arrays have room for one more. */
static void ISA(squash)(ptrdiff_t count, const float *mean, const float *log_std, const float *noise, int exact,
                        float *actions, float *terms) {
    for (ptrdiff_t i = 0; i < count; i += VW) {
        VF s = ISA(smaller)(ISA(splat)(2.0f), ISA(larger)(ISA(splat)(-20.0f), LOAD(log_std + i))), e = LOAD(noise + i);
        VF u = LOAD(mean + i) + ISA(exp)(s) * e, a = ISA(tanh)(u), term = 0.5f * e * e + s + (float)HALF_LOG_2PI;
        term += exact ? 2.0f * (0.693147181f - u - ISA(softplus)(-2.0f * u)) : ISA(log)(1.0f - a * a + 1e-6f);
        STORE(actions + i, a);
        STORE(terms + i, term);
    }
}

static const struct kernels ISA(kernels) = {
    ISA(activate), ISA(through), ISA(exp_of),        ISA(log_of),         ISA(softplus_of), ISA(sigmoid_of), ISA(multiply),
    ISA(squash),   ISA(adam),    ISA(polyak),        ISA(column_sums),    ISA(sum_of_squares), ISA(finite32), ISA(finite64),
    NV * VW};

#undef VF
#undef VI
#undef LOAD
#undef STORE

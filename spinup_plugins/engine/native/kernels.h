/* Kernels for one instruction set. native.c includes this file several times, each time with
 *   ISA(name)  the name's variant,  VW  floats in a vector,  MR, NV  rows and vectors of a product's register tile.
 * Vectors are GCC's and Clang's own, so that the same source serves every processor. */

typedef float ISA(vf) __attribute__((vector_size(VW * 4)));
typedef int ISA(vi) __attribute__((vector_size(VW * 4)));
typedef float ISA(vu) __attribute__((vector_size(VW * 4), aligned(4), may_alias));
#define VF ISA(vf)
#define VI ISA(vi)
#define LOAD(p) ((VF) * (const ISA(vu) *)(p))
#define STORE(p, v) (*(ISA(vu) *)(p) = (ISA(vu))(v))
#define ALWAYS static inline __attribute__((always_inline))

ALWAYS VF ISA(splat)(float x) { return (VF){0} + x; }
ALWAYS VF ISA(select)(VI mask, VF yes, VF no) { return (VF)(((VI)yes & mask) | ((VI)no & ~mask)); }

/* e^x to about 1 ulp, x within [-87, 88]: x = n log 2 + r, a polynomial for e^r (S. Moshier, Cephes). */
ALWAYS VF ISA(exp)(VF x) {
    x = ISA(select)(x > 88.0f, ISA(splat)(88.0f), x);
    x = ISA(select)(x < -87.0f, ISA(splat)(-87.0f), x);
    VF shifted = x * 1.44269504088896341f;
    VI n = __builtin_convertvector(shifted + ISA(select)(shifted < 0.0f, ISA(splat)(-0.5f), ISA(splat)(0.5f)), VI);
    VF nf = __builtin_convertvector(n, VF);
    VF r = x - nf * 0.693359375f;
    r = r - nf * -2.12194440e-4f;
    VF p = ISA(splat)(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    return p * (VF)((n + 127) << 23);
}

/* tanh as a quotient of polynomials, odd over even, to a few ulp; the coefficients are Eigen's (MathFunctionsImpl.h). */
ALWAYS VF ISA(tanh)(VF x) {
    const float end = 7.90531110763549805f; /* beyond it tanh is 1 in single precision */
    VF y = ISA(select)(x > end, ISA(splat)(end), x);
    y = ISA(select)(y < -end, ISA(splat)(-end), y);
    VF z = y * y;
    VF p = ISA(splat)(-2.76076847742355e-16f);
    p = p * z + 2.00018790482477e-13f;
    p = p * z + -8.60467152213735e-11f;
    p = p * z + 5.12229709037114e-08f;
    p = p * z + 1.48572235717979e-05f;
    p = p * z + 6.37261928875436e-04f;
    p = p * z + 4.89352455891786e-03f;
    VF q = ISA(splat)(1.19825839466702e-06f);
    q = q * z + 1.18534705686654e-04f;
    q = q * z + 2.26843463243900e-03f;
    q = q * z + 4.89352518554385e-03f;
    VF size = ISA(select)(x < 0.0f, -x, x);
    return ISA(select)(size < 4e-4f, x, y * p / q); /* a NaN passes through both comparisons into the quotient */
}

ALWAYS VF ISA(activation)(int code, VF y) {
    VF zero = ISA(splat)(0.0f);
    switch (code) {
    case 1: return ISA(tanh)(y);
    case 2: return ISA(select)(y < zero, zero, y);
    case 3: {
        /* e^x - 1 loses all digits near zero, where its Taylor polynomial has them. */
        VF near = y * (1.0f + y * (0.5f + y * (0.166666667f + y * (0.0416666667f + y * 0.00833333333f))));
        VF far = ISA(exp)(ISA(select)(y > zero, zero, y)) - 1.0f;
        return ISA(select)(y > zero, y, ISA(select)(y > -0.1f, near, far));
    }
    case 4: return ISA(select)(y < zero, y * 0.01f, y);
    case 5: return 1.0f / (1.0f + ISA(exp)(-y));
    default: return y;
    }
}

/* f'(z) from y = f(z) */
ALWAYS VF ISA(slope)(int code, VF y) {
    VF zero = ISA(splat)(0.0f), one = ISA(splat)(1.0f);
    switch (code) {
    case 1: return 1.0f - y * y;
    case 2: return ISA(select)(y > zero, one, zero);
    case 3: return ISA(select)(y > zero, one, y + 1.0f);
    case 4: return ISA(select)(y > zero, one, ISA(splat)(0.01f));
    case 5: return y * (1.0f - y);
    default: return one;
    }
}

/* y = f(y); a ragged end goes through a vector of its own */
ALWAYS void ISA(activate_as)(const int code, float *y, ptrdiff_t count) {
    ptrdiff_t i = 0;
    for (; i + VW <= count; i += VW) STORE(y + i, ISA(activation)(code, LOAD(y + i)));
    if (i < count) {
        float end[VW] = {0};
        memcpy(end, y + i, (count - i) * 4);
        STORE(end, ISA(activation)(code, LOAD(end)));
        memcpy(y + i, end, (count - i) * 4);
    }
}

/* out = g f'(y) */
ALWAYS void ISA(through_as)(const int code, const float *y, const float *g, float *out, ptrdiff_t count) {
    ptrdiff_t i = 0;
    for (; i + VW <= count; i += VW) STORE(out + i, LOAD(g + i) * ISA(slope)(code, LOAD(y + i)));
    if (i < count) {
        float end_y[VW] = {0}, end_g[VW] = {0};
        memcpy(end_y, y + i, (count - i) * 4);
        memcpy(end_g, g + i, (count - i) * 4);
        STORE(end_g, LOAD(end_g) * ISA(slope)(code, LOAD(end_y)));
        memcpy(out + i, end_g, (count - i) * 4);
    }
}

static void ISA(activate)(int code, float *y, ptrdiff_t count) {
    switch (code) {
    case 1: ISA(activate_as)(1, y, count); break;
    case 2: ISA(activate_as)(2, y, count); break;
    case 3: ISA(activate_as)(3, y, count); break;
    case 4: ISA(activate_as)(4, y, count); break;
    case 5: ISA(activate_as)(5, y, count); break;
    }
}

static void ISA(through)(int code, const float *y, const float *g, float *out, ptrdiff_t count) {
    switch (code) {
    case 0: ISA(through_as)(0, y, g, out, count); break;
    case 1: ISA(through_as)(1, y, g, out, count); break;
    case 2: ISA(through_as)(2, y, g, out, count); break;
    case 3: ISA(through_as)(3, y, g, out, count); break;
    case 4: ISA(through_as)(4, y, g, out, count); break;
    case 5: ISA(through_as)(5, y, g, out, count); break;
    }
}

/* A register tile of the product: mr rows by nv vectors; both are constants wherever this is called. */
ALWAYS void ISA(tile)(const int mr, const int nv, ptrdiff_t depth, const float *a, ptrdiff_t a_row, ptrdiff_t a_col,
                      const float *b, ptrdiff_t b_row, float *c, ptrdiff_t c_row, const float *start, int add, int relu,
                      ptrdiff_t ragged) {
    VF sum[MR][NV];
#pragma GCC unroll 8
    for (int i = 0; i < mr; i++)
#pragma GCC unroll 4
        for (int j = 0; j < nv; j++) sum[i][j] = start ? LOAD(start + j * VW) : ISA(splat)(0.0f);
    for (ptrdiff_t k = 0; k < depth; k++) {
        VF row[NV];
#pragma GCC unroll 4
        for (int j = 0; j < nv; j++) row[j] = LOAD(b + k * b_row + j * VW);
#pragma GCC unroll 8
        for (int i = 0; i < mr; i++) {
            float scalar = a[i * a_row + k * a_col];
#pragma GCC unroll 4
            for (int j = 0; j < nv; j++) sum[i][j] += scalar * row[j];
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < mr; i++)
#pragma GCC unroll 4
        for (int j = 0; j < nv; j++) {
            float *to = c + i * c_row + j * VW;
            if (ragged && j == nv - 1) { /* the last vector hangs over the matrix's edge */
                float buffer[VW] = {0};
                if (add) {
                    memcpy(buffer, to, ragged * 4);
                    sum[i][j] += LOAD(buffer);
                }
                if (relu) sum[i][j] = ISA(select)(sum[i][j] < 0.0f, ISA(splat)(0.0f), sum[i][j]);
                STORE(buffer, sum[i][j]);
                memcpy(to, buffer, ragged * 4);
                continue;
            }
            if (add) sum[i][j] += LOAD(to);
            if (relu) sum[i][j] = ISA(select)(sum[i][j] < 0.0f, ISA(splat)(0.0f), sum[i][j]);
            STORE(to, sum[i][j]);
        }
}

ALWAYS void ISA(panel)(const int nv, ptrdiff_t rows, ptrdiff_t depth, const float *a, ptrdiff_t a_row, ptrdiff_t a_col,
                       const float *b, ptrdiff_t b_row, float *c, ptrdiff_t c_row, const float *start, int add, int relu,
                       ptrdiff_t ragged) {
    ptrdiff_t i = 0;
    for (; i + MR <= rows; i += MR)
        ISA(tile)(MR, nv, depth, a + i * a_row, a_row, a_col, b, b_row, c + i * c_row, c_row, start, add, relu, ragged);
#define LEFT(m)                                                                                                   \
    case m:                                                                                                       \
        ISA(tile)(m, nv, depth, a + i * a_row, a_row, a_col, b, b_row, c + i * c_row, c_row, start, add, relu, ragged); \
        break;
    switch (rows - i) {
        LEFT(1) LEFT(2) LEFT(3)
#if MR > 4
        LEFT(4) LEFT(5)
#endif
    }
#undef LEFT
}

/* C (rows, columns) = [C +] A (rows, depth) B (depth, columns) [+ bias], then ReLU where it is asked for.
 * A has any strides, B and C are row-major. `pack` has room for (DEPTH + 1) * NV * VW floats. */
static void ISA(product)(ptrdiff_t rows, ptrdiff_t columns, ptrdiff_t depth, const float *a, ptrdiff_t a_row,
                         ptrdiff_t a_col, const float *b, ptrdiff_t b_row, float *c, ptrdiff_t c_row, const float *bias,
                         int add, int relu, float *pack) {
    for (ptrdiff_t k = 0; k == 0 || k < depth; k += DEPTH) {
        ptrdiff_t deep = depth - k < DEPTH ? depth - k : DEPTH;
        int more = add || k > 0, last = k + DEPTH >= depth;
        for (ptrdiff_t j = 0; j < columns; j += NV * VW) {
            ptrdiff_t width = columns - j < NV * VW ? columns - j : NV * VW;
            int vectors = (int)((width + VW - 1) / VW);
            ptrdiff_t ragged = width % VW;
            const float *from = b + k * b_row + j, *start = bias && k == 0 ? bias + j : NULL;
            ptrdiff_t from_row = b_row;
            if (ragged) {
                /* Whole vectors must not read past a row's end. Elsewhere reading B in place is faster than any packing. */
                for (ptrdiff_t r = 0; r < deep; r++) {
                    memcpy(pack + r * vectors * VW, from + r * b_row, width * 4);
                    memset(pack + r * vectors * VW + width, 0, (vectors * VW - width) * 4);
                }
                from = pack;
                from_row = vectors * VW;
            }
            if (start && ragged) {
                float *padded = pack + DEPTH * NV * VW;
                memcpy(padded, start, width * 4);
                memset(padded + width, 0, (vectors * VW - width) * 4);
                start = padded;
            }
            const float *ak = a + k * a_col;
#define WIDE(n)                                                                                                     \
    case n:                                                                                                         \
        ISA(panel)(n, rows, deep, ak, a_row, a_col, from, from_row, c + j, c_row, start, more, relu && last, ragged); \
        break;
            switch (vectors) {
                WIDE(1) WIDE(2)
#if NV > 2
                WIDE(3) WIDE(4)
#endif
            }
#undef WIDE
        }
    }
}

/* out[j] = sum_i g[i, j] */
static void ISA(column_sums)(ptrdiff_t rows, ptrdiff_t columns, const float *g, ptrdiff_t g_row, float *out) {
    ptrdiff_t j = 0;
    for (; j + VW <= columns; j += VW) {
        VF sum = ISA(splat)(0.0f);
        for (ptrdiff_t i = 0; i < rows; i++) sum += LOAD(g + i * g_row + j);
        STORE(out + j, sum);
    }
    for (; j < columns; j++) {
        float sum = 0.0f;
        for (ptrdiff_t i = 0; i < rows; i++) sum += g[i * g_row + j];
        out[j] = sum;
    }
}

static double ISA(sum_of_squares)(const float *x, ptrdiff_t count) {
    double total = 0.0;
    for (ptrdiff_t from = 0; from < count; from += 4096) {
        ptrdiff_t n = count - from < 4096 ? count - from : 4096, i = 0;
        VF sum = ISA(splat)(0.0f), other = ISA(splat)(0.0f);
        for (; i + 2 * VW <= n; i += 2 * VW) {
            VF u = LOAD(x + from + i), v = LOAD(x + from + i + VW);
            sum += u * u;
            other += v * v;
        }
        sum += other;
        for (int lane = 0; lane < VW; lane++) total += sum[lane];
        for (; i < n; i++) total += (double)x[from + i] * x[from + i];
    }
    return total;
}

static void ISA(adam)(float *restrict theta, float *restrict grad, float *restrict first, float *restrict second,
                      ptrdiff_t count, float rate, float root, float keep1, float beta2, float keep2, float epsilon,
                      float scale) {
    for (ptrdiff_t i = 0; i < count; i++) {
        float g = grad[i] * scale, m = first[i] + keep1 * (g - first[i]), v = beta2 * second[i] + keep2 * (g * g);
        first[i] = m;
        second[i] = v;
        theta[i] -= rate * (m / (__builtin_sqrtf(v) * root + epsilon));
    }
}

static void ISA(polyak)(const float *restrict theta, float *restrict target, ptrdiff_t count, float tau) {
    for (ptrdiff_t i = 0; i < count; i++) target[i] = target[i] * (1.0f - tau) + theta[i] * tau;
}

static const struct kernels ISA(kernels) = {ISA(activate), ISA(through), ISA(product), ISA(column_sums),
                                            ISA(sum_of_squares), ISA(adam), ISA(polyak), NV * VW};

#undef VF
#undef VI
#undef LOAD
#undef STORE
#undef ALWAYS

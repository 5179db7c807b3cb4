/* The engine's primitives, compiled: what numpy_ops.py specifies, over the memory layout of networks.py.
 *
 * Every function checks the arrays it is given (type, contiguity, size) before it touches one. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define DEPTH 512 /* long sums are taken in blocks of so many terms */
#define PAD(n) (((n) + 15) / 16 * 16)
#define MAX_LAYERS 16

struct kernels {
    void (*activate)(int, float *, ptrdiff_t);
    void (*through)(int, const float *, const float *, float *, ptrdiff_t);
    void (*product)(ptrdiff_t, ptrdiff_t, ptrdiff_t, const float *, ptrdiff_t, ptrdiff_t, const float *, ptrdiff_t,
                    float *, ptrdiff_t, const float *, int, int, float *);
    void (*column_sums)(ptrdiff_t, ptrdiff_t, const float *, ptrdiff_t, float *);
    double (*sum_of_squares)(const float *, ptrdiff_t);
    void (*adam)(float *, float *, float *, float *, ptrdiff_t, float, float, float, float, float, float, float);
    void (*polyak)(const float *, float *, ptrdiff_t, float);
    int panel; /* columns of a product's panel */
};

#if defined(__x86_64__) || defined(__i386__)
#define X86 1
#endif

#define ISA(name) name##_portable
#define VW 4
#define MR 4
#define NV 2
#include "kernels.h"
#undef ISA
#undef VW
#undef MR
#undef NV

#ifdef X86
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
#define ISA(name) name##_avx2
#define VW 8
#define MR 6
#define NV 2
#include "kernels.h"
#undef ISA
#undef VW
#undef MR
#undef NV
#ifdef __clang__
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,fma"))), apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,fma,prefer-vector-width=512")
#endif
#define ISA(name) name##_avx512
#define VW 16
#define MR 6
#define NV 4
#include "kernels.h"
#undef ISA
#undef VW
#undef MR
#undef NV
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif

static const struct kernels *kernel = &kernels_portable;
static const char *kernel_name = "portable";

static int choose_kernels(void) {
    const char *asked = getenv("SPINUP_NATIVE_ISA");
    if (asked && !*asked) asked = NULL;
#ifdef X86
    __builtin_cpu_init();
    int avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    int avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                 __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
    if (avx512 && (!asked || !strcmp(asked, "avx512"))) {
        kernel = &kernels_avx512, kernel_name = "avx512";
        return 0;
    }
    if (avx2 && (!asked || !strcmp(asked, "avx2"))) {
        kernel = &kernels_avx2, kernel_name = "avx2";
        return 0;
    }
#endif
    if (!asked || !strcmp(asked, "portable")) return 0;
    PyErr_Format(PyExc_ImportError, "SPINUP_NATIVE_ISA=%s: this processor or build has no such instructions", asked);
    return -1;
}

/* --- threads ------------------------------------------------------------------------------------------------------ */

#define MAX_THREADS 64
#define PARALLEL_FLOP 3e6 /* waking a thread must cost less than it saves */
#define SPINS 4000

struct job {
    ptrdiff_t rows, columns, depth, a_row, a_col, b_row, c_row;
    const float *a, *b, *bias;
    float *c;
    int add, relu;
};

static pthread_mutex_t pool_lock = PTHREAD_MUTEX_INITIALIZER; /* held by the caller whose job the pool works on */
static pthread_mutex_t wake_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t wake = PTHREAD_COND_INITIALIZER;
static atomic_int wanted = 1, workers = 0, parts = 0;
static atomic_uint round_number = 0;
static atomic_int unfinished = 0;
static struct job current;

static float *thread_scratch(int slot, size_t floats) {
    static _Thread_local float *memory[4];
    static _Thread_local size_t size[4];
    if (size[slot] < floats) {
        free(memory[slot]);
        size[slot] = 0;
        if (posix_memalign((void **)&memory[slot], 64, floats * sizeof(float))) {
            memory[slot] = NULL;
            return NULL;
        }
        size[slot] = floats;
    }
    return memory[slot];
}

/* Rows of part `index` of `count`, in whole register tiles; every element is summed alike whoever does it. */
static void work_on(const struct job *job, int index, int count) {
    ptrdiff_t tiles = (job->rows + 11) / 12, from = tiles * index / count * 12, to = tiles * (index + 1) / count * 12;
    if (to > job->rows) to = job->rows;
    float *pack = thread_scratch(0, (DEPTH + 1) * (size_t)kernel->panel);
    if (from < to && pack)
        kernel->product(to - from, job->columns, job->depth, job->a + from * job->a_row, job->a_row, job->a_col, job->b,
                        job->b_row, job->c + from * job->c_row, job->c_row, job->bias, job->add, job->relu, pack);
}

struct birth {
    int index;
    unsigned seen; /* the round that was the last when it was made, whenever it comes to run */
};

static void *worker(void *argument) {
    struct birth birth = *(struct birth *)argument;
    int index = birth.index;
    unsigned seen = birth.seen;
    free(argument);
    for (;;) {
        unsigned now;
        int spins = 0;
        while ((now = atomic_load_explicit(&round_number, memory_order_acquire)) == seen) {
            if (++spins < SPINS) {
#ifdef X86
                __builtin_ia32_pause();
#endif
                continue;
            }
            pthread_mutex_lock(&wake_lock);
            while ((now = atomic_load(&round_number)) == seen) pthread_cond_wait(&wake, &wake_lock);
            pthread_mutex_unlock(&wake_lock);
            break;
        }
        seen = now;
        int count = atomic_load(&parts);
        if (index < count) work_on(&current, index, count);
        atomic_fetch_sub_explicit(&unfinished, 1, memory_order_release);
    }
    return NULL;
}

static void after_fork(void) { /* the child has no threads, and must not inherit a lock that one of them held */
    pthread_mutex_init(&pool_lock, NULL);
    pthread_mutex_init(&wake_lock, NULL);
    pthread_cond_init(&wake, NULL);
    atomic_store(&workers, 0);
    atomic_store(&unfinished, 0);
    atomic_store(&round_number, 0);
}

static void multiply(ptrdiff_t rows, ptrdiff_t columns, ptrdiff_t depth, const float *a, ptrdiff_t a_row, ptrdiff_t a_col,
                     const float *b, ptrdiff_t b_row, float *c, ptrdiff_t c_row, const float *bias, int add, int relu) {
    struct job job = {rows, columns, depth, a_row, a_col, b_row, c_row, a, b, bias, c, add, relu};
    int threads = atomic_load_explicit(&wanted, memory_order_relaxed);
    if (threads < 2 || 2.0 * rows * columns * depth < PARALLEL_FLOP || pthread_mutex_trylock(&pool_lock)) {
        work_on(&job, 0, 1);
        return;
    }
    while (atomic_load(&workers) < threads - 1) {
        pthread_t thread;
        pthread_attr_t attributes;
        struct birth *birth = malloc(sizeof *birth);
        if (!birth) break;
        birth->index = atomic_load(&workers) + 1;
        birth->seen = atomic_load(&round_number);
        pthread_attr_init(&attributes);
        pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
        int failed = pthread_create(&thread, &attributes, worker, birth);
        pthread_attr_destroy(&attributes);
        if (failed) free(birth);
        if (failed) break;
        atomic_fetch_add(&workers, 1);
    }
    current = job;
    int helpers = atomic_load(&workers);
    atomic_store(&parts, helpers + 1 < threads ? helpers + 1 : threads);
    atomic_store(&unfinished, helpers);
    pthread_mutex_lock(&wake_lock);
    atomic_fetch_add_explicit(&round_number, 1, memory_order_release);
    pthread_cond_broadcast(&wake);
    pthread_mutex_unlock(&wake_lock);
    work_on(&job, 0, atomic_load(&parts));
    for (int spins = 0; atomic_load_explicit(&unfinished, memory_order_acquire) > 0; spins++) {
        if (spins > SPINS) sched_yield();
#ifdef X86
        __builtin_ia32_pause();
#endif
    }
    pthread_mutex_unlock(&pool_lock);
}

/* --- arguments ---------------------------------------------------------------------------------------------------- */

struct array {
    Py_buffer view;
    int held;
};

static int take(struct array *to, PyObject *from, const char *name, const char *format, Py_ssize_t item, int writable,
                Py_ssize_t least) {
    if (PyObject_GetBuffer(from, &to->view, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | (writable ? PyBUF_WRITABLE : 0))) {
        PyErr_Clear();
        PyErr_Format(PyExc_ValueError, "%s must be a contiguous%s array", name, writable ? ", writable" : "");
        return -1;
    }
    to->held = 1;
    const char *have = to->view.format ? to->view.format : "B";
    if (!strchr(format, have[0]) || have[1] || to->view.itemsize != item) {
        PyErr_Format(PyExc_ValueError, "%s must be an array of type '%c', not '%s'", name, format[0], have);
        return -1;
    }
    if (to->view.len / item < least) {
        PyErr_Format(PyExc_ValueError, "%s has %zd entries where %zd are needed", name, to->view.len / item, least);
        return -1;
    }
    return 0;
}

#define MAX_ARRAYS 12
struct arguments {
    struct array arrays[MAX_ARRAYS];
    int count, failed;
};

static void *array(struct arguments *all, PyObject *from, const char *name, const char *format, Py_ssize_t item,
                   int writable, Py_ssize_t least) {
    if (all->failed) return NULL;
    struct array *slot = &all->arrays[all->count++];
    slot->held = 0;
    if (take(slot, from, name, format, item, writable, least)) all->failed = 1;
    return slot->view.buf;
}
#define IN(object, name, least) ((const float *)array(&all, object, name, "f", 4, 0, least))
#define OUT(object, name, least) ((float *)array(&all, object, name, "f", 4, 1, least))
#define LENGTH(index) (all.arrays[index].view.len / all.arrays[index].view.itemsize)

static PyObject *done(struct arguments *all, PyObject *result) {
    for (int i = 0; i < all->count; i++)
        if (all->arrays[i].held) PyBuffer_Release(&all->arrays[i].view);
    if (all->failed || PyErr_Occurred()) {
        Py_XDECREF(result);
        return NULL;
    }
    return result;
}
#define NONE (Py_INCREF(Py_None), Py_None)

static int expect(Py_ssize_t have, Py_ssize_t want, const char *name) {
    if (have == want) return 0;
    PyErr_Format(PyExc_TypeError, "%s takes %zd arguments, not %zd", name, want, have);
    return -1;
}
#define FUNCTION(name, arity)                                                             \
    static PyObject *name(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {      \
        (void)self;                                                                       \
        struct arguments all;                                                             \
        all.count = all.failed = 0;                                                       \
        if (expect(nargs, arity, #name)) return NULL;

/* --- perceptrons -------------------------------------------------------------------------------------------------- */

struct layer {
    ptrdiff_t in, out, heads, width, theta, work; /* width: of all heads; theta, work: where its part begins */
    int code;
};
struct shape {
    int layers;
    ptrdiff_t in, widest, theta, work;
    struct layer layer[MAX_LAYERS];
};

static int read_shape(const int32_t *spec, Py_ssize_t length, ptrdiff_t batch, struct shape *shape) {
    int layers = length > 4 ? spec[3] : 0;
    if (layers < 1 || layers > MAX_LAYERS || length != 5 + layers) {
        PyErr_SetString(PyExc_ValueError, "spec describes no perceptron of 1 to 16 layers");
        return -1;
    }
    shape->layers = layers;
    shape->in = shape->widest = spec[4];
    shape->theta = shape->work = 0;
    for (int i = 0; i < layers; i++) {
        struct layer *at = &shape->layer[i];
        at->in = spec[4 + i], at->out = spec[5 + i];
        at->heads = i == layers - 1 ? spec[2] : 1;
        at->code = i == layers - 1 ? spec[1] : spec[0];
        if (at->in < 1 || at->out < 1 || at->heads < 1 || at->code < 0 || at->code > 5) {
            PyErr_SetString(PyExc_ValueError, "spec has a width below 1 or an unknown activation");
            return -1;
        }
        at->width = at->out * at->heads;
        at->theta = shape->theta, at->work = shape->work;
        shape->theta += at->heads * (PAD(at->in * at->out) + PAD(at->out));
        shape->work += PAD(batch * at->width);
        if (at->width > shape->widest) shape->widest = at->width;
    }
    return 0;
}

/* out (depth of W's rows from `first` on, transposed): W (in, out) -> (out, in - first) */
static void transpose(const float *w, ptrdiff_t in, ptrdiff_t out, ptrdiff_t first, float *to) {
    ptrdiff_t rows = in - first;
    w += first * out;
    for (ptrdiff_t i = 0; i < rows; i += 16)
        for (ptrdiff_t j = 0; j < out; j += 16)
            for (ptrdiff_t ii = i; ii < i + 16 && ii < rows; ii++)
                for (ptrdiff_t jj = j; jj < j + 16 && jj < out; jj++) to[jj * rows + ii] = w[ii * out + jj];
}

/* g_prev = sum over heads of g_h W_h^T, columns from `first` on */
static int back(const struct layer *at, const float *theta, const float *g, ptrdiff_t batch, ptrdiff_t first, float *to) {
    ptrdiff_t rows = at->in - first;
    float *turned = thread_scratch(1, (size_t)(at->out * rows));
    if (!turned) return -1;
    const float *part = theta + at->theta;
    for (ptrdiff_t h = 0; h < at->heads; h++) {
        transpose(part, at->in, at->out, first, turned);
        multiply(batch, rows, at->out, g + h * at->out, at->width, 1, turned, rows, to, rows, NULL, h > 0, 0);
        part += PAD(at->in * at->out) + PAD(at->out);
    }
    return 0;
}

/* A call that computes little keeps the interpreter's lock: giving it back and asking for it costs more. */
#define BEGIN_WORK(flop)                                  \
    PyThreadState *state_ = NULL;                         \
    if ((flop) > 2e5) state_ = PyEval_SaveThread();
#define END_WORK \
    if (state_) PyEval_RestoreThread(state_);

/* spec, theta, x, work */
FUNCTION(mlp_forward, 4)
    const int32_t *spec = array(&all, args[0], "spec", "il", 4, 0, 6);
    const float *theta = IN(args[1], "theta", 0), *x = IN(args[2], "x", 0);
    float *work = OUT(args[3], "work", 0);
    struct shape shape;
    if (all.failed || read_shape(spec, LENGTH(0), 0, &shape)) return done(&all, NULL);
    ptrdiff_t batch = LENGTH(2) / shape.in;
    read_shape(spec, LENGTH(0), batch, &shape);
    if (LENGTH(2) != batch * shape.in || LENGTH(1) < shape.theta || LENGTH(3) < shape.work) {
        PyErr_SetString(PyExc_ValueError, "x, theta or work does not fit the perceptron that spec describes");
        return done(&all, NULL);
    }
    BEGIN_WORK(2.0 * batch * shape.theta)
    const float *y = x;
    for (int i = 0; i < shape.layers; i++) {
        struct layer *at = &shape.layer[i];
        float *out = work + at->work;
        const float *part = theta + at->theta;
        for (ptrdiff_t h = 0; h < at->heads; h++) {
            multiply(batch, at->out, at->in, y, at->in, 1, part, at->out, out + h * at->out, at->width,
                     part + PAD(at->in * at->out), 0, at->code == 2);
            part += PAD(at->in * at->out) + PAD(at->out);
        }
        if (at->code != 0 && at->code != 2) kernel->activate(at->code, out, batch * at->width);
        y = out;
    }
    END_WORK
    return done(&all, NONE);
}

/* spec, theta, x, work, grad_out, grad_theta, grad_x or None, scratch */
FUNCTION(mlp_backward, 8)
    const int32_t *spec = array(&all, args[0], "spec", "il", 4, 0, 6);
    const float *theta = IN(args[1], "theta", 0), *x = IN(args[2], "x", 0), *work = IN(args[3], "work", 0);
    struct shape shape;
    if (all.failed || read_shape(spec, LENGTH(0), 0, &shape)) return done(&all, NULL);
    ptrdiff_t batch = LENGTH(2) / shape.in;
    read_shape(spec, LENGTH(0), batch, &shape);
    ptrdiff_t half = PAD(batch * shape.widest), last = shape.layers - 1;
    const float *g = IN(args[4], "grad_out", batch * shape.layer[last].width);
    float *grads = OUT(args[5], "grad_theta", shape.theta), *scratch = OUT(args[7], "scratch", 2 * half);
    float *grad_x = args[6] == Py_None ? NULL : OUT(args[6], "grad_x", batch * shape.in);
    if (!all.failed && (LENGTH(2) != batch * shape.in || LENGTH(1) < shape.theta || LENGTH(3) < shape.work))
        PyErr_SetString(PyExc_ValueError, "x, theta or work does not fit the perceptron that spec describes");
    if (all.failed || PyErr_Occurred()) return done(&all, NULL);
    int failed = 0;
    BEGIN_WORK(4.0 * batch * shape.theta)
    if (shape.layer[last].code) {
        float *to = scratch + (shape.layers % 2) * half;
        kernel->through(shape.layer[last].code, work + shape.layer[last].work, g, to, batch * shape.layer[last].width);
        g = to;
    }
    for (int i = (int)last; i >= 0 && !failed; i--) {
        struct layer *at = &shape.layer[i];
        const float *y = i == 0 ? x : work + shape.layer[i - 1].work;
        float *part = grads + at->theta;
        for (ptrdiff_t h = 0; h < at->heads; h++) {
            multiply(at->in, at->out, batch, y, 1, at->in, g + h * at->out, at->width, part, at->out, NULL, 0, 0);
            part += PAD(at->in * at->out);
            kernel->column_sums(batch, at->out, g + h * at->out, at->width, part);
            part += PAD(at->out);
        }
        if (i > 0) {
            float *to = scratch + (i % 2) * half;
            failed = back(at, theta, g, batch, 0, to);
            if (shape.layer[i - 1].code) kernel->through(shape.layer[i - 1].code, y, to, to, batch * at->in);
            g = to;
        } else if (grad_x) {
            failed = back(at, theta, g, batch, 0, grad_x);
        }
    }
    END_WORK
    if (failed) PyErr_NoMemory();
    return done(&all, NONE);
}

/* spec, theta, work, batch, rows or None, grad_out, first, grad_x */
FUNCTION(mlp_input_gradient, 8)
    const int32_t *spec = array(&all, args[0], "spec", "il", 4, 0, 6);
    const float *theta = IN(args[1], "theta", 0), *work = IN(args[2], "work", 0);
    ptrdiff_t batch = PyLong_AsSsize_t(args[3]), first = PyLong_AsSsize_t(args[6]);
    struct shape shape;
    if (all.failed || PyErr_Occurred() || read_shape(spec, LENGTH(0), batch, &shape)) return done(&all, NULL);
    int last = shape.layers - 1;
    ptrdiff_t width = shape.layer[last].width;
    const float *g = IN(args[5], "grad_out", 0);
    if (all.failed) return done(&all, NULL);
    ptrdiff_t count = LENGTH(3) / width;
    const int64_t *rows = args[4] == Py_None ? NULL : array(&all, args[4], "rows", "lq", 8, 0, count);
    if (first < 0 || first >= shape.in || LENGTH(1) < shape.theta || LENGTH(2) < shape.work || (!rows && count > batch)) {
        PyErr_SetString(PyExc_ValueError, "theta, work, grad_out or first does not fit the perceptron that spec describes");
        return done(&all, NULL);
    }
    float *grad_x = OUT(args[7], "grad_x", count * (shape.in - first));
    for (ptrdiff_t i = 0; rows && !all.failed && i < count; i++)
        if (rows[i] < 0 || rows[i] >= batch) {
            PyErr_SetString(PyExc_ValueError, "rows has an entry outside of the batch");
            return done(&all, NULL);
        }
    float *scratch = all.failed || !count ? NULL : thread_scratch(2, (size_t)(2 * count * shape.widest));
    if (all.failed || !count) return done(&all, NONE);
    if (!scratch) return PyErr_NoMemory(), done(&all, NULL);
    int failed = 0;
    BEGIN_WORK(2.0 * count * shape.theta)
    for (int i = last; i >= 0 && !failed; i--) {
        struct layer *at = &shape.layer[i];
        if (at->code) {
            float *to = scratch + (i % 2) * count * shape.widest;
            const float *y = work + at->work;
            for (ptrdiff_t r = 0; rows && r < count; r++)
                kernel->through(at->code, y + rows[r] * at->width, g + r * at->width, to + r * at->width, at->width);
            if (!rows) kernel->through(at->code, y, g, to, count * at->width);
            g = to;
        }
        /* The other half than the one that `g` is in: halves alternate with i, and without f' nothing was written. */
        float *to = i == 0 ? grad_x : scratch + ((i + 1) % 2) * count * shape.widest;
        failed = back(at, theta, g, count, i == 0 ? first : 0, to);
        g = to;
    }
    END_WORK
    if (failed) PyErr_NoMemory();
    return done(&all, NONE);
}

/* spec, theta, x, work, vector, out_work */
FUNCTION(mlp_jvp, 6)
    const int32_t *spec = array(&all, args[0], "spec", "il", 4, 0, 6);
    const float *theta = IN(args[1], "theta", 0), *x = IN(args[2], "x", 0), *work = IN(args[3], "work", 0);
    struct shape shape;
    if (all.failed || read_shape(spec, LENGTH(0), 0, &shape)) return done(&all, NULL);
    ptrdiff_t batch = LENGTH(2) / shape.in;
    read_shape(spec, LENGTH(0), batch, &shape);
    const float *vector = IN(args[4], "vector", shape.theta);
    float *out_work = OUT(args[5], "out", shape.work);
    if (!all.failed && (LENGTH(2) != batch * shape.in || LENGTH(1) < shape.theta || LENGTH(3) < shape.work))
        PyErr_SetString(PyExc_ValueError, "x, theta or work does not fit the perceptron that spec describes");
    if (all.failed || PyErr_Occurred()) return done(&all, NULL);
    BEGIN_WORK(4.0 * batch * shape.theta)
    for (int i = 0; i < shape.layers; i++) {
        struct layer *at = &shape.layer[i];
        const float *y = i == 0 ? x : work + shape.layer[i - 1].work, *dy = i == 0 ? NULL : out_work + shape.layer[i - 1].work;
        float *out = out_work + at->work;
        ptrdiff_t start = at->theta;
        for (ptrdiff_t h = 0; h < at->heads; h++) {
            multiply(batch, at->out, at->in, y, at->in, 1, vector + start, at->out, out + h * at->out, at->width,
                     vector + start + PAD(at->in * at->out), 0, 0);
            if (dy)
                multiply(batch, at->out, at->in, dy, at->in, 1, theta + start, at->out, out + h * at->out, at->width, NULL,
                         1, 0);
            start += PAD(at->in * at->out) + PAD(at->out);
        }
        if (at->code) kernel->through(at->code, work + at->work, out, out, batch * at->width);
    }
    END_WORK
    return done(&all, NONE);
}

/* --- optimiser ---------------------------------------------------------------------------------------------------- */

FUNCTION(norm, 1)
    const float *x = IN(args[0], "x", 0);
    if (all.failed) return done(&all, NULL);
    return done(&all, PyFloat_FromDouble(sqrt(kernel->sum_of_squares(x, LENGTH(0)))));
}

/* theta, grad, first, second, step, learning_rate, beta1, beta2, epsilon, scale */
FUNCTION(adam, 10)
    float *theta = OUT(args[0], "theta", 0);
    ptrdiff_t count = all.failed ? 0 : LENGTH(0);
    float *grad = OUT(args[1], "grad", count), *first = OUT(args[2], "first", count), *second = OUT(args[3], "second", count);
    double number[6];
    for (int i = 0; i < 6; i++) number[i] = PyFloat_AsDouble(args[4 + i]);
    if (all.failed || PyErr_Occurred()) return done(&all, NULL);
    double bias1 = 1.0 - pow(number[2], number[0]), bias2 = 1.0 - pow(number[3], number[0]);
    BEGIN_WORK(10.0 * count)
    kernel->adam(theta, grad, first, second, count, (float)(number[1] / bias1), (float)(1.0 / sqrt(bias2)),
                 (float)(1.0 - number[2]), (float)number[3], (float)(1.0 - number[3]), (float)number[4], (float)number[5]);
    END_WORK
    return done(&all, NONE);
}

FUNCTION(polyak, 3)
    const float *theta = IN(args[0], "theta", 0);
    float *target = OUT(args[1], "target", all.failed ? 0 : LENGTH(0));
    double tau = PyFloat_AsDouble(args[2]);
    if (all.failed || PyErr_Occurred()) return done(&all, NULL);
    kernel->polyak(theta, target, LENGTH(0), (float)tau);
    return done(&all, NONE);
}

/* --- distributions ------------------------------------------------------------------------------------------------ */

#define HALF_LOG_2PI 0.91893853320467274178

/* mean, log_std, actions, out */
FUNCTION(gaussian_log_prob, 4)
    const float *mean = IN(args[0], "mean", 0), *log_std = IN(args[1], "log_std", 1);
    if (all.failed) return done(&all, NULL);
    ptrdiff_t size = LENGTH(1), batch = LENGTH(0) / size;
    const float *actions = IN(args[2], "actions", batch * size);
    float *out = OUT(args[3], "out", batch), *inverse = thread_scratch(3, (size_t)size);
    if (all.failed || !inverse) return done(&all, inverse ? NULL : PyErr_NoMemory());
    double constant = HALF_LOG_2PI * size;
    for (ptrdiff_t j = 0; j < size; j++) inverse[j] = expf(-log_std[j]), constant += log_std[j];
    for (ptrdiff_t i = 0; i < batch; i++) {
        float sum = 0.0f;
        for (ptrdiff_t j = 0; j < size; j++) {
            float z = (actions[i * size + j] - mean[i * size + j]) * inverse[j];
            sum += z * z;
        }
        out[i] = -0.5f * sum - (float)constant;
    }
    return done(&all, NONE);
}

/* mean, log_std, actions, grad_log_prob, entropy, grad_mean, grad_log_std */
FUNCTION(gaussian_gradient, 7)
    const float *mean = IN(args[0], "mean", 0), *log_std = IN(args[1], "log_std", 1);
    if (all.failed) return done(&all, NULL);
    ptrdiff_t size = LENGTH(1), batch = LENGTH(0) / size;
    const float *actions = IN(args[2], "actions", batch * size), *g = IN(args[3], "grad_log_prob", batch);
    float *grad_mean = OUT(args[5], "grad_mean", batch * size), *grad_log_std = OUT(args[6], "grad_log_std", size);
    float *inverse = thread_scratch(3, (size_t)size);
    double entropy = PyFloat_AsDouble(args[4]), total = 0.0;
    if (all.failed || PyErr_Occurred() || !inverse) return done(&all, inverse ? NULL : PyErr_NoMemory());
    for (ptrdiff_t j = 0; j < size; j++) inverse[j] = expf(-log_std[j]), grad_log_std[j] = 0.0f;
    for (ptrdiff_t i = 0; i < batch; i++) {
        total += g[i];
        for (ptrdiff_t j = 0; j < size; j++) {
            float z = (actions[i * size + j] - mean[i * size + j]) * inverse[j], gz = g[i] * z;
            grad_mean[i * size + j] = gz * inverse[j];
            grad_log_std[j] += gz * z;
        }
    }
    for (ptrdiff_t j = 0; j < size; j++) grad_log_std[j] += (float)(entropy - total);
    return done(&all, NONE);
}

/* The choices of a batch, checked: components side by side, `total` logits in a row. */
static ptrdiff_t components(const int32_t *nvec, ptrdiff_t count) {
    ptrdiff_t total = 0;
    for (ptrdiff_t k = 0; k < count; k++) total += nvec[k];
    return total > 0 ? total : 1;
}

/* logits, nvec, actions, out, out_log_softmax */
FUNCTION(categorical_log_prob, 5)
    const float *logits = IN(args[0], "logits", 0);
    const int32_t *nvec = array(&all, args[1], "nvec", "il", 4, 0, 1);
    if (all.failed) return done(&all, NULL);
    ptrdiff_t count = LENGTH(1), total = components(nvec, count), batch = LENGTH(0) / total;
    const float *actions = IN(args[2], "actions", batch * count);
    float *out = OUT(args[3], "out", batch), *result = OUT(args[4], "out_log_softmax", batch * total);
    if (all.failed) return done(&all, NULL);
    double entropy = 0.0;
    for (ptrdiff_t i = 0; i < batch; i++) {
        ptrdiff_t start = i * total;
        float log_prob = 0.0f;
        for (ptrdiff_t k = 0; k < count; k++) {
            float highest = logits[start], sum = 0.0f, mean = 0.0f;
            for (ptrdiff_t j = 1; j < nvec[k]; j++) highest = logits[start + j] > highest ? logits[start + j] : highest;
            for (ptrdiff_t j = 0; j < nvec[k]; j++) {
                float centred = logits[start + j] - highest, weight = expf(centred);
                result[start + j] = centred;
                sum += weight;
                mean += weight * centred;
            }
            float log_sum = logf(sum);
            for (ptrdiff_t j = 0; j < nvec[k]; j++) result[start + j] -= log_sum;
            entropy += log_sum - mean / sum;
            float action = actions[i * count + k];
            ptrdiff_t choice = action >= 0.0f && action < (float)nvec[k] ? (ptrdiff_t)action : -1;
            log_prob += choice < 0 ? NAN : result[start + choice];
            start += nvec[k];
        }
        out[i] = log_prob;
    }
    return done(&all, PyFloat_FromDouble(batch ? entropy / batch : 0.0));
}

/* log_softmax, nvec, actions, grad_log_prob, entropy, grad_logits */
FUNCTION(categorical_gradient, 6)
    const float *log_softmax = IN(args[0], "log_softmax", 0);
    const int32_t *nvec = array(&all, args[1], "nvec", "il", 4, 0, 1);
    if (all.failed) return done(&all, NULL);
    ptrdiff_t count = LENGTH(1), total = components(nvec, count), batch = LENGTH(0) / total;
    const float *actions = IN(args[2], "actions", batch * count), *g = IN(args[3], "grad_log_prob", batch);
    float *grad = OUT(args[5], "grad_logits", batch * total);
    double entropy = PyFloat_AsDouble(args[4]);
    if (all.failed || PyErr_Occurred()) return done(&all, NULL);
    float per_row = batch ? (float)(entropy / batch) : 0.0f;
    for (ptrdiff_t i = 0; i < batch; i++) {
        ptrdiff_t start = i * total;
        for (ptrdiff_t k = 0; k < count; k++) {
            float h = 0.0f;
            for (ptrdiff_t j = 0; j < nvec[k]; j++) {
                float log_p = log_softmax[start + j], p = expf(log_p);
                grad[start + j] = p;
                h -= p * log_p;
            }
            for (ptrdiff_t j = 0; j < nvec[k]; j++) {
                float p = grad[start + j];
                grad[start + j] = -g[i] * p - per_row * p * (log_softmax[start + j] + h);
            }
            float action = actions[i * count + k];
            if (action >= 0.0f && action < (float)nvec[k]) grad[start + (ptrdiff_t)action] += g[i];
            start += nvec[k];
        }
    }
    return done(&all, NONE);
}

/* mean, log_std, noise, out_actions, out */
FUNCTION(gaussian_draw, 5)
    const float *mean = IN(args[0], "mean", 0), *log_std = IN(args[1], "log_std", 1);
    if (all.failed) return done(&all, NULL);
    ptrdiff_t size = LENGTH(1), batch = LENGTH(0) / size;
    const float *noise = IN(args[2], "noise", batch * size);
    float *actions = OUT(args[3], "out_actions", batch * size), *out = OUT(args[4], "out", batch);
    float *deviation = thread_scratch(3, (size_t)size);
    if (all.failed || !deviation) return done(&all, deviation ? NULL : PyErr_NoMemory());
    double constant = HALF_LOG_2PI * size;
    for (ptrdiff_t j = 0; j < size; j++) deviation[j] = expf(log_std[j]), constant += log_std[j];
    for (ptrdiff_t i = 0; i < batch; i++) {
        float sum = 0.0f;
        for (ptrdiff_t j = 0; j < size; j++) {
            float e = noise[i * size + j];
            actions[i * size + j] = mean[i * size + j] + deviation[j] * e;
            sum += e * e;
        }
        out[i] = -0.5f * sum - (float)constant;
    }
    return done(&all, NONE);
}

/* logits, nvec, noise, out_actions, out */
FUNCTION(categorical_draw, 5)
    const float *logits = IN(args[0], "logits", 0);
    const int32_t *nvec = array(&all, args[1], "nvec", "il", 4, 0, 1);
    if (all.failed) return done(&all, NULL);
    ptrdiff_t count = LENGTH(1), total = components(nvec, count), batch = LENGTH(0) / total, start = 0;
    const float *noise = IN(args[2], "noise", batch * total);
    int64_t *actions = array(&all, args[3], "out_actions", "lq", 8, 1, batch * count);
    float *out = OUT(args[4], "out", batch);
    if (all.failed) return done(&all, NULL);
    for (ptrdiff_t i = 0; i < batch; i++) out[i] = 0.0f;
    for (ptrdiff_t k = 0; k < count; k++) {
        for (ptrdiff_t i = 0; i < batch; i++) {
            const float *l = logits + i * total + start, *e = noise + batch * start + i * nvec[k];
            float highest = l[0], sum = 0.0f, best = -1.0f;
            ptrdiff_t choice = 0;
            for (ptrdiff_t j = 1; j < nvec[k]; j++) highest = l[j] > highest ? l[j] : highest;
            for (ptrdiff_t j = 0; j < nvec[k]; j++) {
                float weight = expf(l[j] - highest), ratio = weight / e[j];
                sum += weight;
                if (ratio > best) best = ratio, choice = j;
            }
            actions[i * count + k] = choice;
            out[i] += l[choice] - highest - logf(sum);
        }
        start += nvec[k];
    }
    return done(&all, NONE);
}

static inline float softplus(float x) { return (x > 0.0f ? x : 0.0f) + log1pf(expf(-fabsf(x))); }

/* logits, actions, out */
FUNCTION(bernoulli_log_prob, 3)
    const float *logits = IN(args[0], "logits", 0);
    float *out = OUT(args[2], "out", 1);
    if (all.failed) return done(&all, NULL);
    ptrdiff_t batch = LENGTH(1), size = LENGTH(0) / batch;
    const float *actions = IN(args[1], "actions", batch * size);
    if (all.failed) return done(&all, NULL);
    double entropy = 0.0;
    for (ptrdiff_t i = 0; i < batch; i++) {
        float sum = 0.0f;
        for (ptrdiff_t j = i * size; j < (i + 1) * size; j++) {
            float plus = softplus(logits[j]);
            sum += actions[j] * logits[j] - plus;
            entropy += plus - logits[j] / (1.0f + expf(-logits[j]));
        }
        out[i] = sum;
    }
    return done(&all, PyFloat_FromDouble(entropy / batch));
}

/* logits, actions, grad_log_prob, entropy, grad_logits */
FUNCTION(bernoulli_gradient, 5)
    const float *logits = IN(args[0], "logits", 0), *g = IN(args[2], "grad_log_prob", 1);
    if (all.failed) return done(&all, NULL);
    ptrdiff_t batch = LENGTH(1), size = LENGTH(0) / batch;
    const float *actions = IN(args[1], "actions", batch * size);
    float *grad = OUT(args[4], "grad_logits", batch * size);
    double entropy = PyFloat_AsDouble(args[3]);
    if (all.failed || PyErr_Occurred()) return done(&all, NULL);
    float per_row = (float)(entropy / batch);
    for (ptrdiff_t i = 0; i < batch; i++)
        for (ptrdiff_t j = i * size; j < (i + 1) * size; j++) {
            float p = 1.0f / (1.0f + expf(-logits[j]));
            grad[j] = g[i] * (actions[j] - p) - per_row * logits[j] * p * (1.0f - p);
        }
    return done(&all, NONE);
}

/* params, noise, exact, out_actions, out_log_prob */
FUNCTION(squash, 5)
    const float *params = IN(args[0], "params", 0);
    float *out = OUT(args[4], "out_log_prob", 1);
    if (all.failed) return done(&all, NULL);
    ptrdiff_t batch = LENGTH(1), size = LENGTH(0) / batch / 2;
    const float *noise = IN(args[1], "noise", batch * size);
    float *actions = OUT(args[3], "out_actions", batch * size);
    int exact = PyObject_IsTrue(args[2]);
    if (all.failed) return done(&all, NULL);
    BEGIN_WORK(50.0 * batch * size)
    for (ptrdiff_t i = 0; i < batch; i++) {
        float sum = 0.0f;
        for (ptrdiff_t j = 0; j < size; j++) {
            float raw = params[i * 2 * size + size + j], log_std = raw < -20.0f ? -20.0f : raw > 2.0f ? 2.0f : raw;
            float e = noise[i * size + j], u = params[i * 2 * size + j] + expf(log_std) * e, a = tanhf(u);
            actions[i * size + j] = a;
            sum += 0.5f * e * e + log_std + (float)HALF_LOG_2PI;
            sum += exact ? 2.0f * (0.69314718f - u - softplus(-2.0f * u)) : logf(1.0f - a * a + 1e-6f);
        }
        out[i] = -sum;
    }
    END_WORK
    return done(&all, NONE);
}

/* params, noise, actions, exact, grad_actions, grad_log_prob, grad_params */
FUNCTION(squash_gradient, 7)
    const float *params = IN(args[0], "params", 0), *noise = IN(args[1], "noise", 0);
    if (all.failed) return done(&all, NULL);
    ptrdiff_t total = LENGTH(1);
    const float *actions = IN(args[2], "actions", total), *ga = IN(args[4], "grad_actions", total);
    float *grad = OUT(args[6], "grad_params", 2 * total);
    int exact = PyObject_IsTrue(args[3]);
    double push = PyFloat_AsDouble(args[5]);
    if (all.failed || PyErr_Occurred()) return done(&all, NULL);
    if (LENGTH(0) != 2 * total || all.arrays[1].view.ndim != 2) {
        PyErr_SetString(PyExc_ValueError, "params must be twice as wide as noise, and both of two axes");
        return done(&all, NULL);
    }
    ptrdiff_t size = all.arrays[1].view.shape[1], batch = size ? total / size : 0;
    BEGIN_WORK(30.0 * total)
    for (ptrdiff_t i = 0; i < batch; i++)
        for (ptrdiff_t j = 0; j < size; j++) {
            float raw = params[i * 2 * size + size + j], log_std = raw < -20.0f ? -20.0f : raw > 2.0f ? 2.0f : raw;
            float a = actions[i * size + j], slope = 1.0f - a * a, l = (float)push;
            float du = ga[i * size + j] * slope + l * 2.0f * a * (exact ? 1.0f : slope / (slope + 1e-6f));
            grad[i * 2 * size + j] = du;
            grad[i * 2 * size + size + j] = raw < -20.0f || raw > 2.0f ? 0.0f : du * expf(log_std) * noise[i * size + j] - l;
        }
    END_WORK
    return done(&all, NONE);
}

/* --- losses ------------------------------------------------------------------------------------------------------- */

/* log_prob, old_log_prob, advantages, clip_range, normalize, grad_log_prob */
FUNCTION(surrogate, 6)
    const float *log_prob = IN(args[0], "log_prob", 1);
    ptrdiff_t batch = all.failed ? 0 : LENGTH(0);
    const float *old = IN(args[1], "old_log_prob", batch), *advantages = IN(args[2], "advantages", batch);
    float *grad = OUT(args[5], "grad_log_prob", batch);
    double clip = PyFloat_AsDouble(args[3]);
    int normalize = PyObject_IsTrue(args[4]);
    if (all.failed || PyErr_Occurred()) return done(&all, NULL);
    double mean = 0.0, deviation = 0.0, loss = 0.0, k1 = 0.0, k3 = 0.0;
    ptrdiff_t outside = 0;
    float shift = 0.0f, scale = 1.0f;
    if (normalize && batch > 1) {
        for (ptrdiff_t i = 0; i < batch; i++) mean += advantages[i];
        mean /= batch;
        for (ptrdiff_t i = 0; i < batch; i++) deviation += (advantages[i] - mean) * (advantages[i] - mean);
        shift = (float)mean;
        scale = (float)(1.0 / (sqrt(deviation / (batch - 1)) + 1e-8));
    }
    float low = (float)(1.0 - clip), high = (float)(1.0 + clip), width = (float)clip;
    for (ptrdiff_t i = 0; i < batch; i++) {
        float log_ratio = log_prob[i] - old[i], ratio = expf(log_ratio), a = (advantages[i] - shift) * scale;
        float gain = ratio * a, clipped = (ratio < low ? low : ratio > high ? high : ratio) * a;
        k1 -= log_ratio;
        k3 += ratio - 1.0f - log_ratio;
        outside += fabsf(ratio - 1.0f) > width;
        loss -= gain <= clipped || gain != gain ? gain : clipped;
        grad[i] = gain <= clipped || gain != gain ? -gain / (float)batch : 0.0f;
    }
    return done(&all, Py_BuildValue("dddd", loss / batch, k3 / batch, k1 / batch, (double)outside / batch));
}

/* values, old_values, returns, clip_range, coefficient, grad_values */
FUNCTION(value_loss, 6)
    const float *values = IN(args[0], "values", 1);
    ptrdiff_t batch = all.failed ? 0 : LENGTH(0);
    const float *old = IN(args[1], "old_values", batch), *returns = IN(args[2], "returns", batch);
    float *grad = OUT(args[5], "grad_values", batch);
    double clip = PyFloat_AsDouble(args[3]), coefficient = PyFloat_AsDouble(args[4]), loss = 0.0;
    if (all.failed || PyErr_Occurred()) return done(&all, NULL);
    float width = (float)clip, factor = (float)(2.0 * coefficient / batch);
    for (ptrdiff_t i = 0; i < batch; i++) {
        float error = values[i] - returns[i];
        int inside = 1;
        if (clip != INFINITY) {
            float moved = values[i] - old[i];
            inside = !(fabsf(moved) > width);
            error = old[i] + (moved < -width ? -width : moved > width ? width : moved) - returns[i];
        }
        loss += (double)error * error;
        grad[i] = inside ? factor * error : 0.0f;
    }
    return done(&all, PyFloat_FromDouble(loss / batch));
}

/* --- rollouts ----------------------------------------------------------------------------------------------------- */

/* Stable-Baselines3's order of operations in single precision, which fused multiply-adds would round differently. */
#if defined(__clang__)
#define NO_CONTRACTION _Pragma("clang fp contract(off)")
#define UNFUSED
#else
#define NO_CONTRACTION
#define UNFUSED __attribute__((optimize("fp-contract=off")))
#endif

static UNFUSED void estimate(ptrdiff_t steps, ptrdiff_t envs, const float *rewards, const float *values,
                             const float *starts, const float *last_values, const float *last_dones, float gamma,
                             float decay, float *out) {
    NO_CONTRACTION
    for (ptrdiff_t t = steps - 1; t >= 0; t--)
        for (ptrdiff_t n = 0; n < envs; n++) {
            ptrdiff_t i = t * envs + n;
            float going = 1.0f - (t == steps - 1 ? last_dones[n] : starts[i + envs]);
            float next = t == steps - 1 ? last_values[n] : values[i + envs];
            float delta = rewards[i] + gamma * next * going - values[i];
            out[i] = delta + decay * going * (t == steps - 1 ? 0.0f : out[i + envs]);
        }
}

/* rewards, values, starts, last_values, last_dones, gamma, gae_lambda, out */
FUNCTION(gae, 8)
    const float *rewards = IN(args[0], "rewards", 0);
    ptrdiff_t total = all.failed ? 0 : LENGTH(0);
    const float *values = IN(args[1], "values", total), *starts = IN(args[2], "starts", total);
    const float *last_values = IN(args[3], "last_values", 1);
    ptrdiff_t envs = all.failed ? 1 : LENGTH(3);
    const float *last_dones = IN(args[4], "last_dones", envs);
    float *out = OUT(args[7], "out", total);
    double gamma = PyFloat_AsDouble(args[5]), gae_lambda = PyFloat_AsDouble(args[6]);
    if (all.failed || PyErr_Occurred()) return done(&all, NULL);
    estimate(total / envs, envs, rewards, values, starts, last_values, last_dones, (float)gamma, (float)(gamma * gae_lambda),
             out);
    return done(&all, NONE);
}

static PyObject *surely_finite(PyObject *self, PyObject *x) {
    (void)self;
    Py_buffer view;
    if (PyObject_GetBuffer(x, &view, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT)) {
        PyErr_Clear();
        Py_RETURN_FALSE;
    }
    int sure = 0;
    /* x - x is zero, or a NaN where x is one or infinite. */
    if (view.format && !strcmp(view.format, "f")) {
        const float *v = view.buf;
        float sum = 0.0f;
        for (Py_ssize_t i = 0; i < view.len / 4; i++) sum += v[i] - v[i];
        sure = sum == 0.0f;
    } else if (view.format && !strcmp(view.format, "d")) {
        const double *v = view.buf;
        double sum = 0.0;
        for (Py_ssize_t i = 0; i < view.len / 8; i++) sum += v[i] - v[i];
        sure = sum == 0.0;
    }
    PyBuffer_Release(&view);
    return PyBool_FromLong(sure);
}

static PyObject *set_threads(PyObject *self, PyObject *number) {
    (void)self;
    long count = PyLong_AsLong(number);
    if (PyErr_Occurred()) return NULL;
    if (count < 1 || count > MAX_THREADS) return PyErr_Format(PyExc_ValueError, "threads must be 1 to %d", MAX_THREADS);
    atomic_store(&wanted, (int)count);
    Py_RETURN_NONE;
}

static PyObject *threads(PyObject *self, PyObject *nothing) {
    (void)self, (void)nothing;
    return PyLong_FromLong(atomic_load(&wanted));
}

static PyObject *isa(PyObject *self, PyObject *nothing) {
    (void)self, (void)nothing;
    return PyUnicode_FromString(kernel_name);
}

#define FAST(name) {#name, (PyCFunction)(void (*)(void))name, METH_FASTCALL, NULL}
static PyMethodDef methods[] = {
    FAST(mlp_forward), FAST(mlp_backward), FAST(mlp_input_gradient), FAST(mlp_jvp), FAST(norm), FAST(adam), FAST(polyak),
    FAST(gaussian_draw), FAST(categorical_draw), FAST(gaussian_log_prob), FAST(gaussian_gradient), FAST(categorical_log_prob), FAST(categorical_gradient),
    FAST(bernoulli_log_prob), FAST(bernoulli_gradient), FAST(squash), FAST(squash_gradient), FAST(surrogate),
    FAST(value_loss), FAST(gae), {"finite", surely_finite, METH_O, NULL}, {"set_threads", set_threads, METH_O, NULL},
    {"threads", threads, METH_NOARGS, NULL}, {"isa", isa, METH_NOARGS, NULL}, {NULL, NULL, 0, NULL}};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_native", "The engine's primitives, compiled.", -1, methods,
                                    NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__native(void) {
    if (choose_kernels()) return NULL;
    pthread_atfork(NULL, NULL, after_fork);
    return PyModule_Create(&module);
}

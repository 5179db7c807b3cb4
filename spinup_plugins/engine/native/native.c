/* The engine's primitives, compiled: what numpy_ops.py specifies, over the memory layout of networks.py.
 *
 * Every function checks the arrays it is given (type, contiguity, size) before it touches one. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <limits.h>
#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__)
#define X86 1
#include <immintrin.h>
#endif

#define ALWAYS static inline __attribute__((always_inline))
#define DEPTH 512 /* long sums are taken in blocks of so many terms */
#define PAD(n) (((n) + 15) / 16 * 16)
#define HALF_LOG_2PI 0.91893853320467274178
#define MAX_LAYERS 16

/* C (height, columns) = [C +] A (height, depth) B (depth, columns) [+ bias], then C = f(C) or C = C f'(y), and sums of B's
 * columns. A and B have any strides, one of B's is 1; C and y are row-major with the same stride. */
struct product {
    ptrdiff_t height, columns, depth;
    const float *a;
    ptrdiff_t a_row, a_col;
    const float *b;
    ptrdiff_t b_row, b_col;
    float *c;
    ptrdiff_t c_row;
    const float *bias; /* or NULL */
    int add, activation, slope; /* codes of f and f', 0 for none */
    const float *y;
    const int64_t *rows; /* which rows of y, or NULL for all in order */
    float *sums; /* or NULL */
};

struct adam {
    float rate, root, keep1, beta2, keep2, epsilon, scale;
};

struct kernels {
    void (*activate)(int, float *, ptrdiff_t);
    void (*through)(int, const float *, const float *, float *, ptrdiff_t);
    void (*exp)(const float *, float *, ptrdiff_t);
    void (*log)(const float *, float *, ptrdiff_t);
    void (*softplus)(const float *, float *, ptrdiff_t);
    void (*sigmoid)(const float *, float *, ptrdiff_t);
    void (*multiply)(const struct product *, ptrdiff_t, ptrdiff_t, ptrdiff_t, ptrdiff_t, float *);
    void (*squash)(ptrdiff_t, const float *, const float *, const float *, int, float *, float *);
    void (*adam)(float *, const float *, float *, float *, ptrdiff_t, const struct adam *);
    void (*polyak)(const float *, float *, ptrdiff_t, float);
    void (*column_sums)(ptrdiff_t, ptrdiff_t, ptrdiff_t, const float *, ptrdiff_t, float *);
    double (*sum_of_squares)(const float *, ptrdiff_t);
    int (*finite32)(const uint32_t *, ptrdiff_t);
    int (*finite64)(const uint64_t *, ptrdiff_t);
    int panel; /* columns of a product's widest tile */
};

#define ISA(name) name##_portable
#define LEVEL 0
#define VW 4
#define NV 2
#define MR1 6
#define MR2 4
#include "kernels.h"
#undef ISA
#undef LEVEL
#undef VW
#undef NV
#undef MR1
#undef MR2

#ifdef X86
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
#define ISA(name) name##_avx2
#define LEVEL 1
#define VW 8
#define NV 2
#define MR1 12
#define MR2 6
#include "kernels.h"
#undef ISA
#undef LEVEL
#undef VW
#undef NV
#undef MR1
#undef MR2
#ifdef __clang__
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma"))), apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,fma,prefer-vector-width=512")
#endif
#define ISA(name) name##_avx512
#define LEVEL 2
#define VW 16
#define NV 4
#define MR1 12
#define MR2 12
#define MR3 8
#define MR4 6
#include "kernels.h"
#undef ISA
#undef LEVEL
#undef VW
#undef NV
#undef MR1
#undef MR2
#undef MR3
#undef MR4
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif

static const struct kernels *kernel = &kernels_portable;
static const struct kernels *narrow = &kernels_portable; /* for products of 2 to 8 columns */
static const char *kernel_name = "portable";

static int choose_kernels(void) {
    const char *asked = getenv("SPINUP_NATIVE_ISA");
    if (asked && !*asked) asked = NULL;
#ifdef X86
    /* These ask the operating system too, which must save the registers. */
    __builtin_cpu_init();
    int avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    int avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                 __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
    if (avx512 && (!asked || !strcmp(asked, "avx512"))) {
        kernel = &kernels_avx512, narrow = &kernels_avx2, kernel_name = "avx512";
        return 0;
    }
    if (avx2 && (!asked || !strcmp(asked, "avx2"))) {
        kernel = narrow = &kernels_avx2, kernel_name = "avx2";
        return 0;
    }
#endif
    if (!asked || !strcmp(asked, "portable")) return 0;
    PyErr_Format(PyExc_ImportError, "SPINUP_NATIVE_ISA=%s: this processor or build has no such instructions", asked);
    return -1;
}

/* --- memory of a thread's own --------------------------------------------------------------------------------------- */

#define SLOTS 3
struct scratch {
    float *memory[SLOTS];
    size_t size[SLOTS];
};
static pthread_key_t scratch_key;
static _Thread_local struct scratch *own_scratch;

static void free_scratch(void *scratch) {
    for (int i = 0; i < SLOTS; i++) free(((struct scratch *)scratch)->memory[i]);
    free(scratch);
}

/* At least so many floats, which keep their place until this thread asks for more under the same slot; or NULL. */
static float *thread_scratch(int slot, size_t floats) {
    struct scratch *own = own_scratch;
    if (!own) {
        own = calloc(1, sizeof *own);
        if (!own || pthread_setspecific(scratch_key, own)) {
            free(own);
            return NULL;
        }
        own_scratch = own;
    }
    if (own->size[slot] < floats) {
        free(own->memory[slot]);
        own->memory[slot] = NULL;
        own->size[slot] = 0;
        void *memory;
        if (posix_memalign(&memory, 64, PAD(floats) * sizeof(float))) return NULL;
        own->memory[slot] = memory;
        own->size[slot] = PAD(floats);
    }
    return own->memory[slot];
}
enum { PACK, GRADIENTS, ELEMENTS };

/* --- threads -------------------------------------------------------------------------------------------------------- */

#define MAX_THREADS 64
#define SPINS 4000 /* some 50 us: what Python takes between two calls */

/* Chunk `index` of `count` of some work. Chunks split what is written, never a sum: results are the same whoever does them. */
typedef void (*chunk_function)(const void *work, int index, int count, float *pack);

static pthread_mutex_t pool_lock = PTHREAD_MUTEX_INITIALIZER; /* held by the caller whose work the pool does */
static pthread_mutex_t wake_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t wake = PTHREAD_COND_INITIALIZER;
static atomic_int wanted = 1, workers = 0, finished = 0;
/* A round's number, how many chunks it has and the next of them, in one word: a claim is void once the round is over, so that
 * nobody waits for a thread that came late. */
#define COUNT_BITS 12
#define COUNT_MASK ((1ull << COUNT_BITS) - 1)
static atomic_ullong ticket = 0;
static chunk_function current_function;
static const void *current_work;

struct birth {
    int index;
    float *pack;
};
#define PACK_SIZE (DEPTH * (size_t)kernel->panel)

static inline void relax(void) {
#ifdef X86
    _mm_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static inline int is_open(unsigned long long t) { return (t & COUNT_MASK) < (t >> COUNT_BITS & COUNT_MASK); }

/* Do chunks of the round that is on, as long as there are any. */
static void take_part(float *pack) {
    unsigned long long t = atomic_load_explicit(&ticket, memory_order_acquire);
    while (is_open(t))
        if (atomic_compare_exchange_weak_explicit(&ticket, &t, t + 1, memory_order_acq_rel, memory_order_acquire)) {
            current_function(current_work, (int)(t & COUNT_MASK), (int)(t >> COUNT_BITS & COUNT_MASK), pack);
            atomic_fetch_add_explicit(&finished, 1, memory_order_release);
            t = atomic_load_explicit(&ticket, memory_order_acquire);
        }
}

static int called(int index) { return index < atomic_load(&wanted) && is_open(atomic_load(&ticket)); }

static void *worker(void *argument) {
    const struct birth *birth = argument;
    for (;;) {
        int spins = 0;
        while (!called(birth->index) && ++spins < SPINS) relax();
        if (spins == SPINS) {
            pthread_mutex_lock(&wake_lock);
            while (!called(birth->index)) pthread_cond_wait(&wake, &wake_lock);
            pthread_mutex_unlock(&wake_lock);
        }
        take_part(birth->pack);
    }
    return NULL;
}

static void after_fork(void) { /* the child has no threads, and must not inherit a lock that one of them held */
    pthread_mutex_init(&pool_lock, NULL);
    pthread_mutex_init(&wake_lock, NULL);
    pthread_cond_init(&wake, NULL);
    atomic_store(&workers, 0);
    atomic_store(&ticket, 0);
}

static void hire(int count) {
    sigset_t all, before; /* signals are for the interpreter's threads */
    pthread_attr_t attributes;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    while (atomic_load(&workers) < count) {
        pthread_t thread;
        void *pack = NULL;
        struct birth *birth = malloc(sizeof *birth);
        int failed = !birth || posix_memalign(&pack, 64, PACK_SIZE * sizeof(float));
        if (!failed) {
            *birth = (struct birth){atomic_load(&workers) + 1, pack};
            failed = pthread_create(&thread, &attributes, worker, birth);
        }
        if (failed) {
            free(pack);
            free(birth);
            break;
        }
        atomic_fetch_add(&workers, 1);
    }
    pthread_attr_destroy(&attributes);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

/* Do some work in so many chunks, on several threads if it is more than one; -1 when there is no memory. */
static int run(chunk_function function, const void *work, ptrdiff_t chunks) {
    float *pack = thread_scratch(PACK, PACK_SIZE);
    if (!pack) return -1;
    if (chunks < 2 || pthread_mutex_trylock(&pool_lock)) {
        function(work, 0, 1, pack);
        return 0;
    }
    int helpers = atomic_load(&wanted) - 1;
    if (atomic_load(&workers) < helpers) hire(helpers);
    current_function = function;
    current_work = work;
    atomic_store(&finished, 0);
    if (chunks > (ptrdiff_t)COUNT_MASK) chunks = COUNT_MASK;
    pthread_mutex_lock(&wake_lock);
    unsigned long long round = (atomic_load(&ticket) >> 2 * COUNT_BITS) + 1;
    atomic_store(&ticket, round << 2 * COUNT_BITS | (unsigned long long)chunks << COUNT_BITS);
    pthread_cond_broadcast(&wake);
    pthread_mutex_unlock(&wake_lock);
    take_part(pack);
    for (int spins = 0; atomic_load_explicit(&finished, memory_order_acquire) < chunks; spins++) {
        if (spins > SPINS) sched_yield();
        relax();
    }
    pthread_mutex_unlock(&pool_lock);
    return 0;
}

static inline int thread_count(void) { return atomic_load_explicit(&wanted, memory_order_relaxed); }

/* Share `index` of `count` of `total` things, in whole units. */
static void share(ptrdiff_t total, ptrdiff_t unit, ptrdiff_t index, ptrdiff_t count, ptrdiff_t *from, ptrdiff_t *to) {
    ptrdiff_t units = (total + unit - 1) / unit;
    *from = units * index / count * unit;
    *to = units * (index + 1) / count * unit;
    if (*from > total) *from = total;
    if (*to > total) *to = total;
}

struct grid {
    const struct product *p;
    ptrdiff_t down, across, unit; /* chunks of rows and of columns, the latter in whole units */
};

static void multiply_chunk(const void *work, int index, int count, float *pack) {
    const struct grid *grid = work;
    const struct product *p = grid->p;
    ptrdiff_t from = 0, to = p->height, left = 0, right = p->columns;
    if (count > 1) {
        share(p->height, 12, index % grid->down, grid->down, &from, &to);
        share(p->columns, grid->unit, index / grid->down, grid->across, &left, &right);
    }
    if (from < to && left < right)
        (p->columns > 1 && p->columns <= 8 ? narrow : kernel)->multiply(p, from, to, left, right, pack);
    if (p->sums) {
        share(p->columns, 16, index, count, &left, &right);
        kernel->column_sums(p->depth, left, right, p->b, p->b_row, p->sums);
    }
}

static int multiply(const struct product *p) {
    struct grid grid = {p, 1, 1, kernel->panel};
    ptrdiff_t threads = thread_count();
    if (threads > 1 && 2.0 * p->height * p->columns * p->depth > 2e6) {
        /* Whole panels, each of which is transposed once if at all; then rows, and parts of a panel where there are too few. */
        if (p->height < 24 * threads) grid.unit = 16;
        grid.across = (p->columns + grid.unit - 1) / grid.unit;
        grid.down = (3 * threads + grid.across - 1) / grid.across;
        if (grid.down > p->height / 24) grid.down = p->height < 24 ? 1 : p->height / 24;
        if (grid.across > 1024) grid.across = 1024;
    }
    return run(multiply_chunk, &grid, grid.down * grid.across);
}

/* --- arguments ------------------------------------------------------------------------------------------------------ */

#define MAX_ARRAYS 16
struct arguments {
    Py_buffer views[MAX_ARRAYS];
    int count, failed;
};

#define ANY (-1) /* size */

/* The memory of an array of `size` entries, or of at least as many where `size` is negative: -1 - least. */
static void *array(struct arguments *all, PyObject *from, const char *name, const char *formats, Py_ssize_t item,
                   int writable, Py_ssize_t size) {
    if (all->failed) return NULL;
    Py_buffer *view = &all->views[all->count];
    all->failed = 1;
    if (PyObject_GetBuffer(from, view, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | (writable ? PyBUF_WRITABLE : 0))) {
        PyErr_Clear();
        PyErr_Format(PyExc_ValueError, "%s must be a contiguous%s array", name, writable ? ", writable" : "");
        return NULL;
    }
    all->count++;
    const char *have = view->format ? view->format : "B";
    if (!strchr(formats, have[0]) || have[1] || view->itemsize != item) {
        PyErr_Format(PyExc_ValueError, "%s must be an array of type '%c', not '%s'", name, formats[0], have);
        return NULL;
    }
    Py_ssize_t length = view->len / item, least = -1 - size;
    if (size < 0 ? length < least : length != size) {
        PyErr_Format(PyExc_ValueError, "%s has %zd entries where %s%zd are needed", name, length,
                     size < 0 ? "at least " : "", size < 0 ? least : size);
        return NULL;
    }
    all->failed = 0;
    return view->buf;
}
#define AT_LEAST(n) (-1 - (Py_ssize_t)(n))
#define IN(i, name, size) ((const float *)array(&all, args[i], name, "f", 4, 0, size))
#define OUT(i, name, size) ((float *)array(&all, args[i], name, "f", 4, 1, size))
#define LAST_LENGTH (all.failed ? 0 : all.views[all.count - 1].len / all.views[all.count - 1].itemsize)

static double number(struct arguments *all, PyObject *from) {
    if (all->failed) return 0.0;
    double value = PyFloat_AsDouble(from);
    if (value == -1.0 && PyErr_Occurred()) all->failed = 1;
    return value;
}

static int truth(struct arguments *all, PyObject *from) {
    if (all->failed) return 0;
    int value = PyObject_IsTrue(from);
    if (value < 0) all->failed = 1;
    return value > 0;
}

static void *fail(struct arguments *all, const char *message) {
    if (!all->failed) PyErr_SetString(PyExc_ValueError, message);
    all->failed = 1;
    return NULL;
}

static float *scratch(struct arguments *all, int slot, ptrdiff_t floats) {
    if (all->failed) return NULL;
    float *memory = thread_scratch(slot, (size_t)floats + 1);
    if (!memory) all->failed = 1, PyErr_NoMemory();
    return memory;
}

static PyObject *release(struct arguments *all, PyObject *result) {
    for (int i = 0; i < all->count; i++) PyBuffer_Release(&all->views[i]);
    return result;
}
#define GIVE_UP_IF_FAILED \
    if (all.failed) return release(&all, NULL)
#define RETURN(result) return release(&all, result)
#define RETURN_NONE \
    Py_INCREF(Py_None); \
    return release(&all, Py_None)

#define FUNCTION(name, arity)                                                                            \
    static PyObject *name(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {                     \
        (void)self;                                                                                      \
        struct arguments all;                                                                            \
        all.count = all.failed = 0;                                                                      \
        if (nargs != arity) return PyErr_Format(PyExc_TypeError, "%s takes %d arguments, not %zd", #name, arity, nargs);

/* A call that computes little keeps the interpreter's lock: giving it back and asking for it costs more. */
#define BEGIN_WORK(flop)          \
    PyThreadState *state_ = NULL; \
    if ((flop) > 1e5) state_ = PyEval_SaveThread();
#define END_WORK \
    if (state_) PyEval_RestoreThread(state_);

/* --- perceptrons ---------------------------------------------------------------------------------------------------- */

struct layer {
    ptrdiff_t in, out, heads, width, theta, work; /* width: of all heads; theta, work: where its part begins */
    int code;
};
struct shape {
    int layers;
    ptrdiff_t in, out, widest, theta, work;
    struct layer layer[MAX_LAYERS];
};

static void read_shape(struct arguments *all, PyObject *object, struct shape *shape) {
    const int32_t *spec = array(all, object, "spec", "il", 4, 0, AT_LEAST(6));
    if (all->failed) return;
    int layers = spec[3];
    if (layers < 1 || layers > MAX_LAYERS || all->views[all->count - 1].len / 4 != 5 + layers) {
        fail(all, "spec must describe a perceptron of 1 to 16 layers");
        return;
    }
    shape->layers = layers;
    shape->in = shape->widest = spec[4];
    shape->theta = 0;
    for (int i = 0; i < layers; i++) {
        struct layer *at = &shape->layer[i];
        at->in = spec[4 + i], at->out = spec[5 + i];
        at->heads = i == layers - 1 ? spec[2] : 1;
        at->code = i == layers - 1 ? spec[1] : spec[0];
        if (at->in < 1 || at->out < 1 || at->heads < 1 || at->code < 0 || at->code > 5 || at->in > 1 << 20 ||
            at->heads > 1 << 20 || at->out > (1 << 20) / at->heads) {
            fail(all, "spec has a width below 1 or above 2^20, or an unknown activation");
            return;
        }
        at->width = at->out * at->heads;
        at->theta = shape->theta;
        shape->theta += at->heads * (PAD(at->in * at->out) + PAD(at->out));
        if (at->width > shape->widest) shape->widest = at->width;
    }
    shape->out = shape->layer[layers - 1].width;
}

/* Where each layer's output is, for so many rows. */
static void place(struct shape *shape, ptrdiff_t batch) {
    shape->work = 0;
    for (int i = 0; i < shape->layers; i++) {
        shape->layer[i].work = shape->work;
        shape->work += PAD(batch * shape->layer[i].width);
    }
}

/* The input, (batch, in). */
static const float *rows_of(struct arguments *all, PyObject *object, struct shape *shape, ptrdiff_t *batch) {
    const float *x = array(all, object, "x", "f", 4, 0, ANY);
    if (all->failed) return NULL;
    ptrdiff_t length = all->views[all->count - 1].len / 4;
    *batch = length / shape->in;
    if (length % shape->in) return fail(all, "x has rows of another width than spec");
    place(shape, *batch);
    return x;
}

/* spec, theta, x; returns theta */
static const float *read_network(struct arguments *all, PyObject *const *args, struct shape *shape, const float **x,
                                 ptrdiff_t *batch) {
    read_shape(all, args[0], shape);
    if (all->failed) return NULL;
    const float *theta = array(all, args[1], "theta", "f", 4, 0, AT_LEAST(shape->theta));
    *x = rows_of(all, args[2], shape, batch);
    return theta;
}

#define HEAD(at) (PAD((at)->in * (at)->out) + PAD((at)->out))

/* g_prev = sum over heads of g_h W_h^T, columns from `first` on, times the slope at y of the layer before */
static int back(const struct layer *at, const float *theta, const float *g, ptrdiff_t batch, ptrdiff_t first, float *to,
                int slope, const float *y, const int64_t *rows) {
    ptrdiff_t columns = at->in - first;
    int failed = 0;
    for (ptrdiff_t h = 0; h < at->heads; h++) {
        struct product p = {
            .height = batch, .columns = columns, .depth = at->out, .a = g + h * at->out, .a_row = at->width, .a_col = 1,
            .b = theta + at->theta + h * HEAD(at) + first * at->out, .b_row = 1, .b_col = at->out, .c = to,
            .c_row = columns, .add = h > 0, .slope = h == at->heads - 1 ? slope : 0, .y = y, .rows = rows};
        failed |= multiply(&p);
    }
    return failed;
}

/* y_l = f_l(y_{l-1} W_l + b_l) into `work`, as place() lays it out */
static int forward(const struct shape *shape, const float *theta, const float *x, ptrdiff_t batch, float *work) {
    int failed = 0;
    const float *y = x;
    for (int i = 0; i < shape->layers; i++) {
        const struct layer *at = &shape->layer[i];
        float *out = work + at->work;
        const float *part = theta + at->theta;
        for (ptrdiff_t h = 0; h < at->heads; h++) {
            struct product p = {
                .height = batch, .columns = at->out, .depth = at->in, .a = y, .a_row = at->in, .a_col = 1, .b = part,
                .b_row = at->out, .b_col = 1, .c = out + h * at->out, .c_row = at->width,
                .bias = part + PAD(at->in * at->out), .activation = at->code};
            failed |= multiply(&p);
            part += HEAD(at);
        }
        y = out;
    }
    return failed;
}

/* spec, theta, x, work */
FUNCTION(mlp_forward, 4)
    struct shape shape;
    ptrdiff_t batch;
    const float *x, *theta = read_network(&all, args, &shape, &x, &batch);
    GIVE_UP_IF_FAILED;
    float *work = OUT(3, "work", AT_LEAST(shape.work));
    GIVE_UP_IF_FAILED;
    int failed;
    BEGIN_WORK(2.0 * batch * shape.theta)
    failed = forward(&shape, theta, x, batch, work);
    END_WORK
    if (failed) RETURN(PyErr_NoMemory());
    RETURN_NONE;
}

/* spec, theta, x, work, grad_out, grad_theta, grad_x or None, scratch */
FUNCTION(mlp_backward, 8)
    struct shape shape;
    ptrdiff_t batch;
    const float *x, *theta = read_network(&all, args, &shape, &x, &batch);
    GIVE_UP_IF_FAILED;
    const float *work = IN(3, "work", AT_LEAST(shape.work)), *g = IN(4, "grad_out", batch * shape.out);
    ptrdiff_t half = PAD(batch * shape.widest), last = shape.layers - 1;
    float *grads = OUT(5, "grad_theta", AT_LEAST(shape.theta));
    float *grad_x = args[6] == Py_None ? NULL : OUT(6, "grad_x", batch * shape.in);
    float *gradients = OUT(7, "scratch", AT_LEAST(2 * half));
    GIVE_UP_IF_FAILED;
    int failed = 0;
    BEGIN_WORK(4.0 * batch * shape.theta)
    if (shape.layer[last].code) {
        float *to = gradients + (shape.layers % 2) * half;
        kernel->through(shape.layer[last].code, work + shape.layer[last].work, g, to, batch * shape.out);
        g = to;
    }
    for (int i = (int)last; i >= 0; i--) {
        struct layer *at = &shape.layer[i];
        const float *y = i == 0 ? x : work + shape.layer[i - 1].work;
        for (ptrdiff_t h = 0; h < at->heads; h++) {
            const float *part = g + h * at->out;
            float *weight = grads + at->theta + h * HEAD(at), *bias = weight + PAD(at->in * at->out);
            struct product p = {
                .height = at->in, .columns = at->out, .depth = batch, .a = y, .a_row = 1, .a_col = at->in, .b = part,
                .b_row = at->width, .b_col = 1, .c = weight, .c_row = at->out, .sums = bias};
            if (at->out == 1) { /* a column is as good as a row, and rows fill vectors */
                p.height = 1, p.columns = at->in;
                p.a = part, p.a_row = 0, p.a_col = at->width, p.b = y, p.b_row = at->in, p.c_row = at->in, p.sums = NULL;
                kernel->column_sums(batch, 0, 1, part, at->width, bias);
            }
            failed |= multiply(&p);
        }
        if (i > 0) {
            float *to = gradients + (i % 2) * half;
            failed |= back(at, theta, g, batch, 0, to, shape.layer[i - 1].code, y, NULL);
            g = to;
        } else if (grad_x) {
            failed |= back(at, theta, g, batch, 0, grad_x, 0, NULL, NULL);
        }
    }
    END_WORK
    if (failed) RETURN(PyErr_NoMemory());
    RETURN_NONE;
}

/* spec, theta, work, batch, rows or None, grad_out, first, grad_x */
FUNCTION(mlp_input_gradient, 8)
    struct shape shape;
    read_shape(&all, args[0], &shape);
    GIVE_UP_IF_FAILED;
    const float *theta = IN(1, "theta", AT_LEAST(shape.theta)), *work = IN(2, "work", ANY);
    ptrdiff_t room = LAST_LENGTH, batch = PyLong_AsSsize_t(args[3]), first = PyLong_AsSsize_t(args[6]);
    if (PyErr_Occurred()) all.failed = 1;
    if (batch < 0 || batch > room) fail(&all, "work has fewer entries than batch needs");
    if (first < 0 || first >= shape.in) fail(&all, "first must be a column of the input");
    GIVE_UP_IF_FAILED;
    place(&shape, batch);
    if (shape.work > room) fail(&all, "work has fewer entries than batch needs");
    ptrdiff_t count = batch;
    const int64_t *rows = args[4] == Py_None ? NULL : array(&all, args[4], "rows", "lq", 8, 0, ANY);
    if (rows) count = LAST_LENGTH;
    for (ptrdiff_t i = 0; rows && i < count; i++)
        if (rows[i] < 0 || rows[i] >= batch) {
            fail(&all, "rows must be rows of the batch");
            break;
        }
    const float *g = IN(5, "grad_out", count * shape.out);
    float *grad_x = OUT(7, "grad_x", count * (shape.in - first));
    ptrdiff_t half = PAD(count * shape.widest);
    float *gradients = scratch(&all, GRADIENTS, 2 * half);
    GIVE_UP_IF_FAILED;
    int last = shape.layers - 1, failed = 0;
    BEGIN_WORK(2.0 * count * shape.theta)
    struct layer *end = &shape.layer[last];
    if (end->code) {
        float *to = gradients + (shape.layers % 2) * half;
        for (ptrdiff_t r = 0; r < count; r++)
            kernel->through(end->code, work + end->work + (rows ? rows[r] : r) * end->width, g + r * end->width,
                            to + r * end->width, end->width);
        g = to;
    }
    for (int i = last; i >= 0; i--) {
        float *to = i == 0 ? grad_x : gradients + (i % 2) * half;
        failed |= back(&shape.layer[i], theta, g, count, i == 0 ? first : 0, to, i == 0 ? 0 : shape.layer[i - 1].code,
                       i == 0 ? NULL : work + shape.layer[i - 1].work, rows);
        g = to;
    }
    END_WORK
    if (failed) RETURN(PyErr_NoMemory());
    RETURN_NONE;
}

/* spec, theta, x, work, vector, out_work */
FUNCTION(mlp_jvp, 6)
    struct shape shape;
    ptrdiff_t batch;
    const float *x, *theta = read_network(&all, args, &shape, &x, &batch);
    GIVE_UP_IF_FAILED;
    const float *work = IN(3, "work", AT_LEAST(shape.work)), *vector = IN(4, "vector", AT_LEAST(shape.theta));
    float *out_work = OUT(5, "out", AT_LEAST(shape.work));
    GIVE_UP_IF_FAILED;
    int failed = 0;
    BEGIN_WORK(4.0 * batch * shape.theta)
    for (int i = 0; i < shape.layers; i++) {
        struct layer *at = &shape.layer[i];
        ptrdiff_t start = at->theta;
        for (ptrdiff_t h = 0; h < at->heads; h++) {
            float *out = out_work + at->work + h * at->out;
            struct product p = {
                .height = batch, .columns = at->out, .depth = at->in, .a = i == 0 ? x : work + shape.layer[i - 1].work,
                .a_row = at->in, .a_col = 1, .b = vector + start, .b_row = at->out, .b_col = 1, .c = out,
                .c_row = at->width, .bias = vector + start + PAD(at->in * at->out), .y = work + at->work + h * at->out};
            if (i == 0) p.slope = at->code;
            failed |= multiply(&p);
            if (i > 0) {
                p.a = out_work + shape.layer[i - 1].work, p.b = theta + start;
                p.bias = NULL, p.add = 1, p.slope = at->code;
                failed |= multiply(&p);
            }
            start += HEAD(at);
        }
    }
    END_WORK
    if (failed) RETURN(PyErr_NoMemory());
    RETURN_NONE;
}

/* --- optimiser ------------------------------------------------------------------------------------------------------ */

/* Chunks of a vector that is worth sharing between threads, 16384 floats each. */
static ptrdiff_t chunks_of(ptrdiff_t count) { return thread_count() > 1 && count >= 65536 ? count / 16384 : 1; }

FUNCTION(norm, 1)
    const float *x = IN(0, "x", ANY);
    GIVE_UP_IF_FAILED;
    ptrdiff_t count = LAST_LENGTH;
    double square;
    BEGIN_WORK(2.0 * count)
    square = kernel->sum_of_squares(x, count);
    END_WORK
    RETURN(PyFloat_FromDouble(sqrt(square)));
}

struct adam_work {
    float *theta, *first, *second;
    const float *grad;
    ptrdiff_t count;
    struct adam constants;
};

static void adam_chunk(const void *work, int index, int count, float *pack) {
    (void)pack;
    const struct adam_work *w = work;
    ptrdiff_t from, to;
    share(w->count, 1024, index, count, &from, &to);
    kernel->adam(w->theta + from, w->grad + from, w->first + from, w->second + from, to - from, &w->constants);
}

/* theta, grad, first, second, step, learning_rate, beta1, beta2, epsilon, scale */
FUNCTION(adam, 10)
    struct adam_work work;
    work.theta = OUT(0, "theta", ANY);
    work.count = LAST_LENGTH;
    work.grad = IN(1, "grad", work.count);
    work.first = OUT(2, "first", work.count);
    work.second = OUT(3, "second", work.count);
    double step = number(&all, args[4]), rate = number(&all, args[5]), beta1 = number(&all, args[6]);
    double beta2 = number(&all, args[7]), epsilon = number(&all, args[8]), scale = number(&all, args[9]);
    GIVE_UP_IF_FAILED;
    work.constants = (struct adam){
        .rate = (float)(rate / (1.0 - pow(beta1, step))), .root = (float)(1.0 / sqrt(1.0 - pow(beta2, step))),
        .keep1 = (float)(1.0 - beta1), .beta2 = (float)beta2, .keep2 = (float)(1.0 - beta2), .epsilon = (float)epsilon,
        .scale = (float)scale};
    int failed;
    BEGIN_WORK(10.0 * work.count)
    failed = run(adam_chunk, &work, chunks_of(work.count));
    END_WORK
    if (failed) RETURN(PyErr_NoMemory());
    RETURN_NONE;
}

struct polyak_work {
    const float *theta;
    float *target, tau;
    ptrdiff_t count;
};

static void polyak_chunk(const void *work, int index, int count, float *pack) {
    (void)pack;
    const struct polyak_work *w = work;
    ptrdiff_t from, to;
    share(w->count, 1024, index, count, &from, &to);
    kernel->polyak(w->theta + from, w->target + from, to - from, w->tau);
}

/* theta, target, tau */
FUNCTION(polyak, 3)
    struct polyak_work work;
    work.theta = IN(0, "theta", ANY);
    work.count = LAST_LENGTH;
    work.target = OUT(1, "target", work.count);
    work.tau = (float)number(&all, args[2]);
    GIVE_UP_IF_FAILED;
    int failed;
    BEGIN_WORK(3.0 * work.count)
    failed = run(polyak_chunk, &work, chunks_of(work.count));
    END_WORK
    if (failed) RETURN(PyErr_NoMemory());
    RETURN_NONE;
}

/* --- distributions -------------------------------------------------------------------------------------------------- */

/* Rows of `length` entries of `width` each. */
static ptrdiff_t count_rows(struct arguments *all, const char *message, ptrdiff_t width) {
    ptrdiff_t length = all->failed ? 0 : all->views[all->count - 1].len / 4;
    if (!all->failed && length % width) fail(all, message);
    return length / width;
}

/* log_std, then what it is needed for: e^(sign log sigma) in scratch, and sum log sigma + A/2 log 2 pi */
static const float *deviations(struct arguments *all, PyObject *object, float sign, ptrdiff_t *size, double *constant) {
    const float *log_std = array(all, object, "log_std", "f", 4, 0, AT_LEAST(1));
    *size = all->failed ? 1 : all->views[all->count - 1].len / 4;
    float *result = scratch(all, ELEMENTS, *size);
    *constant = HALF_LOG_2PI * *size;
    for (ptrdiff_t j = 0; !all->failed && j < *size; j++) result[j] = expf(sign * log_std[j]), *constant += log_std[j];
    return result;
}

/* a = mu + sigma e and log pi(a|s), sigma and the logarithms' sum given */
static void draw_gaussian(ptrdiff_t batch, ptrdiff_t size, const float *mean, const float *deviation, double constant,
                          const float *noise, float *actions, float *out) {
    for (ptrdiff_t i = 0; i < batch; i++) {
        float sum = 0.0f;
        for (ptrdiff_t j = i * size; j < (i + 1) * size; j++) {
            actions[j] = mean[j] + deviation[j - i * size] * noise[j];
            sum += noise[j] * noise[j];
        }
        out[i] = -0.5f * sum - (float)constant;
    }
}

/* mean, log_std, noise, out_actions, out */
FUNCTION(gaussian_draw, 5)
    ptrdiff_t size;
    double constant;
    const float *deviation = deviations(&all, args[1], 1.0f, &size, &constant), *mean = IN(0, "mean", ANY);
    ptrdiff_t batch = count_rows(&all, "mean must have the width of log_std", size);
    const float *noise = IN(2, "noise", batch * size);
    float *actions = OUT(3, "out_actions", batch * size), *out = OUT(4, "out", batch);
    GIVE_UP_IF_FAILED;
    draw_gaussian(batch, size, mean, deviation, constant, noise, actions, out);
    RETURN_NONE;
}

/* mean, log_std, actions, out */
FUNCTION(gaussian_log_prob, 4)
    ptrdiff_t size;
    double constant;
    const float *inverse = deviations(&all, args[1], -1.0f, &size, &constant), *mean = IN(0, "mean", ANY);
    ptrdiff_t batch = count_rows(&all, "mean must have the width of log_std", size);
    const float *actions = IN(2, "actions", batch * size);
    float *out = OUT(3, "out", batch);
    GIVE_UP_IF_FAILED;
    for (ptrdiff_t i = 0; i < batch; i++) {
        float sum = 0.0f;
        for (ptrdiff_t j = 0; j < size; j++) {
            float z = (actions[i * size + j] - mean[i * size + j]) * inverse[j];
            sum += z * z;
        }
        out[i] = -0.5f * sum - (float)constant;
    }
    RETURN_NONE;
}

/* mean, log_std, actions, grad_log_prob, entropy, grad_mean, grad_log_std */
FUNCTION(gaussian_gradient, 7)
    ptrdiff_t size;
    double constant, total = 0.0;
    const float *inverse = deviations(&all, args[1], -1.0f, &size, &constant), *mean = IN(0, "mean", ANY);
    ptrdiff_t batch = count_rows(&all, "mean must have the width of log_std", size);
    const float *actions = IN(2, "actions", batch * size), *g = IN(3, "grad_log_prob", batch);
    double entropy = number(&all, args[4]);
    float *grad_mean = OUT(5, "grad_mean", batch * size), *grad_log_std = OUT(6, "grad_log_std", size);
    GIVE_UP_IF_FAILED;
    memset(grad_log_std, 0, size * sizeof(float));
    for (ptrdiff_t i = 0; i < batch; i++) {
        total += g[i];
        for (ptrdiff_t j = 0; j < size; j++) {
            float z = (actions[i * size + j] - mean[i * size + j]) * inverse[j], gz = g[i] * z;
            grad_mean[i * size + j] = gz * inverse[j];
            grad_log_std[j] += gz * z;
        }
    }
    for (ptrdiff_t j = 0; j < size; j++) grad_log_std[j] += (float)(entropy - total);
    RETURN_NONE;
}

/* How many options each of `count` choices has, `total` together. */
static const int32_t *options(struct arguments *all, PyObject *object, ptrdiff_t *count, ptrdiff_t *total) {
    const int32_t *nvec = array(all, object, "nvec", "il", 4, 0, AT_LEAST(1));
    *count = all->failed ? 0 : all->views[all->count - 1].len / 4;
    *total = 0;
    for (ptrdiff_t k = 0; k < *count; k++) {
        if (nvec[k] < 1) return fail(all, "nvec must have entries of 1 or more");
        *total += nvec[k];
    }
    if (!*total) *total = 1;
    return nvec;
}

static inline float highest_of(const float *x, ptrdiff_t count) {
    float highest = x[0];
    for (ptrdiff_t j = 1; j < count; j++) highest = x[j] > highest ? x[j] : highest;
    return highest;
}

/* a = argmax_j p_j / e_j of each choice, and log pi(a|s) */
static void draw_categorical(ptrdiff_t batch, ptrdiff_t count, ptrdiff_t total, const int32_t *nvec, const float *logits,
                             const float *noise, int64_t *actions, float *out) {
    memset(out, 0, batch * sizeof(float));
    for (ptrdiff_t k = 0, start = 0; k < count; start += nvec[k++])
        for (ptrdiff_t i = 0; i < batch; i++) {
            const float *l = logits + i * total + start, *e = noise + batch * start + i * nvec[k];
            float highest = highest_of(l, nvec[k]), sum = 0.0f, best = -1.0f;
            ptrdiff_t choice = 0;
            for (ptrdiff_t j = 0; j < nvec[k]; j++) {
                float weight = expf(l[j] - highest), ratio = weight / e[j];
                sum += weight;
                if (ratio > best) best = ratio, choice = j;
            }
            actions[i * count + k] = choice;
            out[i] += l[choice] - highest - logf(sum);
        }
}

/* logits, nvec, noise, out_actions, out */
FUNCTION(categorical_draw, 5)
    ptrdiff_t count, total;
    const int32_t *nvec = options(&all, args[1], &count, &total);
    const float *logits = IN(0, "logits", ANY);
    ptrdiff_t batch = count_rows(&all, "logits must have the width that nvec sums to", total);
    const float *noise = IN(2, "noise", batch * total);
    int64_t *actions = array(&all, args[3], "out_actions", "lq", 8, 1, batch * count);
    float *out = OUT(4, "out", batch);
    GIVE_UP_IF_FAILED;
    draw_categorical(batch, count, total, nvec, logits, noise, actions, out);
    RETURN_NONE;
}

/* logits, nvec, actions, out, out_log_softmax */
FUNCTION(categorical_log_prob, 5)
    ptrdiff_t count, total;
    const int32_t *nvec = options(&all, args[1], &count, &total);
    const float *logits = IN(0, "logits", ANY);
    ptrdiff_t batch = count_rows(&all, "logits must have the width that nvec sums to", total);
    const float *actions = IN(2, "actions", batch * count);
    float *out = OUT(3, "out", batch), *result = OUT(4, "out_log_softmax", batch * total);
    float *weights = scratch(&all, ELEMENTS, batch * total + batch * count), *sums = weights + batch * total;
    GIVE_UP_IF_FAILED;
    double entropy = 0.0;
    for (ptrdiff_t i = 0, start = 0; i < batch; i++)
        for (ptrdiff_t k = 0; k < count; start += nvec[k++]) {
            float highest = highest_of(logits + start, nvec[k]);
            for (ptrdiff_t j = start; j < start + nvec[k]; j++) result[j] = logits[j] - highest;
        }
    kernel->exp(result, weights, batch * total);
    for (ptrdiff_t i = 0, start = 0; i < batch; i++)
        for (ptrdiff_t k = 0; k < count; start += nvec[k++]) {
            float sum = 0.0f, mean = 0.0f;
            for (ptrdiff_t j = start; j < start + nvec[k]; j++) sum += weights[j], mean += weights[j] * result[j];
            sums[i * count + k] = sum;
            entropy -= mean / sum;
        }
    kernel->log(sums, sums, batch * count);
    for (ptrdiff_t i = 0, start = 0; i < batch; i++) {
        out[i] = 0.0f;
        for (ptrdiff_t k = 0; k < count; start += nvec[k++]) {
            float log_sum = sums[i * count + k], action = actions[i * count + k];
            for (ptrdiff_t j = start; j < start + nvec[k]; j++) result[j] -= log_sum;
            entropy += log_sum;
            out[i] += action >= 0.0f && action < (float)nvec[k] ? result[start + (ptrdiff_t)action] : NAN;
        }
    }
    RETURN(PyFloat_FromDouble(entropy / batch));
}

/* Actor and critic on the same rows: specs, thetas and works of both, x, (B,) for V. */
struct pair {
    struct shape actor, critic;
    const float *actor_theta, *critic_theta, *x;
    float *actor_work, *critic_work, *values;
    ptrdiff_t batch;
};

static void read_pair(struct arguments *all, PyObject *const *args, struct pair *pair) {
    read_shape(all, args[0], &pair->actor);
    read_shape(all, args[3], &pair->critic);
    if (all->failed) return;
    pair->actor_theta = array(all, args[1], "theta", "f", 4, 0, AT_LEAST(pair->actor.theta));
    pair->critic_theta = array(all, args[4], "theta", "f", 4, 0, AT_LEAST(pair->critic.theta));
    pair->x = rows_of(all, args[6], &pair->actor, &pair->batch);
    if (all->failed) return;
    place(&pair->critic, pair->batch);
    if (pair->critic.in != pair->actor.in || pair->critic.out != 1) {
        fail(all, "the critic's spec must have the actor's input and one output");
        return;
    }
    pair->actor_work = array(all, args[2], "work", "f", 4, 1, AT_LEAST(pair->actor.work));
    pair->critic_work = array(all, args[5], "work", "f", 4, 1, AT_LEAST(pair->critic.work));
    pair->values = array(all, args[7], "out_values", "f", 4, 1, pair->batch);
}

/* Returns the actor's output, or NULL where there is no memory. */
static const float *forward_both(const struct pair *pair) {
    ptrdiff_t last = pair->critic.layers - 1;
    if (forward(&pair->critic, pair->critic_theta, pair->x, pair->batch, pair->critic_work)) return NULL;
    memcpy(pair->values, pair->critic_work + pair->critic.layer[last].work, pair->batch * sizeof(float));
    if (forward(&pair->actor, pair->actor_theta, pair->x, pair->batch, pair->actor_work)) return NULL;
    return pair->actor_work + pair->actor.layer[pair->actor.layers - 1].work;
}

static inline float clipped(float x, float low, float high) { return x < low ? low : x > high ? high : x; }

/* spec, theta and work of the actor, of the critic, x, out_values, log_std, noise, low, high, out_actions, out_clipped, out */
FUNCTION(gaussian_act, 15)
    struct pair pair;
    ptrdiff_t size;
    double constant;
    read_pair(&all, args, &pair);
    const float *deviation = deviations(&all, args[8], 1.0f, &size, &constant);
    if (!all.failed && size != pair.actor.out) fail(&all, "log_std must have the width of the actor's output");
    ptrdiff_t count = all.failed ? 0 : pair.batch * size;
    const float *noise = IN(9, "noise", count), *low = IN(10, "low", size), *high = IN(11, "high", size);
    float *actions = OUT(12, "out_actions", count), *inside = OUT(13, "out_clipped", count), *out = OUT(14, "out", pair.batch);
    GIVE_UP_IF_FAILED;
    const float *mean;
    BEGIN_WORK(2.0 * pair.batch * (pair.actor.theta + pair.critic.theta))
    mean = forward_both(&pair);
    if (mean) draw_gaussian(pair.batch, size, mean, deviation, constant, noise, actions, out);
    for (ptrdiff_t i = 0; mean && i < count; i++) inside[i] = clipped(actions[i], low[i % size], high[i % size]);
    END_WORK
    if (!mean) RETURN(PyErr_NoMemory());
    RETURN_NONE;
}

/* spec, theta and work of the actor, of the critic, x, out_values, nvec, noise, out_actions, out */
FUNCTION(categorical_act, 12)
    struct pair pair;
    ptrdiff_t choices, total;
    read_pair(&all, args, &pair);
    const int32_t *nvec = options(&all, args[8], &choices, &total);
    if (!all.failed && total != pair.actor.out) fail(&all, "nvec must sum to the width of the actor's output");
    ptrdiff_t batch = all.failed ? 0 : pair.batch;
    const float *noise = IN(9, "noise", batch * total);
    int64_t *actions = array(&all, args[10], "out_actions", "lq", 8, 1, batch * choices);
    float *out = OUT(11, "out", batch);
    GIVE_UP_IF_FAILED;
    const float *logits;
    BEGIN_WORK(2.0 * batch * (pair.actor.theta + pair.critic.theta))
    logits = forward_both(&pair);
    if (logits) draw_categorical(batch, choices, total, nvec, logits, noise, actions, out);
    END_WORK
    if (!logits) RETURN(PyErr_NoMemory());
    RETURN_NONE;
}

/* log_softmax, nvec, actions, grad_log_prob, entropy, grad_logits */
FUNCTION(categorical_gradient, 6)
    ptrdiff_t count, total;
    const int32_t *nvec = options(&all, args[1], &count, &total);
    const float *log_softmax = IN(0, "log_softmax", ANY);
    ptrdiff_t batch = count_rows(&all, "log_softmax must have the width that nvec sums to", total);
    const float *actions = IN(2, "actions", batch * count), *g = IN(3, "grad_log_prob", batch);
    double entropy = number(&all, args[4]);
    float *grad = OUT(5, "grad_logits", batch * total);
    GIVE_UP_IF_FAILED;
    float per_row = (float)(entropy / batch);
    kernel->exp(log_softmax, grad, batch * total);
    for (ptrdiff_t i = 0, start = 0; i < batch; i++)
        for (ptrdiff_t k = 0; k < count; start += nvec[k++]) {
            float h = 0.0f, action = actions[i * count + k];
            ptrdiff_t end = start + nvec[k];
            for (ptrdiff_t j = start; entropy != 0.0 && j < end; j++) h -= grad[j] * log_softmax[j];
            for (ptrdiff_t j = start; j < end; j++) {
                float bonus = entropy != 0.0 ? per_row * (log_softmax[j] + h) : 0.0f;
                grad[j] *= -g[i] - bonus;
            }
            if (action >= 0.0f && action < (float)nvec[k]) grad[start + (ptrdiff_t)action] += g[i];
        }
    RETURN_NONE;
}

/* Rows and width of the (batch, size) array that was taken last. */
static ptrdiff_t width_of(struct arguments *all, const char *message, ptrdiff_t *batch) {
    *batch = 0;
    if (all->failed) return 0;
    Py_buffer *view = &all->views[all->count - 1];
    if (view->ndim != 2) {
        fail(all, message);
        return 0;
    }
    *batch = view->shape[0];
    return view->shape[1];
}

/* logits, actions, out */
FUNCTION(bernoulli_log_prob, 3)
    ptrdiff_t batch;
    const float *logits = IN(0, "logits", ANY);
    ptrdiff_t size = width_of(&all, "logits must have two axes", &batch), count = batch * size;
    const float *actions = IN(1, "actions", count);
    float *out = OUT(2, "out", batch), *softplus = scratch(&all, ELEMENTS, 2 * count), *p = softplus + count;
    GIVE_UP_IF_FAILED;
    kernel->softplus(logits, softplus, count);
    kernel->sigmoid(logits, p, count);
    double entropy = 0.0;
    for (ptrdiff_t i = 0; i < batch; i++) {
        float sum = 0.0f;
        for (ptrdiff_t j = i * size; j < (i + 1) * size; j++) {
            sum += actions[j] * logits[j] - softplus[j];
            entropy += softplus[j] - logits[j] * p[j];
        }
        out[i] = sum;
    }
    RETURN(PyFloat_FromDouble(entropy / batch));
}

/* logits, actions, grad_log_prob, entropy, grad_logits */
FUNCTION(bernoulli_gradient, 5)
    ptrdiff_t batch;
    const float *logits = IN(0, "logits", ANY);
    ptrdiff_t size = width_of(&all, "logits must have two axes", &batch), count = batch * size;
    const float *actions = IN(1, "actions", count), *g = IN(2, "grad_log_prob", batch);
    double entropy = number(&all, args[3]);
    float *grad = OUT(4, "grad_logits", count), *p = scratch(&all, ELEMENTS, count);
    GIVE_UP_IF_FAILED;
    float per_row = (float)(entropy / batch);
    kernel->sigmoid(logits, p, count);
    for (ptrdiff_t i = 0; i < batch; i++)
        for (ptrdiff_t j = i * size; j < (i + 1) * size; j++) {
            grad[j] = g[i] * (actions[j] - p[j]);
            if (entropy != 0.0) grad[j] -= per_row * logits[j] * p[j] * (1.0f - p[j]);
        }
    RETURN_NONE;
}

/* params, noise, exact, out_actions, out_log_prob */
FUNCTION(squash, 5)
    ptrdiff_t batch;
    const float *noise = IN(1, "noise", ANY);
    ptrdiff_t size = width_of(&all, "noise must have two axes", &batch);
    const float *params = IN(0, "params", 2 * batch * size);
    int exact = truth(&all, args[2]);
    float *actions = OUT(3, "out_actions", batch * size), *out = OUT(4, "out_log_prob", batch);
    /* Some rows at a time, their halves apart: whole vectors of each. */
    ptrdiff_t block = size > 512 ? 1 : 512 / (size ? size : 1), room = PAD(block * size);
    float *mean = scratch(&all, ELEMENTS, 5 * room);
    GIVE_UP_IF_FAILED;
    float *log_std = mean + room, *e = log_std + room, *a = e + room, *terms = a + room;
    BEGIN_WORK(50.0 * batch * size)
    memset(mean, 0, 5 * room * sizeof(float));
    for (ptrdiff_t i = 0; i < batch; i += block) {
        ptrdiff_t rows = batch - i < block ? batch - i : block;
        for (ptrdiff_t r = 0; r < rows; r++)
            for (ptrdiff_t j = 0; j < size; j++) {
                mean[r * size + j] = params[(i + r) * 2 * size + j];
                log_std[r * size + j] = params[(i + r) * 2 * size + size + j];
            }
        memcpy(e, noise + i * size, rows * size * sizeof(float));
        kernel->squash(rows * size, mean, log_std, e, exact, a, terms);
        memcpy(actions + i * size, a, rows * size * sizeof(float));
        for (ptrdiff_t r = 0; r < rows; r++) {
            float sum = 0.0f;
            for (ptrdiff_t j = 0; j < size; j++) sum += terms[r * size + j];
            out[i + r] = -sum;
        }
    }
    END_WORK
    RETURN_NONE;
}

/* params, noise, actions, exact, grad_actions, grad_log_prob, grad_params */
FUNCTION(squash_gradient, 7)
    ptrdiff_t batch;
    const float *noise = IN(1, "noise", ANY);
    ptrdiff_t size = width_of(&all, "noise must have two axes", &batch), total = batch * size;
    const float *params = IN(0, "params", 2 * total), *actions = IN(2, "actions", total);
    int exact = truth(&all, args[3]);
    const float *grad_actions = IN(4, "grad_actions", total);
    float l = (float)number(&all, args[5]), *grad = OUT(6, "grad_params", 2 * total), *std = scratch(&all, ELEMENTS, total);
    GIVE_UP_IF_FAILED;
    BEGIN_WORK(30.0 * total)
    for (ptrdiff_t i = 0; i < batch; i++)
        for (ptrdiff_t j = 0; j < size; j++) std[i * size + j] = clipped(params[(2 * i + 1) * size + j], -20.0f, 2.0f);
    kernel->exp(std, std, total);
    for (ptrdiff_t i = 0; i < batch; i++) {
        float *grad_mean = grad + 2 * i * size, *grad_log_std = grad_mean + size;
        const float *raw = params + (2 * i + 1) * size;
        for (ptrdiff_t j = 0; j < size; j++) {
            float a = actions[i * size + j], slope = 1.0f - a * a;
            float push = 2.0f * l * a * (exact ? 1.0f : slope / (slope + 1e-6f)), du = grad_actions[i * size + j] * slope + push;
            grad_mean[j] = du;
            grad_log_std[j] = raw[j] < -20.0f || raw[j] > 2.0f ? 0.0f : du * std[i * size + j] * noise[i * size + j] - l;
        }
    }
    END_WORK
    RETURN_NONE;
}

/* --- losses --------------------------------------------------------------------------------------------------------- */

/* log_prob, old_log_prob, advantages, clip_range, normalize, grad_log_prob */
FUNCTION(surrogate, 6)
    const float *log_prob = IN(0, "log_prob", AT_LEAST(1));
    ptrdiff_t batch = LAST_LENGTH, outside = 0;
    const float *old = IN(1, "old_log_prob", batch), *advantages = IN(2, "advantages", batch);
    double clip = number(&all, args[3]), mean = 0.0, deviation = 0.0, loss = 0.0, k1 = 0.0, k3 = 0.0;
    int normalize = truth(&all, args[4]);
    float *grad = OUT(5, "grad_log_prob", batch), *ratios = scratch(&all, ELEMENTS, batch), shift = 0.0f, scale = 1.0f;
    GIVE_UP_IF_FAILED;
    if (normalize && batch > 1) {
        for (ptrdiff_t i = 0; i < batch; i++) mean += advantages[i];
        mean /= batch;
        for (ptrdiff_t i = 0; i < batch; i++) deviation += (advantages[i] - mean) * (advantages[i] - mean);
        shift = (float)mean;
        scale = (float)(1.0 / (sqrt(deviation / (batch - 1)) + 1e-8));
    }
    float low = (float)(1.0 - clip), high = (float)(1.0 + clip), width = (float)clip, share_of = -1.0f / (float)batch;
    for (ptrdiff_t i = 0; i < batch; i++) ratios[i] = log_prob[i] - old[i];
    kernel->exp(ratios, ratios, batch);
    for (ptrdiff_t i = 0; i < batch; i++) {
        float log_ratio = log_prob[i] - old[i], ratio = ratios[i], a = (advantages[i] - shift) * scale;
        float gain = ratio * a, other = clipped(ratio, low, high) * a;
        int inside = !(gain > other); /* a NaN is passed on */
        k1 -= log_ratio;
        k3 += ratio - 1.0f - log_ratio;
        outside += fabsf(ratio - 1.0f) > width;
        loss -= inside ? gain : other;
        grad[i] = inside ? gain * share_of : 0.0f;
    }
    RETURN(Py_BuildValue("dddd", loss / batch, k3 / batch, k1 / batch, (double)outside / batch));
}

/* values, old_values, returns, clip_range, coefficient, grad_values */
FUNCTION(value_loss, 6)
    const float *values = IN(0, "values", AT_LEAST(1));
    ptrdiff_t batch = LAST_LENGTH;
    const float *old = IN(1, "old_values", batch), *returns = IN(2, "returns", batch);
    double clip = number(&all, args[3]), coefficient = number(&all, args[4]), loss = 0.0;
    float *grad = OUT(5, "grad_values", batch);
    GIVE_UP_IF_FAILED;
    float width = (float)clip, factor = (float)(2.0 * coefficient / batch);
    for (ptrdiff_t i = 0; i < batch; i++) {
        float error = values[i] - returns[i];
        int inside = 1;
        if (clip != INFINITY) {
            float moved = values[i] - old[i];
            inside = !(fabsf(moved) > width);
            error = old[i] + clipped(moved, -width, width) - returns[i];
        }
        loss += (double)error * error;
        grad[i] = inside ? factor * error : 0.0f;
    }
    RETURN(PyFloat_FromDouble(loss / batch));
}

/* --- rollouts ------------------------------------------------------------------------------------------------------- */

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
    for (ptrdiff_t t = steps - 1; t >= 0; t--) {
        ptrdiff_t row = t * envs;
        const float *ends = last_dones, *following = last_values;
        if (t < steps - 1) ends = starts + row + envs, following = values + row + envs;
        for (ptrdiff_t n = 0; n < envs; n++) {
            float going = 1.0f - ends[n], later = t < steps - 1 ? out[row + envs + n] : 0.0f;
            float delta = rewards[row + n] + gamma * following[n] * going - values[row + n];
            out[row + n] = delta + decay * going * later;
        }
    }
}

/* rewards, values, starts, last_values, last_dones, gamma, gae_lambda, out */
FUNCTION(gae, 8)
    const float *last_values = IN(3, "last_values", AT_LEAST(1));
    ptrdiff_t envs = all.failed ? 1 : LAST_LENGTH;
    const float *last_dones = IN(4, "last_dones", envs), *rewards = IN(0, "rewards", ANY);
    ptrdiff_t total = LAST_LENGTH;
    if (total % envs) fail(&all, "rewards must have a column for each of last_values");
    const float *values = IN(1, "values", total), *starts = IN(2, "starts", total);
    double gamma = number(&all, args[5]), gae_lambda = number(&all, args[6]);
    float *out = OUT(7, "out", total);
    GIVE_UP_IF_FAILED;
    estimate(total / envs, envs, rewards, values, starts, last_values, last_dones, (float)gamma, (float)(gamma * gae_lambda),
             out);
    RETURN_NONE;
}

static PyObject *surely_finite(PyObject *self, PyObject *x) {
    (void)self;
    Py_buffer view;
    if (PyObject_GetBuffer(x, &view, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT)) {
        PyErr_Clear();
        Py_RETURN_FALSE;
    }
    int sure = 0;
    if (view.format && !strcmp(view.format, "f")) sure = kernel->finite32(view.buf, view.len / 4);
    if (view.format && !strcmp(view.format, "d")) sure = kernel->finite64(view.buf, view.len / 8);
    PyBuffer_Release(&view);
    return PyBool_FromLong(sure);
}

static PyObject *set_threads(PyObject *self, PyObject *count) {
    (void)self;
    long threads = PyLong_AsLong(count);
    if (threads == -1 && PyErr_Occurred()) return NULL;
    if (threads < 1 || threads > MAX_THREADS) return PyErr_Format(PyExc_ValueError, "count must be 1 to %d", MAX_THREADS);
    atomic_store(&wanted, (int)threads);
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
    FAST(mlp_forward),
    FAST(mlp_backward),
    FAST(mlp_input_gradient),
    FAST(mlp_jvp),
    FAST(norm),
    FAST(adam),
    FAST(polyak),
    FAST(gaussian_draw),
    FAST(gaussian_act),
    FAST(gaussian_log_prob),
    FAST(gaussian_gradient),
    FAST(categorical_draw),
    FAST(categorical_act),
    FAST(categorical_log_prob),
    FAST(categorical_gradient),
    FAST(bernoulli_log_prob),
    FAST(bernoulli_gradient),
    FAST(squash),
    FAST(squash_gradient),
    FAST(surrogate),
    FAST(value_loss),
    FAST(gae),
    {"finite", surely_finite, METH_O, NULL},
    {"set_threads", set_threads, METH_O, NULL},
    {"threads", threads, METH_NOARGS, NULL},
    {"isa", isa, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_native", "The engine's primitives, compiled.", -1, methods,
                                    NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__native(void) {
    if (choose_kernels()) return NULL;
    if (pthread_key_create(&scratch_key, free_scratch) || pthread_atfork(NULL, NULL, after_fork)) return PyErr_NoMemory();
    return PyModule_Create(&module);
}

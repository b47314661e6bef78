/* The library by its public headers, from several threads at once, and every error path's
 * clean-up: to be run under ThreadSanitizer and under valgrind (run_api.sh). No Python.
 * The one argument scales how much is done: 1 for valgrind. */
#include "../csrc/ane.h"
#include "../csrc/bridge/ane_bridge.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static atomic_int failed, passed;

#define CHECK(x)                                                                            \
    do {                                                                                    \
        if (x) {                                                                            \
            atomic_fetch_add(&passed, 1);                                                   \
        } else {                                                                            \
            atomic_fetch_add(&failed, 1);                                                   \
            printf("%s:%d: %s\n", __FILE__, __LINE__, #x);                                  \
        }                                                                                   \
    } while (0)

enum { ROWS = 96, INNER = 64, THREADS = 4 };

/* Products large enough for the pool, a fused tail, and a reduction. */
static const char layer[] =
    "program(1.3)\n{\n"
    "    func main<ios18>(tensor<fp32, [96, 64]> x, tensor<fp32, [64, 64]> w) {\n"
    "        tensor<fp32, [96, 64]> p = matmul(x = x, y = w)[name = string(\"p\")];\n"
    "        tensor<fp32, [96, 64]> r = relu(x = p)[name = string(\"r\")];\n"
    "        tensor<fp32, [96, 64]> y = add(x = r, y = x)[name = string(\"y\")];\n"
    "    } -> (y);\n}\n";

static const char small[] =
    "program(1.3)\n{\n"
    "    func main<ios18>(tensor<fp32, [4]> x) {\n"
    "        tensor<fp32, [4]> y = square(x = x)[name = string(\"y\")];\n"
    "    } -> (y);\n}\n";

static ane_kernel *compile(const char *text) {
    ane_error err = {0};
    ane_program *p = NULL;
    ane_kernel *k = NULL;
    ane_parse_options parse = {.size = sizeof parse, .filename = "driver.mil"};
    CHECK(!ane_program_parse(text, strlen(text), &parse, &p, &err));
    CHECK(!ane_kernel_compile(p, NULL, &k, &err));
    ane_program_release(p);
    return k;
}

static ane_tensor make(const ane_port *port) {
    ane_tensor t = {0};
    ane_surface *s = NULL;
    size_t bytes = 0;
    CHECK(!ane_shape_size(port->dtype, port->rank, port->dims, &bytes, NULL));
    CHECK(!ane_surface_create(ane_memory_default(), bytes, port->name, &s, NULL));
    CHECK(!ane_tensor_init(&t, s, 0, port->dtype, port->rank, port->dims, NULL));
    return t;
}

static ane_request *bind(ane_kernel *k, const ane_tensor *in, size_t n, const ane_tensor *out) {
    ane_request *r = NULL;
    CHECK(!ane_request_create(k, in, n, out, 1, &r, NULL));
    return r;
}

/* x is i for all elements of row i; w is the identity: y = 2i. */
static void fill(const ane_tensor *x, const ane_tensor *w) {
    float *px = ane_tensor_data(x), *pw = ane_tensor_data(w);
    for (int i = 0; i < ROWS; i++)
        for (int j = 0; j < INNER; j++) px[i * INNER + j] = (float)i;
    for (int i = 0; i < INNER; i++) pw[i * INNER + i] = 1;
}

static bool doubled(const ane_tensor *y, float times) {
    const float *p = ane_tensor_data(y);
    for (int i = 0; i < ROWS; i++)
        for (int j = 0; j < INNER; j++)
            if (p[i * INNER + j] != times * (float)i) return false;
    return true;
}

/* ---------------------------------------------------------------- threads */

static int rounds;
static ane_kernel *shared_kernel;
static ane_request *shared_request;
static ane_pipeline *shared_pipeline;
static ane_surface_pool *shared_pool;
static atomic_int polls;

static int poll(void *arg) {
    (void)arg;
    atomic_fetch_add(&polls, 1);
    return 0;
}

/* One kernel, a request for each thread. */
static void *own_request(void *arg) {
    (void)arg;
    ane_run_options options = {.size = sizeof options, .poll = poll};
    ane_tensor in[2] = {make(ane_kernel_input(shared_kernel, 0)),
                        make(ane_kernel_input(shared_kernel, 1))};
    ane_tensor out = make(ane_kernel_output(shared_kernel, 0));
    fill(&in[0], &in[1]);
    ane_request *r = bind(shared_kernel, in, 2, &out);
    for (int i = 0; i < rounds; i++) CHECK(!ane_request_run(r, &options, NULL));
    CHECK(doubled(&out, 2));
    /* Profiles log what every worker does. */
    for (int i = 0; i < rounds / 4 + 1; i++) {
        CHECK(!ane_request_profile(r, &options, NULL));
        CHECK(ane_request_thread_count(r) > 0);
    }
    CHECK(doubled(&out, 2));
    /* The same request on other memory, while the other threads run theirs. */
    for (int i = 0; i < rounds; i++) {
        ane_tensor other = make(ane_kernel_output(shared_kernel, 0));
        CHECK(!ane_request_rebind(r, in, 2, &other, 1, NULL));
        CHECK(!ane_request_run(r, &options, NULL) && doubled(&other, 2));
        ane_surface_release(other.surface);
    }
    ane_request_release(r);
    for (int i = 0; i < 2; i++) ane_surface_release(in[i].surface);
    ane_surface_release(out.surface);
    return NULL;
}

/* One request and one pipeline for all threads: runs are serialised. */
static void *common_request(void *arg) {
    (void)arg;
    for (int i = 0; i < rounds; i++) {
        CHECK(!ane_request_run(shared_request, NULL, NULL));
        CHECK(!ane_pipeline_run(shared_pipeline, NULL, NULL));
    }
    return NULL;
}

/* Compiling, refusing and destroying beside the runs. */
static void *compiling(void *arg) {
    (void)arg;
    for (int i = 0; i < rounds; i++) {
        ane_error err = {0};
        ane_program *p = NULL;
        ane_kernel *k = compile(small);
        ane_kernel_release(k);
        ane_parse_options parse = {.size = sizeof parse};
        CHECK(ane_program_parse(layer, sizeof layer - 20, &parse, &p, &err) && !p);
        CHECK(err.line > 0 && err.message[0]);
        ane_surface *s = NULL;
        CHECK(!ane_surface_pool_take(shared_pool, 4096 << (i % 3), &s, &err));
        memset(ane_surface_base(s), i, ane_surface_bytes(s));
        ane_surface_release(s);
    }
    return NULL;
}

/* The flat bridge: handles of one's own, error texts of one's own. */
static void *bridging(void *arg) {
    char wanted[32];
    float x[4] = {1, 2, 3, 4}, y[4];
    size_t size = sizeof x, number = *(size_t *)arg;
    snprintf(wanted, sizeof wanted, "index %zu is out", number + 10);
    for (int i = 0; i < rounds; i++) {
        ANEKernelHandle *k = ane_bridge_compile(small, sizeof small - 1, NULL, 0, 1, &size, 1,
                                                &size);
        CHECK(k);
        ane_bridge_write_input(k, 0, x, sizeof x);
        CHECK(ane_bridge_eval(k));
        ane_bridge_read_output(k, 0, y, sizeof y);
        CHECK(y[0] == 1 && y[3] == 16);
        ane_bridge_write_input(k, (int)number + 10, x, sizeof x);
        CHECK(strstr(ane_bridge_last_error(), wanted));
        ane_bridge_free(k);
    }
    return NULL;
}

static void *toggling(void *arg) {
    (void)arg;
    for (int i = 0; i < rounds; i++) CHECK(!ane_set_num_threads(1 + i % 3, NULL));
    return NULL;
}

static void together(void) {
    static void *(*const work[])(void *) = {own_request, own_request, common_request,
                                            common_request, compiling, bridging, bridging,
                                            toggling};
    enum { N = sizeof work / sizeof *work };
    pthread_t thread[N];
    size_t numbers[N];
    ane_tensor in[2], mid, out, last;

    shared_kernel = compile(layer);
    in[0] = make(ane_kernel_input(shared_kernel, 0));
    in[1] = make(ane_kernel_input(shared_kernel, 1));
    mid = make(ane_kernel_output(shared_kernel, 0));
    out = make(ane_kernel_output(shared_kernel, 0));
    last = make(ane_kernel_output(shared_kernel, 0));
    fill(&in[0], &in[1]);
    shared_request = bind(shared_kernel, in, 2, &last);
    ane_tensor second[2] = {mid, in[1]};
    ane_request *chain[2] = {bind(shared_kernel, in, 2, &mid),
                             bind(shared_kernel, second, 2, &out)};
    CHECK(!ane_pipeline_create(chain, 2, &shared_pipeline, NULL));
    CHECK(!ane_surface_pool_create(ANE_MEM_HEAP, 1 << 16, &shared_pool, NULL));
    CHECK(ane_bridge_init() == 0);

    for (size_t i = 0; i < N; i++) {
        numbers[i] = i;
        CHECK(!pthread_create(&thread[i], NULL, work[i], &numbers[i]));
    }
    for (size_t i = 0; i < N; i++) pthread_join(thread[i], NULL);
    CHECK(doubled(&last, 2) && doubled(&mid, 2) && doubled(&out, 4));

    ane_surface_pool_destroy(shared_pool);
    ane_pipeline_release(shared_pipeline);
    ane_request_release(chain[0]);
    ane_request_release(chain[1]);
    ane_request_release(shared_request);
    ane_kernel_release(shared_kernel);
    ane_tensor all[] = {in[0], in[1], mid, out, last};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) ane_surface_release(all[i].surface);
}

/* ---------------------------------------------------------------- refusals */

static void refusals(void) {
    ane_error err = {0};
    ane_kernel *k = compile(small);
    ane_request *r = NULL;
    ane_program *p = NULL;
    ane_parse_options parse = {.size = sizeof parse};
    ane_compile_options nowhere = {.size = sizeof nowhere, .device = "nowhere"};
    ane_tensor x = make(ane_kernel_input(k, 0)), wrong = x;
    wrong.shape[0] = 3;
    CHECK(ane_request_create(k, &wrong, 1, &x, 1, &r, &err) && !r);
    CHECK(ane_request_create(k, &x, 1, &x, 0, &r, &err) && !r);
    CHECK(!ane_program_parse(small, sizeof small - 1, &parse, &p, &err));
    ane_kernel *none = NULL;
    CHECK(ane_kernel_compile(p, &nowhere, &none, &err) && !none);
    ane_program_release(p);

    /* A run that is cancelled leaves marks, and a later one takes them away. */
    int stop = 1;
    ane_run_options options = {.size = sizeof options, .cancel = &stop};
    ane_tensor y = make(ane_kernel_output(k, 0));
    r = bind(k, &x, 1, &y);
    CHECK(ane_request_run(r, &options, &err) == ANE_ERR_CANCELLED);
    CHECK(ane_tensor_readable(&y, &err));
    CHECK(!ane_request_run(r, NULL, &err) && !ane_tensor_readable(&y, &err));

    /* Other memory: of the same layout and aliases, or not at all. */
    wrong = y;
    wrong.strides[0] *= 2;
    CHECK(ane_request_rebind(r, &x, 1, &wrong, 1, &err) == ANE_ERR_INVALID);
    CHECK(ane_request_rebind(r, &x, 1, &x, 1, &err) == ANE_ERR_INVALID);
    CHECK(ane_request_rebind(r, &x, 1, &y, 0, &err) == ANE_ERR_INVALID);
    CHECK(ane_request_output(r, 0)->surface == y.surface);
    CHECK(!ane_request_rebind(r, &y, 1, &x, 1, &err) && !ane_request_run(r, NULL, &err));
    CHECK(ane_request_output(r, 0)->surface == x.surface);
    ane_request_release(r);
    ane_surface_release(x.surface);
    ane_surface_release(y.surface);
    ane_kernel_release(k);

    size_t n = 0, size = 16;
    float scale, w[6] = {1, 2, 3, 4, 5, 6};
    int8_t q[6] = {1, 2, 3};
    uint8_t *blobs[] = {ane_bridge_build_weight_blob(w, 2, 3, &n),
                        ane_bridge_build_weight_blob_transposed(w, 2, 3, &n),
                        ane_bridge_build_weight_blob_int8(q, 2, 3, &n),
                        ane_bridge_build_weight_blob_quantized(w, 2, 3, &scale, &n)};
    for (size_t i = 0; i < 4; i++) {
        CHECK(blobs[i]);
        ane_bridge_free_blob(blobs[i]);
    }
    CHECK(!ane_bridge_build_weight_blob(w, -1, 3, &n));
    CHECK(!ane_bridge_compile("nonsense", 8, NULL, 0, 1, &size, 1, &size));
    CHECK(!ane_bridge_compile(small, sizeof small - 1, NULL, 0, 2, &size, 1, &size));
    size = 4;
    CHECK(!ane_bridge_compile(small, sizeof small - 1, NULL, 0, 1, &size, 1, &size));
    ane_bridge_free(NULL);
    ane_bridge_free_blob(NULL);
}

/* ---------------------------------------------------------------- weights that stay */

/* Four rows by a matrix that is worth keeping. */
static const char few[] =
    "program(1.3)\n{\n"
    "    func main<ios18>(tensor<fp32, [4, 96]> x, tensor<fp32, [96, 640]> w) {\n"
    "        tensor<fp32, [4, 640]> y = matmul(x = x, y = w)[name = string(\"y\")];\n"
    "    } -> (y);\n}\n";

static void set(const ane_tensor *t, float v) {
    float *p = ane_tensor_data(t);
    for (int64_t i = 0; i < ane_tensor_count(t); i++) p[i] = v;
}

static bool all_are(const ane_tensor *t, float v) {
    const float *p = ane_tensor_data(t);
    for (int64_t i = 0; i < ane_tensor_count(t); i++)
        if (p[i] != v) return false;
    return true;
}

static bool runs_to(ane_request *r, const ane_tensor *y, float v) {
    return !ane_request_run(r, NULL, NULL) && all_are(y, v);
}

static size_t kept_by(ane_request *r) {
    ane_memory_info m;
    ane_request_memory(r, &m);
    return m.kept;
}

static void *staying(void *arg) {
    ane_kernel *k = arg;
    ane_tensor in[2] = {make(ane_kernel_input(k, 0)), make(ane_kernel_input(k, 1))};
    ane_tensor out = make(ane_kernel_output(k, 0)), w = in[1];
    set(&in[0], 1);
    set(&w, 2);
    /* Without the promise, any write through a pointer is seen. */
    ane_request *r = bind(k, in, 2, &out);
    CHECK(runs_to(r, &out, 192) && runs_to(r, &out, 192) && !kept_by(r));
    set(&w, 3);
    CHECK(runs_to(r, &out, 288));
    ane_surface_track(w.surface);
    CHECK(runs_to(r, &out, 288) && kept_by(r) && runs_to(r, &out, 288));
    set(&w, 1);
    ane_tensor_written(&w);
    CHECK(runs_to(r, &out, 96) && runs_to(r, &out, 96));
    ((float *)ane_tensor_data(&w))[0] = 2;
    ane_surface_touch(w.surface, 0, 4);
    CHECK(!ane_request_run(r, NULL, NULL) && *(float *)ane_tensor_data(&out) == 97);
    ane_surface_expose(w.surface, true);
    set(&w, 2);
    CHECK(runs_to(r, &out, 192));
    set(&w, 4);
    CHECK(runs_to(r, &out, 384));
    set(&w, 5);
    ane_surface_expose(w.surface, false);
    CHECK(runs_to(r, &out, 480) && runs_to(r, &out, 480));
    CHECK(!ane_surface_lock(w.surface, ANE_WRITE, NULL));
    set(&w, 6);
    CHECK(runs_to(r, &out, 576));
    set(&w, 7);
    CHECK(!ane_surface_unlock(w.surface, ANE_WRITE, NULL) && runs_to(r, &out, 672));

    /* Other memory and back, the first freed in between by its owner. */
    for (int i = 0; i < rounds; i++) {
        in[1] = make(ane_kernel_input(k, 1));
        ane_surface_track(in[1].surface);
        set(&in[1], (float)(i % 8));
        CHECK(!ane_request_rebind(r, in, 2, &out, 1, NULL));
        ane_surface_release(in[1].surface);
        CHECK(runs_to(r, &out, (float)(96 * (i % 8))) && runs_to(r, &out, (float)(96 * (i % 8))));
    }
    in[1] = w;
    CHECK(!ane_request_rebind(r, in, 2, &out, 1, NULL) && runs_to(r, &out, 672) && kept_by(r));
    ane_request *again = bind(k, in, 2, &out);
    ane_request_once(again);
    CHECK(runs_to(again, &out, 672) && runs_to(again, &out, 672) && !kept_by(again));
    ane_request_release(again);
    ane_request_release(r);
    for (int i = 0; i < 2; i++) ane_surface_release(in[i].surface);
    ane_surface_release(out.surface);
    return NULL;
}

static void weights_that_stay(void) {
    ane_kernel *k = compile(few);
    pthread_t t[THREADS];
    for (int i = 0; i < THREADS; i++) CHECK(!pthread_create(&t[i], NULL, staying, k));
    for (int i = 0; i < THREADS; i++) CHECK(!pthread_join(t[i], NULL));
    ane_kernel_release(k);
}

int main(int argc, char **argv) {
    rounds = argc > 1 ? atoi(argv[1]) : 1;
    CHECK(rounds > 0);
    together();
    refusals();
    weights_that_stay();
    printf("api driver: %d passed, %d failed\n", atomic_load(&passed), atomic_load(&failed));
    return atomic_load(&failed) ? 1 : 0;
}

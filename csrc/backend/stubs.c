/* Weak stand-ins until surfaces and the evaluator land; the real ones win at link. */
#include "../ir/ops.h"

#define WEAK __attribute__((weak))
#define ABSENT(err) ane_fail(err, ANE_ERR_UNSUPPORTED, "not built in yet")

WEAK ane_memory ane_memory_default(void) { return ANE_MEM_HEAP; }
WEAK bool ane_surface_readonly(const ane_surface *s) { return (void)s, false; }
WEAK void ane_surface_invalidate(ane_surface *s, size_t o, size_t n, const char *why) {
    (void)s, (void)o, (void)n, (void)why;
}
WEAK void ane_surface_validate(ane_surface *s, size_t o, size_t n) { (void)s, (void)o, (void)n; }
WEAK ane_status ane_surface_check(const ane_surface *s, size_t o, size_t n, ane_error *err) {
    (void)s, (void)o, (void)n, (void)err;
    return ANE_OK;
}
WEAK ane_status ane_tensor_init(ane_tensor *t, ane_surface *s, size_t offset, ane_dtype dtype,
                                int rank, const int64_t *shape, ane_error *err) {
    (void)t, (void)s, (void)offset, (void)dtype, (void)rank, (void)shape;
    return ABSENT(err);
}
WEAK int64_t ane_tensor_count(const ane_tensor *t) { return (void)t, 0; }
WEAK void *ane_tensor_data(const ane_tensor *t) { return (void)t, NULL; }
WEAK void ane_tensor_extent(const ane_tensor *t, size_t *lo, size_t *hi) {
    (void)t;
    *lo = *hi = 0;
}
WEAK ane_status ane_program_print(const ane_program *p, const char *spelling, char **text,
                                  size_t *n, ane_error *err) {
    (void)p, (void)spelling, (void)text, (void)n;
    return ABSENT(err);
}
WEAK ane_rt *ane_rt_tensor(ane_dtype dtype, int rank, const int64_t *shape) {
    (void)dtype, (void)rank, (void)shape;
    return NULL;
}
WEAK ane_rt *ane_rt_retain(ane_rt *r) { return r; }
WEAK void ane_rt_release(ane_rt *r) { (void)r; }
WEAK ane_rt *ane_rt_from_const(const ane_const *c, ane_error *err) {
    (void)c;
    return (void)ABSENT(err), NULL;
}
WEAK ane_status ane_function_eval(const ane_function *f, ane_rt *const *args, ane_rt **results,
                                  const ane_walk_options *opts, ane_error *err) {
    (void)f, (void)args, (void)results, (void)opts;
    return ABSENT(err);
}
WEAK ane_status ane_op_eval(const ane_op *op, ane_rt *const *const *in, ane_rt **out, bool wide,
                            uint64_t *rng, ane_error *err) {
    (void)op, (void)in, (void)out, (void)wide, (void)rng;
    return ABSENT(err);
}
WEAK ane_status ane_surface_wrap(void *base, size_t bytes, bool readonly,
                                 void (*release)(void *arg), void *arg, ane_surface **out,
                                 ane_error *err) {
    (void)base, (void)bytes, (void)readonly, (void)release, (void)arg, (void)out;
    return ABSENT(err);
}

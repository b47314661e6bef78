/* Weak stand-ins until surfaces and the evaluator land; the real ones win at link. */
#include "../ir/ops.h"

#define WEAK __attribute__((weak))
#define ABSENT(err) ane_fail(err, ANE_ERR_UNSUPPORTED, "not built in yet")

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

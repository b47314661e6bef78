/* What program.c and request.c share of a kernel. */
#ifndef ANE_KERNEL_H
#define ANE_KERNEL_H

#include "program.h"

#include <stdatomic.h>

struct ane_kernel {
    atomic_int refs;
    ane_program *program;               /* one function, the kernel's own */
    const ane_function *fn;
    const ane_backend *backend;
    void *exe;
    size_t n_in, n_out;
    ane_port *in, *out;
    bool open_shapes;                   /* some output dim needs ane_kernel_infer */
    bool engine;                        /* the engine's arithmetic, its own or imitated */
    bool limited;                       /* there is a memory limit */
};

/* what: "input" or "output", for the message. */
ane_status ane__check_operand(const ane_port *port, const ane_tensor *t, const char *what,
                              ane_error *err);

#endif

/* What the files of this room share and nobody else sees. */
#ifndef ANE_IR_IMPL_H
#define ANE_IR_IMPL_H

#include "ir.h"
#include "ops.h"

typedef enum ane_id_kind {
    ANE_ID_NONE, ANE_ID_FUNCTION, ANE_ID_BLOCK, ANE_ID_OP, ANE_ID_VALUE
} ane_id_kind;

typedef struct ane_id_slot {
    void *ptr;                          /* NULL: gone */
    ane_id_kind kind;
} ane_id_slot;

struct ane_program_impl {
    ane_id_slot *ids;                   /* [id]; 0 is never given */
    size_t n_ids, cap_ids;
    ane_surface **surfaces;             /* retained; what constants view */
    size_t n_surfaces, cap_surfaces;
    ane_warning *warnings;              /* messages in the arena */
    size_t n_warnings, cap_warnings;
    size_t warnings_dropped;
    int64_t next_symbol;                /* -2, -3, ... */
    ane_function *last_function;
    int n_functions;
};

/* A program that deserves more warnings than this is summarised. */
#define ANE_MAX_WARNINGS 1000

/* Identifiers of one function: open addressing, strings owned by the arena. */
typedef struct ane_names ane_names;
ane_names *ane__names_create(void);
void ane__names_destroy(ane_names *n);
ane_value *ane__names_get(const ane_names *n, const char *name);
ane_value *ane__names_find(const ane_names *n, const char *name, size_t len);
bool ane__names_put(ane_names *n, ane_value *v);            /* false: no memory */
void ane__names_remove(ane_names *n, const char *name);
/* Room for one more value, so that the next put cannot fail. */
bool ane__names_reserve(ane_names *n, size_t more);

ane_status ane__id_reserve(ane_program *p, size_t more, ane_error *err);
uint32_t ane__id_new(ane_program *p, ane_id_kind kind, void *ptr);  /* after a reserve */
void ane__id_drop(ane_program *p, uint32_t id);
void *ane__id_get(const ane_program *p, uint32_t id, ane_id_kind kind);
ane_status ane__own_surface(ane_program *p, ane_surface *s, ane_error *err);

ane_status ane__nomem(ane_error *err);
bool ane__name_ok(const char *name);
ane_status ane__name_check(const ane_function *f, const char *name, const char *what,
                           ane_error *err);
/* Puts "op 'name'" and, outside the parser, the place of the statement in front. */
ane_status ane__op_blame(ane_error *err, const ane_program *p, ane_status st,
                         const char *op, const char *name, int line, int column);
ane_value *ane__value_new(ane_program *p, const char *name, const ane_type *type);
bool ane__visible(const ane_value *v, const ane_block *b, const ane_op *before);
void ane__link(ane_block *b, ane_op *before, ane_op *op);
void ane__unlink(ane_op *op);
ane_function *ane__function_of(const ane_value *v);

/* The generic signature check of an op whose row and args are set. */
ane_status ane__check_signature(const ane_op *op, ane_error *err);
/* Runs the row's inference; results (room for ANE_MAX_RESULTS) get *n types. */
ane_status ane__infer(ane_program *scratch, const ane_op *op, int opset, int declared_n,
                      const ane_type **results, int *n, ane_error *err);
/* ane_op_create, where `hint` types only fill dims that inference leaves unknown. */
ane_status ane__op_create(ane_block *b, ane_op *before, const ane_op_desc *desc, bool hint,
                          ane_op **out, ane_error *err);
/* Known dims of `hint` fill unknown dims of t. */
const ane_type *ane__type_refine(ane_program *p, const ane_type *t, const ane_type *hint);
const ane_type *ane__type_copy(ane_program *p, const ane_type *t);
int ane__type_depth(const ane_type *t);

#endif

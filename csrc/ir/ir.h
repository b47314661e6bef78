/* The one program graph. Parsing text, loading a package, building from Python and
 * differentiating all yield it; passes and backends consume it.
 *
 * Everything below a program lives in its arena and dies with it. Surfaces that constants
 * view are retained by the program. Numeric ids are per program and never reused, so a
 * handle (program, id) goes stale instead of dangling: lookups of removed things fail.
 *
 * Not here: text (mil/), packages (coreml/), execution plans (backend/).
 */
#ifndef ANE_IR_H
#define ANE_IR_H

#include "../base/mem.h"
#include "../base/status.h"

typedef struct ane_value ane_value;
typedef struct ane_op ane_op;
typedef struct ane_block ane_block;
typedef struct ane_function ane_function;
typedef struct ane_op_row ane_op_row;

/* ---------------------------------------------------------------- types */

/* (struct ane_type, ane_const and their constructors are public: ane.h.) A dimension:
 * >= 0 known; -1 unknown, equal to nothing; <= -2 symbol, equal to itself (each `?` of a
 * function's parameters is a symbol of its own). */
#define ANE_DIM_ANY ((int64_t)-1)
static inline bool ane_dim_known(int64_t d) { return d >= 0; }
static inline bool ane_dim_same(int64_t a, int64_t b) { return a == b && a != ANE_DIM_ANY; }

/* The same type to the letter (`?` equals `?`, a symbol only itself). */
bool ane_type_equal(const ane_type *a, const ane_type *b);
/* Equal where both sides are known; unknown dims match anything. */
bool ane_type_compatible(const ane_type *a, const ane_type *b);
bool ane_type_static(const ane_type *t);    /* no unknown or symbolic dim anywhere */
int64_t ane_type_count(const ane_type *t);  /* elements of a static tensor; -1 otherwise */
/* Packed size of a static tensor type (sub-byte rounded up); false on overflow. */
bool ane_type_bytes(const ane_type *t, size_t *bytes);

/* ---------------------------------------------------------------- constants */

/* Copy into another program; large data is shared through its surface. */
const ane_const *ane_const_copy(ane_program *p, const ane_const *c, ane_error *err);
/* A constant of a weight file: data at owner's byte `at`, or none when owner is NULL. path
 * and offset are what the text says. */
const ane_const *ane_const_blob(ane_program *p, const ane_type *type, ane_surface *owner,
                                size_t at, size_t bytes, const char *path, uint64_t offset,
                                ane_error *err);
/* Element i of a numeric constant as double or int64 (exact where it fits). */
double ane_const_f64(const ane_const *c, int64_t i);
int64_t ane_const_i64(const ane_const *c, int64_t i);
bool ane_const_equal(const ane_const *a, const ane_const *b);

/* ane_surface_check of everything that constants view: a weight file that was cut or
 * replaced since it was mapped is found before a run reads it. */
ane_status ane_program_check_data(const ane_program *p, ane_error *err);

/* ---------------------------------------------------------------- graph */

struct ane_value {
    uint32_t id;
    const char *name;                   /* identifier in the text, unique per function;
                                           "" for a const written in place */
    const ane_type *type;
    ane_op *def;                        /* NULL: parameter of function or block */
    int def_index;                      /* which result, or which parameter */
    ane_block *block;                   /* that defines it */
    const ane_const *konst;             /* known value: const, folded constexpr; or NULL */
    int uses;                           /* arguments and block outputs naming it */
};

/* One argument of an op; parallel to row->params. */
typedef struct ane_arg {
    int n;                              /* 0: absent */
    bool tuple;                         /* written as a tuple, also with one element */
    ane_value **v;
} ane_arg;

typedef struct ane_attr {
    const char *name;
    const ane_const *value;
} ane_attr;

struct ane_op {
    uint32_t id;
    const ane_op_row *row;
    const char *name;                   /* the `name` attribute; NULL: none */
    ane_arg *args;                      /* row->n_params entries */
    int n_results;
    ane_value **results;
    int n_blocks;                       /* cond: true, false; while_loop: cond, body */
    ane_block **blocks;
    int n_attrs;                        /* beyond `name` and `val` */
    ane_attr *attrs;
    bool inlined;                       /* a const written in place as an argument */
    int line, column;                   /* of the statement; 0: built */
    ane_block *block;
    ane_op *prev, *next;
    uint64_t order;                     /* grows along the block: position in O(1) */
};

struct ane_block {
    uint32_t id;
    ane_function *function;
    ane_op *owner;                      /* NULL: the function's body */
    int n_params;
    ane_value **params;                 /* of a nested block; a function's are its own */
    ane_op *first, *last;
    int n_outputs;
    ane_value **outputs;
    int height;                         /* levels of blocks nested below */
};

struct ane_function {
    uint32_t id;
    ane_program *program;
    const char *name;
    int line, column;                   /* of the name; 0: built */
    const char *opset_tag;              /* "ios18" as written */
    int opset;                          /* 15..18; newer tags act as 18 */
    int n_params;
    ane_value **params;
    int n_attrs;
    ane_attr *attrs;                    /* FlexibleShapeInformation, ... */
    ane_block *body;
    ane_function *next;
    struct ane_names *names;            /* value identifiers taken: ir room only */
};

struct ane_program {
    int refs;                           /* atomic */
    ane_arena *arena;
    const char *version;                /* "1.3": text, not a number */
    const char *filename;
    int line, column;                   /* of the version; 0: no text */
    int n_attrs;
    ane_attr *attrs;                    /* buildInfo, ... */
    ane_function *functions;            /* in order */
    uint64_t generation;                /* grows with every edit */
    bool parsing;                       /* positions go beside messages, not into them */
    struct ane_program_impl *impl;      /* ids, owned surfaces, warnings: ir room only */
};

/* Bounds that keep every recursion and every quadratic scan small; no real program comes
 * near them. */
#define ANE_MAX_BLOCK_DEPTH 32          /* nested blocks */
#define ANE_MAX_TYPE_DEPTH 16           /* list<tuple<...>> */
#define ANE_MAX_FUNCTIONS 4096          /* of one program */
#define ANE_MAX_ATTRS 1024              /* of one op or function */
#define ANE_MAX_BLOCKS 16               /* of one op */
#define ANE_MAX_BLOCK_PARAMS 1024

/* --- building. Each verifies what it makes; nothing is left half added on an error. */

typedef struct ane_param_desc {
    const char *name;
    const ane_type *type;
} ane_param_desc;

ane_status ane_function_create(ane_program *p, const char *name, const char *opset_tag,
                               const ane_param_desc *params, int n, ane_function **out,
                               ane_error *err);
ane_function *ane_program_function(const ane_program *p, const char *name);
/* Value of this identifier (n bytes) in the function, nested blocks included, or NULL. */
ane_value *ane_function_value(const ane_function *f, const char *name, size_t n);

typedef struct ane_arg_desc {
    const char *name;                   /* parameter name */
    int n;
    bool tuple;
    ane_value *const *v;
} ane_arg_desc;

/* Appends an op (before `before` when not NULL): looks the row up for the function's
 * opset, fills defaults, checks the signature, infers result types, makes results named
 * result_names[i] (NULL: made up, unique). declared, when not NULL, holds the types the
 * text declares, checked against the inferred ones; a declared known dim wins over an
 * inferred unknown one. */
typedef struct ane_op_desc {
    const char *op;
    const char *name;                   /* attribute; NULL: none */
    const ane_arg_desc *args;
    int n_args;
    int n_results;                      /* -1: as inferred */
    const char *const *result_names;    /* NULL: made up */
    const ane_type *const *declared;    /* NULL: none */
    ane_block *const *blocks;           /* built by ane_block_create */
    int n_blocks;
    const ane_attr *attrs;
    int n_attrs;
    int line, column;
} ane_op_desc;

ane_status ane_op_create(ane_block *b, ane_op *before, const ane_op_desc *desc,
                         ane_op **out, ane_error *err);
/* const op (its row has no parameters: the value is results[0]->konst); inlined consts
 * have no name of their own in the text. */
ane_status ane_const_create(ane_block *b, const char *name, const ane_const *value,
                            bool inlined, ane_value **out, ane_error *err);
/* The same in front of `before`. */
ane_status ane_const_insert(ane_block *b, ane_op *before, const char *name,
                            const ane_const *value, bool inlined, ane_value **out,
                            ane_error *err);
ane_block *ane_block_create(ane_function *f, ane_op *owner);
ane_status ane_block_add_param(ane_block *b, const char *name, const ane_type *type,
                               ane_value **out, ane_error *err);
ane_status ane_block_set_outputs(ane_block *b, ane_value *const *v, int n, ane_error *err);
/* Fails while a result is used. */
ane_status ane_op_remove(ane_op *op, ane_error *err);
/* Every use of `from` (arguments and outputs) becomes `to`; types must be compatible. */
ane_status ane_value_replace(ane_value *from, ane_value *to, ane_error *err);
ane_status ane_value_rename(ane_value *v, const char *name, ane_error *err);

/* Lookup by id; NULL when it never was or is gone. */
ane_value *ane_program_value(const ane_program *p, uint32_t id);
ane_op *ane_program_op(const ane_program *p, uint32_t id);
ane_block *ane_program_block(const ane_program *p, uint32_t id);

/* Deep copy of one function into a new program, its parameters retyped (types[i] NULL
 * keeps one) and every type inferred again: how a plan for a concrete shape begins. */
ane_status ane_function_specialize(const ane_function *f, const ane_type *const *types,
                                   ane_program **out, ane_error *err);

/* Appends f's body to `to`, a body of another program's function, args[i] standing for
 * parameter i; names stay, so none may be taken there. `to`'s outputs become f's. */
ane_status ane_function_inline(const ane_function *f, ane_block *to, ane_value *const *args,
                               ane_error *err);

/* Collected while parsing (ane_program_warnings in ane.h; lint reads them too). */
void ane_program_warn(ane_program *p, int line, int column, const char *fmt, ...)
    ANE_PRINTF(4, 5);

#endif

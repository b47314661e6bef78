/* Protocol-buffer wire format: a bounded reader over untrusted bytes and a writer. Knows
 * tags and lengths, nothing of any message; package.c and interface.c do. */
#ifndef ANE_COREML_WIRE_H
#define ANE_COREML_WIRE_H

#include "../base/mem.h"
#include "../base/status.h"

typedef enum ane_wire_kind {
    ANE_WIRE_VARINT = 0,
    ANE_WIRE_FIXED64 = 1,
    ANE_WIRE_BYTES = 2,
    ANE_WIRE_FIXED32 = 5
} ane_wire_kind;

/* One field as read. Which member holds the value follows from kind. */
typedef struct ane_wire_field {
    uint32_t number;
    ane_wire_kind kind;
    uint64_t value;             /* VARINT, FIXED64, FIXED32 */
    const uint8_t *data;        /* BYTES: inside the input, not copied */
    size_t size;
} ane_wire_field;

/* A message being read. base is the start of the whole file, for byte offsets in messages;
 * depth counts enclosing messages. */
typedef struct ane_wire {
    const uint8_t *base, *p, *end;
    const char *file;
    int depth;
    ane_error *err;
    ane_status status;          /* sticky: ANE_OK until the first malformation */
} ane_wire;

/* Nesting deeper than this is refused: real specifications stay below 40. */
#define ANE_WIRE_DEPTH 100

void ane_wire_init(ane_wire *w, const void *data, size_t n, const char *file,
                   ane_error *err);
/* Next field; false at the end of the message and on malformation (status says which). */
bool ane_wire_next(ane_wire *w, ane_wire_field *f);
/* The message in field f. A field of another kind or a nesting too deep makes the parent's
 * status an error and gives an empty message. */
ane_wire ane_wire_message(ane_wire *parent, const ane_wire_field *f);
/* Takes over a child's failure; returns the parent's status. */
ane_status ane_wire_join(ane_wire *parent, const ane_wire *child);
/* Records a malformation at the current position. */
ane_status ane_wire_fail(ane_wire *w, const char *fmt, ...) ANE_PRINTF(2, 3);
/* Records a failure that has filled *err already. */
ane_status ane_wire_stop(ane_wire *w, ane_status status);
/* Checks the kind of a field; false (and status set) when it is not `kind`. */
bool ane_wire_is(ane_wire *w, const ane_wire_field *f, ane_wire_kind kind);
/* A BYTES field as valid UTF-8 without NUL, copied into the arena; NULL on failure. */
char *ane_wire_string(ane_wire *w, const ane_wire_field *f, ane_arena *arena);

/* Repeated scalars, packed or not: call begin once per field seen. */
typedef struct ane_wire_packed {
    const uint8_t *p, *end;
    ane_wire_kind kind;
    uint64_t single;
    bool one;
} ane_wire_packed;
ane_wire_packed ane_wire_packed_begin(ane_wire *w, const ane_wire_field *f,
                                      ane_wire_kind element);
bool ane_wire_packed_next(ane_wire *w, ane_wire_packed *it, uint64_t *bits);

/* ---------------------------------------------------------------- writing */

typedef struct ane_wire_out {
    uint8_t *data;
    size_t size, capacity;
    bool failed;                /* out of memory; sticky */
} ane_wire_out;

void ane_wire_out_free(ane_wire_out *o);
void ane_wire_put_varint(ane_wire_out *o, uint32_t field, uint64_t value);
void ane_wire_put_bytes(ane_wire_out *o, uint32_t field, const void *data, size_t n);
void ane_wire_put_string(ane_wire_out *o, uint32_t field, const char *s);
/* A nested message whose length is not known yet: begin gives a mark, end closes it. */
size_t ane_wire_begin(ane_wire_out *o, uint32_t field);
void ane_wire_end(ane_wire_out *o, size_t mark);
/* Appends raw bytes (the inside of a packed field). */
void ane_wire_raw(ane_wire_out *o, const void *data, size_t n);
void ane_wire_raw_varint(ane_wire_out *o, uint64_t value);

#endif

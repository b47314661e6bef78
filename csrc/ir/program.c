/* The program object: its arena, ids, retained surfaces and warnings. */
#include "impl.h"

#include <ctype.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

ane_status ane__nomem(ane_error *err) { return ane_fail(err, ANE_ERR_NOMEM, "out of memory"); }

static bool version_ok(const char *v) {
    size_t a = strspn(v, "0123456789");
    if (!a || a > 4 || v[a] != '.') return false;
    size_t b = strspn(v + a + 1, "0123456789");
    return b && b <= 4 && !v[a + 1 + b];
}

ane_status ane_program_create(const char *version, ane_program **out, ane_error *err) {
    if (!version) version = "1.3";
    if (!version_ok(version))
        return ane_fail(err, ANE_ERR_INVALID,
                        "program version: expected digits.digits, got \"%.40s\"", version);
    ane_program *p = ane_calloc(1, sizeof *p);
    if (!p) return ane__nomem(err);
    p->refs = 1;
    p->arena = ane_arena_create();
    p->impl = ane_calloc(1, sizeof *p->impl);
    if (p->arena) p->version = ane_arena_strndup(p->arena, version, strlen(version));
    if (!p->impl || !p->version) {
        ane_program_release(p);
        return ane__nomem(err);
    }
    p->impl->next_symbol = -2;
    *out = p;
    return ANE_OK;
}

ane_program *ane_program_retain(ane_program *p) {
    if (p) __atomic_add_fetch(&p->refs, 1, __ATOMIC_RELAXED);
    return p;
}

void ane_program_release(ane_program *p) {
    if (!p || __atomic_sub_fetch(&p->refs, 1, __ATOMIC_ACQ_REL)) return;
    for (ane_function *f = p->functions; f; f = f->next) ane__names_destroy(f->names);
    if (p->impl) {
        for (size_t i = 0; i < p->impl->n_surfaces; i++)
            ane_surface_release(p->impl->surfaces[i]);
        ane_free(p->impl->surfaces);
        ane_free(p->impl->ids);
        ane_free(p->impl->warnings);
        ane_free(p->impl);
    }
    ane_arena_destroy(p->arena);
    ane_free(p);
}

ane_function *ane_program_function(const ane_program *p, const char *name) {
    for (ane_function *f = p->functions; f; f = f->next)
        if (!strcmp(f->name, name)) return f;
    return NULL;
}

/* ---------------------------------------------------------------- growing arrays */

/* Room for `more` entries behind *n; false leaves everything as it was. */
static bool grow(void **array, size_t n, size_t *cap, size_t more, size_t size) {
    size_t want, bytes;
    if (!ane_add_size(n, more, &want)) return false;
    if (want <= *cap) return true;
    size_t fresh = *cap ? *cap : 16;
    while (fresh < want)
        if (!ane_mul_size(fresh, 2, &fresh)) return false;
    if (!ane_mul_size(fresh, size, &bytes)) return false;
    void *q = ane_realloc(*array, bytes);
    if (!q) return false;
    *array = q;
    *cap = fresh;
    return true;
}

ane_status ane__own_surface(ane_program *p, ane_surface *s, ane_error *err) {
    struct ane_program_impl *m = p->impl;
    /* Constants of one file come in a row: the last entry catches nearly all repeats. */
    if (m->n_surfaces && m->surfaces[m->n_surfaces - 1] == s) return ANE_OK;
    if (!grow((void **)&m->surfaces, m->n_surfaces, &m->cap_surfaces, 1, sizeof *m->surfaces))
        return ane__nomem(err);
    m->surfaces[m->n_surfaces++] = ane_surface_retain(s);
    return ANE_OK;
}

ane_status ane_program_check_data(const ane_program *p, ane_error *err) {
    const struct ane_program_impl *m = p->impl;
    ane_status st = ANE_OK;
    for (size_t i = 0; i < m->n_surfaces && !st; i++)
        st = ane_surface_check(m->surfaces[i], 0, ane_surface_bytes(m->surfaces[i]), err);
    return st;
}

/* ---------------------------------------------------------------- ids */

ane_status ane__id_reserve(ane_program *p, size_t more, ane_error *err) {
    struct ane_program_impl *m = p->impl;
    if (m->n_ids + more > UINT32_MAX - 2u)
        return ane_fail(err, ANE_ERR_INVALID, "program: more than 2^32 things");
    if (!grow((void **)&m->ids, m->n_ids, &m->cap_ids, more + 1, sizeof *m->ids))
        return ane__nomem(err);
    if (!m->n_ids) m->ids[m->n_ids++] = (ane_id_slot){NULL, ANE_ID_NONE};
    return ANE_OK;
}

uint32_t ane__id_new(ane_program *p, ane_id_kind kind, void *ptr) {
    struct ane_program_impl *m = p->impl;
    ANE_ASSERT(m->n_ids && m->n_ids < m->cap_ids);
    m->ids[m->n_ids] = (ane_id_slot){ptr, kind};
    return (uint32_t)m->n_ids++;
}

void ane__id_drop(ane_program *p, uint32_t id) { p->impl->ids[id].ptr = NULL; }

void *ane__id_get(const ane_program *p, uint32_t id, ane_id_kind kind) {
    const struct ane_program_impl *m = p->impl;
    return id < m->n_ids && m->ids[id].kind == kind ? m->ids[id].ptr : NULL;
}

ane_value *ane_program_value(const ane_program *p, uint32_t id) {
    return ane__id_get(p, id, ANE_ID_VALUE);
}
ane_op *ane_program_op(const ane_program *p, uint32_t id) {
    return ane__id_get(p, id, ANE_ID_OP);
}
ane_block *ane_program_block(const ane_program *p, uint32_t id) {
    return ane__id_get(p, id, ANE_ID_BLOCK);
}

/* ---------------------------------------------------------------- warnings */

void ane_program_warn(ane_program *p, int line, int column, const char *fmt, ...) {
    struct ane_program_impl *m = p->impl;
    if (m->n_warnings >= ANE_MAX_WARNINGS) {
        m->warnings_dropped++;
        return;
    }
    char buf[512];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(buf, sizeof buf, fmt, ap);
    va_end(ap);
    /* A warning that finds no memory is dropped: it must not fail the call. */
    char *msg = ane_arena_strndup(p->arena, buf, strlen(buf));
    if (!msg || !grow((void **)&m->warnings, m->n_warnings, &m->cap_warnings, 1,
                      sizeof *m->warnings)) {
        m->warnings_dropped++;
        return;
    }
    m->warnings[m->n_warnings++] = (ane_warning){line, column, msg};
}

size_t ane_program_warnings(const ane_program *p, const ane_warning **out) {
    *out = p->impl->warnings;
    return p->impl->n_warnings;
}

/* ---------------------------------------------------------------- names, blame */

bool ane__name_ok(const char *s) {
    if (!(isalpha((unsigned char)*s) || *s == '_')) return false;
    for (s++; *s; s++)
        if (!(isalnum((unsigned char)*s) || *s == '_' || *s == '@')) return false;
    return true;
}

ane_status ane__name_check(const ane_function *f, const char *name, const char *what,
                           ane_error *err) {
    if (!ane__name_ok(name) || !strcmp(name, "true") || !strcmp(name, "false"))
        return ane_fail(err, ANE_ERR_INVALID,
                        "%s: \"%.80s\" is not an identifier (a letter or _, then letters, "
                        "digits, _ or @)", what, name);
    const ane_value *v = f ? ane__names_get(f->names, name) : NULL;
    if (!v) return ANE_OK;
    if (v->def && v->def->line)
        return ane_fail(err, ANE_ERR_INVALID,
                        "%s: \"%.80s\" is already defined in function %.80s (line %d)", what,
                        name, f->name, v->def->line);
    return ane_fail(err, ANE_ERR_INVALID, "%s: \"%.80s\" is already defined in function %.80s",
                    what, name, f->name);
}

ane_status ane__op_blame(ane_error *err, const ane_program *p, ane_status st,
                         const char *op, const char *name, int line, int column) {
    if (!err) return st;
    char place[320] = "";
    if (line && !p->parsing)
        snprintf(place, sizeof place, " (%s:%d:%d)", p->filename ? p->filename : "<mil>", line,
                 column);
    if (name && *name) ane_error_prefix(err, "%.80s '%.80s'%s: ", op, name, place);
    else ane_error_prefix(err, "%.80s%s: ", op, place);
    if (line) {
        err->line = line;
        err->column = column;
        snprintf(err->file, sizeof err->file, "%s", p->filename ? p->filename : "<mil>");
    }
    return st;
}

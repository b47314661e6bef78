/* ModelDescription and FeatureTypes: what a model takes and gives, as plain structs. */
#include "coreml.h"

#include <string.h>

/* Fields of Model's oneof besides mlProgram. */
static const struct {
    uint32_t field;
    const char *kind;
} kinds[] = {
    {200, "pipeline classifier"},
    {201, "pipeline regressor"},
    {202, "pipeline"},
    {300, "GLM regressor"},
    {301, "support vector regressor"},
    {302, "tree ensemble regressor"},
    {303, "neural network regressor"},
    {304, "Bayesian probit regressor"},
    {400, "GLM classifier"},
    {401, "support vector classifier"},
    {402, "tree ensemble classifier"},
    {403, "neural network classifier"},
    {404, "k-nearest-neighbours classifier"},
    {500, "neural network"},
    {501, "item similarity recommender"},
    {555, "custom model"},
    {556, "linked model"},
    {560, "class confidence thresholding"},
    {600, "one-hot encoder"},
    {601, "imputer"},
    {602, "feature vectorizer"},
    {603, "dictionary vectorizer"},
    {604, "scaler"},
    {606, "categorical mapping"},
    {607, "normalizer"},
    {609, "array feature extractor"},
    {610, "non-maximum suppression"},
    {900, "identity"},
    {2000, "text classifier"},
    {2001, "word tagger"},
    {2002, "vision feature print"},
    {2003, "sound analysis preprocessing"},
    {2004, "gazetteer"},
    {2005, "word embedding"},
    {2006, "audio feature print"},
    {3000, "serialized model"},
};

const char *ane_coreml_model_kind(uint32_t field) {
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (kinds[i].field == field) return kinds[i].kind;
    return NULL;
}

/* Grows an arena array by doubling; old blocks stay in the arena, at most as much again. */
static void *grow(ane_arena *a, void *old, size_t n, size_t unit) {
    if (n & (n - 1) || (n == 0 && old)) return old;     /* grows at 0, 1, 2, 4, ... */
    void *fresh = ane_arena_alloc(a, (n ? 2 * n : 1) * unit);
    if (fresh && n) memcpy(fresh, old, n * unit);
    return fresh;
}

static ane_status no_memory(ane_wire *w) {
    return ane_wire_stop(w, ane_fail(w->err, ANE_ERR_NOMEM, "%s: out of memory", w->file));
}

/* repeated int64 into dims[ANE_MAX_RANK], continuing at *rank. */
static void read_dims(ane_wire *w, const ane_wire_field *f, int64_t *dims, int *rank) {
    ane_wire_packed it = ane_wire_packed_begin(w, f, ANE_WIRE_VARINT);
    uint64_t v;
    while (ane_wire_packed_next(w, &it, &v)) {
        if (*rank == ANE_MAX_RANK) {
            ane_wire_fail(w, "a shape has more than %d dimensions", ANE_MAX_RANK);
            return;
        }
        dims[(*rank)++] = (int64_t)v;
    }
}

static void read_size_range(ane_wire *parent, const ane_wire_field *field, int64_t out[2]) {
    ane_wire w = ane_wire_message(parent, field);
    ane_wire_field f;
    out[0] = out[1] = 0;
    while (ane_wire_next(&w, &f))
        if ((f.number == 1 || f.number == 2) && ane_wire_is(&w, &f, ANE_WIRE_VARINT))
            out[f.number - 1] = (int64_t)f.value;
    ane_wire_join(parent, &w);
}

/* A type begins: of several in one feature (they are alternatives) the last one counts. */
static void forget_type(ane_feature *ft) {
    ft->rank = 0;
    ft->flexibility = ANE_FLEX_NONE;
    ft->n_flex = 0;
    ft->flex = NULL;
    ft->has_default = false;
}

/* A kind of flexibility begins; what another kind has left is not of its form. */
static void begin_flex(ane_feature *ft, ane_flexibility kind, int64_t **flex) {
    if (ft->flexibility == kind) return;
    ft->flexibility = kind;
    ft->n_flex = 0;
    *flex = NULL;
}

static void read_array(ane_wire *parent, const ane_wire_field *field, ane_arena *a,
                       ane_feature *ft) {
    ane_wire w = ane_wire_message(parent, field), first = w;
    ane_wire_field f, g;
    forget_type(ft);
    ft->dtype = ANE_F32;
    int64_t *flex = NULL;
    while (ane_wire_next(&first, &f))           /* the rank goes before what depends on it */
        if (f.number == 1) read_dims(&first, &f, ft->shape, &ft->rank);
    ane_wire_join(&w, &first);
    while (ane_wire_next(&w, &f)) {
        switch (f.number) {
        case 2:
            if (!ane_wire_is(&w, &f, ANE_WIRE_VARINT)) break;
            switch (f.value) {
            case 65568: ft->dtype = ANE_F32; break;
            case 65600: ft->dtype = ANE_F64; break;
            case 131104: ft->dtype = ANE_I32; break;
            case 131080: ft->dtype = ANE_I8; break;
            case 65552: ft->dtype = ANE_F16; break;
            default:
                ane_wire_fail(&w, "unknown array data type %llu",
                              (unsigned long long)f.value);
            }
            break;
        case 21: {                                      /* enumerated shapes */
            ane_wire e = ane_wire_message(&w, &f);
            begin_flex(ft, ANE_FLEX_ENUMERATED, &flex);
            while (ane_wire_next(&e, &f)) {
                if (f.number != 1) continue;
                ane_wire s = ane_wire_message(&e, &f);
                int64_t dims[ANE_MAX_RANK];
                int rank = 0;
                while (ane_wire_next(&s, &g))
                    if (g.number == 1) read_dims(&s, &g, dims, &rank);
                if (ane_wire_join(&e, &s)) break;
                if ((ft->rank || ft->n_flex) && rank != ft->rank) {
                    ane_wire_fail(&e, "an enumerated shape has %d dimensions, the default %d",
                                  rank, ft->rank);
                    break;
                }
                ft->rank = rank;
                size_t unit = (size_t)(rank ? rank : 1) * sizeof(int64_t);
                flex = grow(a, flex, ft->n_flex, unit);
                if (!flex) {
                    no_memory(&e);
                    break;
                }
                memcpy(flex + ft->n_flex * (size_t)rank, dims, (size_t)rank * sizeof *dims);
                ft->n_flex++;
            }
            ane_wire_join(&w, &e);
            break;
        }
        case 31: {                                      /* a range per dimension */
            ane_wire e = ane_wire_message(&w, &f);
            begin_flex(ft, ANE_FLEX_RANGE, &flex);
            while (ane_wire_next(&e, &f)) {
                if (f.number != 1) continue;
                flex = grow(a, flex, ft->n_flex, 2 * sizeof(int64_t));
                if (!flex) {
                    no_memory(&e);
                    break;
                }
                read_size_range(&e, &f, flex + 2 * ft->n_flex);
                ft->n_flex++;
            }
            ane_wire_join(&w, &e);
            break;
        }
        case 41:
            if (!ane_wire_is(&w, &f, ANE_WIRE_VARINT)) break;
            ft->has_default = true;
            ft->default_value = (double)(int32_t)f.value;
            break;
        case 51: {
            float x;
            uint32_t bits = (uint32_t)f.value;
            if (!ane_wire_is(&w, &f, ANE_WIRE_FIXED32)) break;
            memcpy(&x, &bits, sizeof x);
            ft->has_default = true;
            ft->default_value = (double)x;
            break;
        }
        case 61:
            if (!ane_wire_is(&w, &f, ANE_WIRE_FIXED64)) break;
            memcpy(&ft->default_value, &f.value, sizeof f.value);
            ft->has_default = true;
            break;
        default: break;
        }
    }
    ft->flex = flex;
    ane_wire_join(parent, &w);
}

static void read_image(ane_wire *parent, const ane_wire_field *field, ane_arena *a,
                       ane_feature *ft) {
    ane_wire w = ane_wire_message(parent, field);
    ane_wire_field f, g;
    forget_type(ft);
    ft->rank = 2;
    ft->shape[0] = ft->shape[1] = 0;
    ft->dtype = ANE_U8;
    int64_t *flex = NULL;
    while (ane_wire_next(&w, &f)) {
        switch (f.number) {
        case 1:
        case 2:
            if (ane_wire_is(&w, &f, ANE_WIRE_VARINT))
                ft->shape[f.number == 1] = (int64_t)f.value;
            break;
        case 3:
            if (ane_wire_is(&w, &f, ANE_WIRE_VARINT)) ft->color = (int)(f.value & 0xff);
            break;
        case 21: {
            ane_wire e = ane_wire_message(&w, &f);
            begin_flex(ft, ANE_FLEX_ENUMERATED, &flex);
            while (ane_wire_next(&e, &f)) {
                if (f.number != 1) continue;
                ane_wire s = ane_wire_message(&e, &f);
                flex = grow(a, flex, ft->n_flex, 2 * sizeof(int64_t));
                if (!flex) {
                    no_memory(&e);
                    break;
                }
                int64_t *hw = flex + 2 * ft->n_flex++;
                hw[0] = hw[1] = 0;
                while (ane_wire_next(&s, &g))
                    if ((g.number == 1 || g.number == 2) &&
                        ane_wire_is(&s, &g, ANE_WIRE_VARINT))
                        hw[g.number == 1] = (int64_t)g.value;
                ane_wire_join(&e, &s);
            }
            ane_wire_join(&w, &e);
            break;
        }
        case 31: {
            ane_wire e = ane_wire_message(&w, &f);
            begin_flex(ft, ANE_FLEX_RANGE, &flex);
            ft->n_flex = 2;
            flex = ane_arena_alloc(a, 4 * sizeof *flex);
            if (!flex) no_memory(&e);
            while (flex && ane_wire_next(&e, &f))
                if (f.number == 1 || f.number == 2)
                    read_size_range(&e, &f, flex + (f.number == 1 ? 2 : 0));
            ane_wire_join(&w, &e);
            break;
        }
        default: break;
        }
    }
    ft->flex = flex;
    ane_wire_join(parent, &w);
}

static void read_type(ane_wire *parent, const ane_wire_field *field, ane_arena *a,
                      ane_feature *ft) {
    ane_wire w = ane_wire_message(parent, field);
    ane_wire_field f, g;
    while (ane_wire_next(&w, &f)) {
        if (f.number >= 1 && f.number <= 8) ft->kind = (ane_feature_kind)f.number;
        switch (f.number) {
        case 4: read_image(&w, &f, a, ft); break;
        case 5: read_array(&w, &f, a, ft); break;
        case 6: {
            ane_wire e = ane_wire_message(&w, &f);
            while (ane_wire_next(&e, &g))
                if (g.number == 2) ft->string_keys = true;
            ane_wire_join(&w, &e);
            break;
        }
        case 8: {
            ane_wire e = ane_wire_message(&w, &f);
            while (ane_wire_next(&e, &g))
                if (g.number == 1) read_array(&e, &g, a, ft);
            ane_wire_join(&w, &e);
            break;
        }
        case 1000:
            if (ane_wire_is(&w, &f, ANE_WIRE_VARINT)) ft->optional = f.value != 0;
            break;
        default: break;
        }
    }
    ane_wire_join(parent, &w);
}

static void read_feature(ane_wire *parent, const ane_wire_field *field, ane_arena *a,
                         ane_interface *face, ane_feature_role role) {
    ane_feature *all = grow(a, face->features[role], face->n[role], sizeof *all);
    if (!all) {
        no_memory(parent);
        return;
    }
    face->features[role] = all;
    ane_feature *ft = &all[face->n[role]++];
    *ft = (ane_feature){.name = "", .doc = ""};
    ane_wire w = ane_wire_message(parent, field);
    ane_wire_field f;
    while (ane_wire_next(&w, &f)) {
        char *s;
        if ((f.number == 1 || f.number == 2) && (s = ane_wire_string(&w, &f, a))) {
            if (f.number == 1) ft->name = s;
            else ft->doc = s;
        } else if (f.number == 3) {
            read_type(&w, &f, a, ft);
        }
    }
    ane_wire_join(parent, &w);
}

static ane_interface *add_interface(ane_wire *w, ane_description *d) {
    ane_interface *all = grow(d->arena, d->interfaces, d->n_interfaces, sizeof *all);
    if (!all) {
        no_memory(w);
        return NULL;
    }
    d->interfaces = all;
    ane_interface *face = &all[d->n_interfaces++];
    *face = (ane_interface){.function = "main", .predicted_feature = "",
                            .predicted_probabilities = ""};
    return face;
}

static void read_function(ane_wire *parent, const ane_wire_field *field,
                          ane_description *d) {
    ane_interface *face = add_interface(parent, d);
    if (!face) return;
    ane_wire w = ane_wire_message(parent, field);
    ane_wire_field f;
    while (ane_wire_next(&w, &f)) {
        char *s;
        switch (f.number) {
        case 1: if ((s = ane_wire_string(&w, &f, d->arena))) face->function = s; break;
        case 2: read_feature(&w, &f, d->arena, face, ANE_ROLE_INPUT); break;
        case 3: read_feature(&w, &f, d->arena, face, ANE_ROLE_OUTPUT); break;
        case 6: read_feature(&w, &f, d->arena, face, ANE_ROLE_STATE); break;
        case 4:
            if ((s = ane_wire_string(&w, &f, d->arena))) face->predicted_feature = s;
            break;
        case 5:
            if ((s = ane_wire_string(&w, &f, d->arena))) face->predicted_probabilities = s;
            break;
        default: break;
        }
    }
    ane_wire_join(parent, &w);
}

static void read_metadata(ane_wire *parent, const ane_wire_field *field,
                          ane_description *d) {
    ane_wire w = ane_wire_message(parent, field);
    ane_wire_field f, g;
    const char **slots[] = {&d->short_description, &d->version, &d->author, &d->license};
    const char **user;
    memcpy(&user, &d->user, sizeof user);   /* several such messages are one in parts */
    while (ane_wire_next(&w, &f)) {
        char *s;
        if (f.number >= 1 && f.number <= 4) {
            if ((s = ane_wire_string(&w, &f, d->arena))) *slots[f.number - 1] = s;
        } else if (f.number == 100) {
            user = grow(d->arena, user, d->n_user, 2 * sizeof *user);
            if (!user) {
                no_memory(&w);
                break;
            }
            const char **pair = user + 2 * d->n_user++;
            pair[0] = pair[1] = "";
            ane_wire e = ane_wire_message(&w, &f);
            while (ane_wire_next(&e, &g))
                if ((g.number == 1 || g.number == 2) &&
                    (s = ane_wire_string(&e, &g, d->arena)))
                    pair[g.number - 1] = s;
            ane_wire_join(&w, &e);
        }
    }
    d->user = user;
    ane_wire_join(parent, &w);
}

/* w is the ModelDescription message. */
ane_status ane_coreml_read_description(ane_wire *w, ane_description *d) {
    ane_wire_field f;
    ane_interface top = {.function = "main", .predicted_feature = "",
                         .predicted_probabilities = ""};
    bool any = false;
    while (ane_wire_next(w, &f)) {
        char *s;
        switch (f.number) {
        case 1: any = true; read_feature(w, &f, d->arena, &top, ANE_ROLE_INPUT); break;
        case 10: any = true; read_feature(w, &f, d->arena, &top, ANE_ROLE_OUTPUT); break;
        case 13: any = true; read_feature(w, &f, d->arena, &top, ANE_ROLE_STATE); break;
        case 11:
            if ((s = ane_wire_string(w, &f, d->arena))) top.predicted_feature = s;
            break;
        case 12:
            if ((s = ane_wire_string(w, &f, d->arena))) top.predicted_probabilities = s;
            break;
        case 20: read_function(w, &f, d); break;
        case 21:
            if ((s = ane_wire_string(w, &f, d->arena))) d->default_function = s;
            break;
        case 100: read_metadata(w, &f, d); break;
        default: break;
        }
    }
    if (!w->status && (any || !d->n_interfaces)) {
        ane_interface *face = add_interface(w, d);
        if (face) *face = top;
    }
    return w->status;
}

void ane_description_destroy(ane_description *d) {
    if (d) ane_arena_destroy(d->arena);     /* d itself lives in it */
}

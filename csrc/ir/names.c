/* Identifiers of one function: a hash map that never rescans. */
#include "impl.h"

#include <string.h>

struct ane_names {
    ane_value **slots;
    uint32_t *hashes;
    uint32_t seed;
    size_t mask, used, dead;            /* used counts live and dead entries */
};

static ane_value tombstone;

/* FNV-1a with a final mix, from a basis that a text cannot know (where the table happens to
 * lie), so that no text can choose identifiers that all collide. */
static uint32_t hash(const ane_names *t, const char *s, size_t n) {
    uint32_t h = 2166136261u ^ t->seed;
    for (size_t i = 0; i < n; i++) h = (h ^ (unsigned char)s[i]) * 16777619u;
    h ^= h >> 15;
    h *= 0x2c1b3c6du;
    return h ^ (h >> 12);
}

ane_names *ane__names_create(void) {
    ane_names *n = ane_calloc(1, sizeof *n);
    if (n) n->seed = (uint32_t)((uintptr_t)n * 0x9e3779b97f4a7c15u >> 32);
    return n;
}

void ane__names_destroy(ane_names *n) {
    if (!n) return;
    ane_free(n->slots);
    ane_free(n->hashes);
    ane_free(n);
}

static size_t find(const ane_names *n, const char *name, size_t len) {
    if (!n->slots) return SIZE_MAX;
    uint32_t h = hash(n, name, len);
    for (size_t i = h & n->mask;; i = (i + 1) & n->mask) {
        const ane_value *v = n->slots[i];
        if (!v) return SIZE_MAX;
        if (v != &tombstone && n->hashes[i] == h && !strncmp(v->name, name, len) && !v->name[len])
            return i;
    }
}

ane_value *ane__names_get(const ane_names *n, const char *name) {
    return ane__names_find(n, name, strlen(name));
}

ane_value *ane__names_find(const ane_names *n, const char *name, size_t len) {
    size_t i = find(n, name, len);
    return i == SIZE_MAX ? NULL : n->slots[i];
}

static void insert(ane_names *n, ane_value *v, uint32_t h) {
    size_t i = h & n->mask;
    while (n->slots[i]) i = (i + 1) & n->mask;
    n->slots[i] = v;
    n->hashes[i] = h;
    n->used++;
}

bool ane__names_reserve(ane_names *n, size_t more) {
    if (n->slots && (n->used + more) * 4 <= (n->mask + 1) * 3) return true;
    size_t live = n->used - n->dead, cap = 16;
    while ((live + more) * 2 > cap) cap *= 2;
    ane_names fresh = {.slots = ane_calloc(cap, sizeof *fresh.slots),
                       .hashes = ane_calloc(cap, sizeof *fresh.hashes),
                       .seed = n->seed, .mask = cap - 1};
    if (!fresh.slots || !fresh.hashes) {
        ane_free(fresh.slots);
        ane_free(fresh.hashes);
        return false;
    }
    for (size_t i = 0; n->slots && i <= n->mask; i++)
        if (n->slots[i] && n->slots[i] != &tombstone)
            insert(&fresh, n->slots[i], n->hashes[i]);
    ane_free(n->slots);
    ane_free(n->hashes);
    *n = fresh;
    return true;
}

bool ane__names_put(ane_names *n, ane_value *v) {
    if (!ane__names_reserve(n, 1)) return false;
    insert(n, v, hash(n, v->name, strlen(v->name)));
    return true;
}

void ane__names_remove(ane_names *n, const char *name) {
    size_t i = find(n, name, strlen(name));
    if (i == SIZE_MAX) return;
    n->slots[i] = &tombstone;
    n->dead++;
}

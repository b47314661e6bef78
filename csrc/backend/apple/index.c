#include "index.h"

#include "../../base/env.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define PATH_BYTES 1536
#define FOLDER_BYTES 1024
#define HEAD_BYTES 1024
#define PORT_BYTES 640                  /* a name, rank 8 and every number at its longest */

static atomic_ullong counts[3];

void ane_index_count(int what) { atomic_fetch_add(&counts[what], 1); }

/* The folder that docs/environment.md describes, and ours in it. False: none. */
static bool folder_of(char out[FOLDER_BYTES]) {
    const char *own = ane_env(ANE_ENV_CACHE_DIR), *xdg = getenv("XDG_CACHE_HOME");
    const char *home = getenv("HOME");
    struct stat st;
    int w;
    if (*own) w = snprintf(out, FOLDER_BYTES, "%s/ane-index", own);
    else if (xdg && *xdg) w = snprintf(out, FOLDER_BYTES, "%s/anetorch/ane-index", xdg);
    else if (!home || !*home) return false;
    else {
        w = snprintf(out, FOLDER_BYTES, "%s/Library/Caches", home);
        bool mac = w > 0 && w < FOLDER_BYTES && !stat(out, &st) && S_ISDIR(st.st_mode);
        w = snprintf(out, FOLDER_BYTES, "%s/%s/anetorch/ane-index", home,
                     mac ? "Library/Caches" : ".cache");
    }
    return w > 0 && w < FOLDER_BYTES;
}

static bool path_of(const char *hex, const char *tail, char out[PATH_BYTES]) {
    char folder[FOLDER_BYTES];
    if (!folder_of(folder)) return false;
    int w = snprintf(out, PATH_BYTES, "%s/%s%s", folder, hex, tail);
    return w > 0 && w < PATH_BYTES;
}

static bool make_folders(char *path) {
    for (char *p = path + 1; (p = strchr(p, '/')); *p++ = '/') {
        *p = 0;
        mkdir(path, 0777);              /* there already, or the last one says why not */
    }
    return !mkdir(path, 0777) || errno == EEXIST;
}

/* ---------------------------------------------------------------- one entry */

typedef struct text {
    char *p;
    size_t n, cap;
    bool failed;
} text;

static void add(text *t, const char *fmt, ...) ANE_PRINTF(2, 3);
static void add(text *t, const char *fmt, ...) {
    va_list ap;
    if (t->failed) return;
    va_start(ap, fmt);
    int w = vsnprintf(t->p + t->n, t->cap - t->n, fmt, ap);
    va_end(ap);
    t->failed = w < 0 || (size_t)w >= t->cap - t->n;
    if (!t->failed) t->n += (size_t)w;
}

static void add_head(text *t, const ane_index_key *k) {
    add(t, "anetorch engine index 1\nprogram %s\nweights %s\nid %s\nchip %s\nbuild %s\n",
        k->program, k->weights, k->hex, k->chip, k->build);
}

static void add_ports(text *t, const char *what, const ane_engine_port *p, size_t n) {
    for (size_t i = 0; i < n; i++) {
        add(t, "%s %s symbol %" PRId64 " %s bytes %zu", what, p[i].name, p[i].symbol,
            ane_dtype_name(p[i].dtype), p[i].bytes);
        for (int d = 0; d < p[i].rank; d++)
            add(t, " %" PRId64 "/%" PRId64, p[i].dims[d], p[i].strides[d]);
        add(t, "\n");
    }
}

/* The whole entry, or only its head (m NULL); the caller frees t->p. */
static bool entry_text(text *t, const ane_index_key *k, const ane_model *m) {
    *t = (text){.cap = HEAD_BYTES + (m ? PORT_BYTES * (m->n_in + m->n_out) : 0)};
    t->p = ane_malloc(t->cap);
    if (!t->p) return false;
    add_head(t, k);
    if (m) {
        add_ports(t, "input", m->in, m->n_in);
        add_ports(t, "output", m->out, m->n_out);
        add(t, "end\n");
    }
    return !t->failed;
}

/* Whether the file begins with t, or is t. */
static bool file_is(const char *path, const text *t, bool whole) {
    char buf[4096];
    size_t at = 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0) return false;
    bool same = true, end = false;
    while (same && !end && (whole || at < t->n)) {
        ssize_t n = read(fd, buf, sizeof buf);
        if (n < 0 && errno == EINTR) continue;
        end = n <= 0;
        size_t have = n > 0 ? (size_t)n : 0, left = t->n - at;
        if (whole && have > left) same = false;
        if (have > left) have = left;
        same = same && !memcmp(buf, t->p + at, have);
        at += have;
    }
    close(fd);
    return same && at == t->n;
}

bool ane_index_find(const ane_index_key *k) {
    char path[PATH_BYTES];
    text t = {0};
    bool found = entry_text(&t, k, NULL) && path_of(k->hex, "", path) &&
                 file_is(path, &t, false);
    ane_free(t.p);
    return found;
}

bool ane_index_confirm(const ane_index_key *k, const ane_model *m) {
    char path[PATH_BYTES];
    text t = {0};
    bool same = entry_text(&t, k, m) && path_of(k->hex, "", path) && file_is(path, &t, true);
    if (same) utimensat(AT_FDCWD, path, NULL, 0);       /* last use */
    ane_free(t.p);
    return same;
}

/* ---------------------------------------------------------------- the folder */

/* Held while entries are added, counted or removed; -1: go on without. */
static int lock_folder(const char *folder) {
    char path[PATH_BYTES];
    snprintf(path, sizeof path, "%s/lock", folder);
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    for (long waited = 0; fd >= 0 && flock(fd, LOCK_EX | LOCK_NB);) {
        if ((errno != EWOULDBLOCK && errno != EINTR) || waited > ANE_APPLE_INDEX_WAIT_MS) {
            int why = errno;
            close(fd);
            errno = why;
            return -1;
        }
        struct timespec pause = {0, ANE_APPLE_WAIT_STEP_MS * 1000000L};
        nanosleep(&pause, NULL);
        waited += ANE_APPLE_WAIT_STEP_MS;
    }
    return fd;
}

typedef struct entry {
    char name[256];
    int64_t used;                       /* ns */
    int64_t bytes;
} entry;

static bool is_entry(const char *name) {
    return *name && !name[strspn(name, "0123456789ABCDEFabcdef_")];
}

static int64_t used_at(const struct stat *st) {
#if defined(__APPLE__)
    return (int64_t)st->st_mtimespec.tv_sec * 1000000000 + st->st_mtimespec.tv_nsec;
#else
    return (int64_t)st->st_mtim.tv_sec * 1000000000 + st->st_mtim.tv_nsec;
#endif
}

/* Every entry of the folder; *list is freed by the caller. A leftover of a process that died
 * while it wrote is removed. */
static size_t list_entries(const char *folder, entry **list) {
    size_t n = 0, cap = 0;
    DIR *d = opendir(folder);
    *list = NULL;
    for (struct dirent *e; d && (e = readdir(d));) {
        struct stat st;
        bool entry_name = is_entry(e->d_name);
        if (!entry_name && strstr(e->d_name, ".new.") && !fstatat(dirfd(d), e->d_name, &st, 0) &&
            time(NULL) - st.st_mtime > 3600)
            unlinkat(dirfd(d), e->d_name, 0);
        if (!entry_name || strlen(e->d_name) >= sizeof(*list)->name ||
            fstatat(dirfd(d), e->d_name, &st, AT_SYMLINK_NOFOLLOW) || !S_ISREG(st.st_mode))
            continue;
        if (n == cap) {
            cap = cap ? 2 * cap : 64;
            entry *more = ane_realloc(*list, cap * sizeof *more);
            if (!more) break;
            *list = more;
        }
        entry *x = &(*list)[n++];
        *x = (entry){.used = used_at(&st), .bytes = (int64_t)st.st_size};
        strcpy(x->name, e->d_name);
    }
    if (d) closedir(d);
    return n;
}

static int oldest_first(const void *a, const void *b) {
    const entry *x = a, *y = b;
    return (x->used > y->used) - (x->used < y->used);
}

static size_t remove_entries(const char *folder, const entry *list, size_t n) {
    size_t removed = 0;
    for (size_t i = 0; i < n; i++) {
        char path[PATH_BYTES];
        snprintf(path, sizeof path, "%.1023s/%s", folder, list[i].name);
        removed += !unlink(path);
    }
    return removed;
}

static bool write_entry(const char *path, const text *t) {
    char temp[PATH_BYTES + 32];
    snprintf(temp, sizeof temp, "%s.new.%ld", path, (long)getpid());
    int fd = open(temp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0666);
    if (fd < 0) return false;
    size_t at = 0;
    while (at < t->n) {
        ssize_t w = write(fd, t->p + at, t->n - at);
        if (w > 0) at += (size_t)w;
        else if (w == 0 || errno != EINTR) break;
    }
    bool ok = !close(fd) && at == t->n && !rename(temp, path);
    if (!ok) unlink(temp);
    return ok;
}

void ane_index_put(const ane_index_key *k, const ane_model *m) {
    char folder[FOLDER_BYTES], path[PATH_BYTES];
    text t = {0};
    if (!folder_of(folder) || !path_of(k->hex, "", path) || !entry_text(&t, k, m)) {
        ane_free(t.p);
        return;
    }
    int lock = -1;
    bool ok = make_folders(folder);
    if (ok) {
        lock = lock_folder(folder);
        ok = write_entry(path, &t);
    }
    int why = errno;
    ane_free(t.p);
    if (!ok) ane__log("ane: cannot write %s (%s): this program is compiled again next time",
                      path, strerror(why));
    entry *list = NULL;
    size_t n = ok ? list_entries(folder, &list) : 0;
    if (n > ANE_APPLE_INDEX_ENTRIES) {
        qsort(list, n, sizeof *list, oldest_first);
        remove_entries(folder, list, n - ANE_APPLE_INDEX_ENTRIES * 7 / 8);
    }
    ane_free(list);
    if (lock >= 0) close(lock);
}

void ane_index_remove(const char *hex) {
    char path[PATH_BYTES];
    if (path_of(hex, "", path)) unlink(path);
}

/* ---------------------------------------------------------------- public */

void ane_cache_get_info(ane_cache_info *out) {
    entry *list = NULL;
    *out = (ane_cache_info){.size = sizeof *out, .limit = ANE_APPLE_INDEX_ENTRIES,
                            .hits = atomic_load(&counts[ANE_INDEX_HIT]),
                            .misses = atomic_load(&counts[ANE_INDEX_MISS]),
                            .stale = atomic_load(&counts[ANE_INDEX_STALE])};
    if (!folder_of(out->folder)) return;
    out->entries = list_entries(out->folder, &list);
    for (size_t i = 0; i < out->entries; i++) out->bytes += (size_t)list[i].bytes;
    ane_free(list);
}

ane_status ane_cache_clear(size_t *removed, ane_error *err) {
    char folder[FOLDER_BYTES];
    entry *list = NULL;
    if (removed) *removed = 0;
    ane_error_clear(err);
    if (!folder_of(folder)) return ANE_OK;
    int lock = lock_folder(folder);
    if (lock < 0 && errno == ENOENT) return ANE_OK;
    if (lock < 0) return ane_fail_os(err, errno, "[cache_clear] cannot lock %s", folder);
    size_t n = list_entries(folder, &list), gone = remove_entries(folder, list, n);
    ane_free(list);
    close(lock);
    if (removed) *removed = gone;
    if (gone == n) return ANE_OK;
    return ane_fail(err, ANE_ERR_OS, "[cache_clear] %zu of %zu entries of %s could not be removed",
                    n - gone, n, folder);
}

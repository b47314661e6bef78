#include "folder.h"

#include "../../base/mem.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define PATH_BYTES 2048

const char *ane_folder_relative(const char *path) {
    static const char prefix[] = "@model_path/";
    if (strncmp(path, prefix, sizeof prefix - 1)) return NULL;
    const char *rest = path + sizeof prefix - 1;
    if (!*rest || *rest == '/') return NULL;
    for (const char *p = rest; *p; p += strcspn(p, "/"), p += *p == '/')
        if (!strncmp(p, "..", 2) && (p[2] == '/' || !p[2])) return NULL;
    return rest;
}

/* The compiler runs as another user: the default mode, less umask. A name that is taken by
 * something else than a folder of our own is refused. */
static ane_status make_folder(const char *path, ane_error *err) {
    struct stat st;
    if (!mkdir(path, 0777)) return ANE_OK;
    if (errno != EEXIST) return ane_fail_os(err, errno, "[compile] cannot make folder %s", path);
    if (!lstat(path, &st) && S_ISDIR(st.st_mode) && st.st_uid == geteuid()) return ANE_OK;
    return ane_fail_os(err, EEXIST, "[compile] %s is not a folder of this user", path);
}

static ane_status write_file(const char *folder, const char *name, const void *data, size_t n,
                             ane_error *err) {
    char path[PATH_BYTES], temp[PATH_BYTES + 32];
    int w = snprintf(path, sizeof path, "%s/%s", folder, name);
    if (w < 0 || (size_t)w >= sizeof path)
        return ane_fail(err, ANE_ERR_INVALID, "[compile] path of %s is too long", name);
    for (char *p = path + strlen(folder) + 1; (p = strchr(p, '/')); *p++ = '/') {
        *p = 0;
        ane_status st = make_folder(path, err);
        if (st) return st;
    }
    snprintf(temp, sizeof temp, "%s.%ld", path, (long)getpid());
    unlink(temp);                       /* of an earlier process with this number */
    int fd = open(temp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (fd < 0) return ane_fail_os(err, errno, "[compile] cannot write %s", temp);
    const char *p = data;
    int failed = 0;
    while (n && !failed) {
        ssize_t k = write(fd, p, n < (1u << 30) ? n : 1u << 30);
        if (k > 0) p += k, n -= (size_t)k;
        else if (k == 0 || errno != EINTR) failed = k ? errno : EIO;
    }
    if (close(fd) && !failed) failed = errno;
    if (!failed && rename(temp, path)) failed = errno;
    if (!failed) return ANE_OK;
    unlink(temp);
    return ane_fail_os(err, failed, "[compile] cannot write %s", path);
}

ane_status ane_folder_write(const char *folder, const char *text, size_t n,
                            const ane_weight_blob *blobs, size_t n_blobs, ane_error *err) {
    ane_status st = make_folder(folder, err);
    if (!st) st = write_file(folder, "model.mil", text, n, err);
    for (size_t i = 0; i < n_blobs && !st; i++)
        st = write_file(folder, ane_folder_relative(blobs[i].path), blobs[i].data,
                        blobs[i].bytes, err);
    return st;
}

void ane_folder_copy_network(const char *from, const char *to) {
    char path[PATH_BYTES], buf[16384];
    ane_error err;
    size_t n = 0, cap = 0;
    char *all = NULL;
    snprintf(path, sizeof path, "%s/net.plist", from);
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    for (ssize_t k; fd >= 0 && (k = read(fd, buf, sizeof buf)) != 0;) {
        if (k < 0 && errno == EINTR) continue;
        if (k > 0 && n + (size_t)k > cap) {
            char *more = ane_realloc(all, cap = 2 * (n + (size_t)k));
            if (!more) k = -1;
            else all = more;
        }
        if (k < 0) break;
        memcpy(all + n, buf, (size_t)k);
        n += (size_t)k;
    }
    if (fd >= 0) close(fd);
    if (n && write_file(to, "net.plist", all, n, &err)) ane__log("ane: %s", err.message);
    ane_free(all);
}

/* Links are removed, not followed; deeper than any folder of ours, it stays. */
static void remove_tree(const char *path, int depth) {
    struct stat st;
    if (lstat(path, &st)) return;
    if (!S_ISDIR(st.st_mode)) {
        unlink(path);
        return;
    }
    DIR *d = depth ? opendir(path) : NULL;
    for (struct dirent *e; d && (e = readdir(d));) {
        char child[PATH_BYTES];
        if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, "..")) continue;
        int w = snprintf(child, sizeof child, "%s/%s", path, e->d_name);
        if (w > 0 && (size_t)w < sizeof child) remove_tree(child, depth - 1);
    }
    if (d) closedir(d);
    rmdir(path);
}

void ane_folder_remove(const char *folder) {
    if (*folder) remove_tree(folder, 8);
}

/* Beside it, under a name that the framework does not know. False: longer than any path of
 * ours. */
static bool hidden(const char *folder, char path[PATH_BYTES]) {
    int w = snprintf(path, PATH_BYTES, "%s.kept", folder);
    return w > 0 && w < PATH_BYTES;
}

void ane_folder_hide(const char *folder) {
    char path[PATH_BYTES];
    if (hidden(folder, path)) rename(folder, path);
}

void ane_folder_show(const char *folder) {
    char path[PATH_BYTES];
    struct stat st;
    if (!hidden(folder, path) || lstat(path, &st)) return;
    if (!lstat(folder, &st) || rename(path, folder)) remove_tree(path, 8);
}

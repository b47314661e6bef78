#include "claim.h"

#include "../../ir/target.h"
#include "table.def"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define PATH_BYTES 1200

static void path_of(const char *folder, const char *what, char path[PATH_BYTES]) {
    snprintf(path, PATH_BYTES, "%.1100s.%s", folder, what);
}

static int open_lock(const char *path) {
    return open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
}

/* Whether the locked file is still the one that the name leads to: its holder may have
 * removed it while we waited. */
static bool current(int fd, const char *path) {
    struct stat mine, named;
    return !fstat(fd, &mine) && !stat(path, &named) && mine.st_ino == named.st_ino &&
           mine.st_dev == named.st_dev;
}

static int lock_now(int fd, int how) {
    int rc;
    do rc = flock(fd, how | LOCK_NB);
    while (rc && errno == EINTR);
    return rc;
}

ane_status ane_claim_work(ane_claim *c, const char *folder, ane_error *err) {
    char path[PATH_BYTES];
    path_of(folder, "work", path);
    for (long waited = 0;;) {
        int fd = open_lock(path);
        if (fd < 0) return ane_fail_os(err, errno, "[compile] cannot open the lock %s", path);
        while (lock_now(fd, LOCK_EX)) {
            int why = errno;
            if (why != EWOULDBLOCK || waited >= ANE_APPLE_WAIT_MS) {
                close(fd);
                if (why != EWOULDBLOCK)
                    return ane_fail_os(err, why, "[compile] cannot lock %s", path);
                return ane_fail(err, ANE_ERR_BUSY, "[compile] another process has been busy "
                                "with the same program for %ld s; it holds the lock of %s",
                                waited / 1000, path);
            }
            c->waited = true;
            if (!waited) ane__log("ane: waiting for another process with the same program");
            struct timespec pause = {0, ANE_APPLE_WAIT_STEP_MS * 1000000L};
            nanosleep(&pause, NULL);
            waited += ANE_APPLE_WAIT_STEP_MS;
        }
        if (current(fd, path)) {
            c->work = fd;
            return ANE_OK;
        }
        close(fd);
    }
}

ane_status ane_claim_use(ane_claim *c, const char *folder, ane_error *err) {
    char path[PATH_BYTES];
    path_of(folder, "use", path);
    int fd = open_lock(path);
    if (fd < 0) return ane_fail_os(err, errno, "[compile] cannot open the lock %s", path);
    /* Only who holds the work takes it alone, and only for a moment. */
    if (lock_now(fd, LOCK_SH)) {
        int why = errno;
        close(fd);
        return ane_fail_os(err, why, "[compile] cannot lock %s", path);
    }
    c->use = fd;
    return ANE_OK;
}

bool ane_claim_leave(ane_claim *c, const char *folder) {
    char path[PATH_BYTES];
    path_of(folder, "use", path);
    if (c->use < 0) {
        int fd = open_lock(path);       /* never had: ask all the same */
        if (fd < 0) return false;
        c->use = fd;
    }
    bool last = !lock_now(c->use, LOCK_EX);
    close(c->use);
    c->use = -1;
    return last;
}

void ane_claim_done(ane_claim *c, const char *folder, bool last) {
    char path[PATH_BYTES];
    if (c->work < 0) return;
    if (last) {
        path_of(folder, "use", path);
        unlink(path);
        path_of(folder, "work", path);
        unlink(path);
    }
    close(c->work);
    c->work = -1;
}

void ane_claim_forget(ane_claim *c) {
    if (c->use >= 0) close(c->use);
    if (c->work >= 0) close(c->work);
    *c = (ane_claim)ANE_CLAIM_NONE;
}

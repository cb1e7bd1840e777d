/* Loaded before a node, it makes the disk below a bad one. While the file named by FAILSYNC exists, every sync of a file
 * under log/ fails with EIO, as on a disk that lost what it was given; while the one named by HANGSYNC exists, every sync
 * of a file under log/, state/ or snapshots/ waits, as on a disk that hangs.
 * Built by faults.py and by the tests: cc -shared -fPIC -o failsync.so failsync.c -ldl */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int is_there(const char *variable) {
    const char *trigger = getenv(variable);
    return trigger && access(trigger, F_OK) == 0;
}

static int is_under(int fd, const char *folder) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n < 0)
        return 0;
    path[n] = 0;
    return strstr(path, folder) != NULL;
}

/* Waits while the disk hangs; then says whether the sync fails. */
static int fails(int fd) {
    if (is_there("HANGSYNC") && (is_under(fd, "/log/") || is_under(fd, "/state/") || is_under(fd, "/snapshots/")))
        while (is_there("HANGSYNC"))
            usleep(2000);
    return is_there("FAILSYNC") && is_under(fd, "/log/");
}

int fdatasync(int fd) {
    static int (*real)(int);
    if (!real)
        real = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
    return fails(fd) ? (errno = EIO, -1) : real(fd);
}

int fsync(int fd) {
    static int (*real)(int);
    if (!real)
        real = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
    return fails(fd) ? (errno = EIO, -1) : real(fd);
}

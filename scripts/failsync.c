/* Loaded before a node, it makes the disk below a bad one. While the file named by FAILSYNC exists, every sync of a file
 * under log/, or with the path of which it holds a part, fails with EIO, as on a disk that lost what it was given; while the one named by HANGSYNC exists, every sync
 * of a file under log/, state/ or snapshots/ waits, as on a disk that hangs. The file named by SYNCLOG gets a line with the
 * path of whatever is synced.
 * Built by faults.py and by the tests: cc -shared -fPIC -o failsync.so failsync.c -ldl */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int is_there(const char *variable) {
    const char *trigger = getenv(variable);
    return trigger && access(trigger, F_OK) == 0;
}

/* The path of an open file; empty where there is none. */
static void path_of(int fd, char *path, size_t size) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, size - 1);
    path[n < 0 ? 0 : n] = 0;
}

static int is_under(int fd, const char *folder) {
    char path[4096];
    path_of(fd, path, sizeof path);
    return strstr(path, folder) != NULL;
}

static void note(int fd) {
    const char *name = getenv("SYNCLOG");
    int log = name ? open(name, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600) : -1;
    if (log < 0)
        return;
    char path[4096];
    path_of(fd, path, sizeof path);
    dprintf(log, "%s\n", path);
    close(log);
}

/* Whether the syncs of such a file fail. */
static int is_failing(int fd) {
    const char *trigger = getenv("FAILSYNC");
    int file = trigger ? open(trigger, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0)
        return 0;
    char part[256];
    ssize_t n = read(file, part, sizeof part - 1);
    close(file);
    part[n < 0 ? 0 : n] = 0;
    return is_under(fd, *part ? part : "/log/");
}

/* Waits while the disk hangs; then says whether the sync fails. */
static int fails(int fd) {
    note(fd);
    if (is_there("HANGSYNC") && (is_under(fd, "/log/") || is_under(fd, "/state/") || is_under(fd, "/snapshots/")))
        while (is_there("HANGSYNC"))
            usleep(2000);
    return is_failing(fd);
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

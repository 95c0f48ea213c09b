/* A disk that fails on demand: calls on files below FAULTY_DIRECTORY return the errnos that the file
 * FAULTY_CONTROL holds: two ints, for what reads and for what writes; 0: do as always. For LD_PRELOAD. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum { READS, WRITES };

static volatile int nothing[2];
static volatile int *control = nothing;
static const char *directory = "";

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("FAULTY_CONTROL");
    const char *below = getenv("FAULTY_DIRECTORY");
    if (path == NULL || below == NULL) return;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return;
    void *mapped = mmap(NULL, 2 * sizeof(int), PROT_READ, MAP_SHARED, fd, 0);
    close(fd);
    if (mapped == MAP_FAILED) return;
    directory = below;
    control = mapped;
}

static int path_fails(const char *path, int kind) {
    if (control[kind] == 0 || path == NULL) return 0;
    size_t length = strlen(directory);
    if (strncmp(path, directory, length) != 0 || (path[length] != '/' && path[length] != 0)) return 0;
    errno = control[kind];
    return 1;
}

static int fd_fails(int fd, int kind) {
    if (control[kind] == 0) return 0;
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return path_fails(path, kind);
}

#define REAL(result, name, ...) \
    static result (*real)(__VA_ARGS__); \
    if (real == NULL) real = (result (*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name)

#define ON_FD(result, name, kind, parameters, types, arguments) \
    result name parameters { \
        static result (*real) types; \
        if (real == NULL) real = (result (*) types)dlsym(RTLD_NEXT, #name); \
        if (fd_fails(fd, kind)) return -1; \
        return real arguments; \
    }

#define ON_PATH(name, parameters, types, arguments) \
    int name parameters { \
        static int (*real) types; \
        if (real == NULL) real = (int (*) types)dlsym(RTLD_NEXT, #name); \
        if (path_fails(path, WRITES)) return -1; \
        return real arguments; \
    }

static int open_fails(const char *path, int flags) {
    int writes = (flags & O_ACCMODE) != O_RDONLY || (flags & (O_CREAT | O_TRUNC));
    return path_fails(path, writes ? WRITES : READS);
}

#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        REAL(int, name, const char *, int, ...); \
        va_list list; \
        va_start(list, flags); \
        mode_t mode = va_arg(list, mode_t); \
        va_end(list); \
        if (open_fails(path, flags)) return -1; \
        return real(path, flags, mode); \
    }

#define OPENAT(name) \
    int name(int at, const char *path, int flags, ...) { \
        REAL(int, name, int, const char *, int, ...); \
        va_list list; \
        va_start(list, flags); \
        mode_t mode = va_arg(list, mode_t); \
        va_end(list); \
        if (open_fails(path, flags)) return -1; \
        return real(at, path, flags, mode); \
    }

OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)

ON_FD(ssize_t, read, READS, (int fd, void *data, size_t size), (int, void *, size_t), (fd, data, size))
ON_FD(ssize_t, pread, READS, (int fd, void *data, size_t size, off_t at), (int, void *, size_t, off_t), (fd, data, size, at))
ON_FD(ssize_t, pread64, READS, (int fd, void *data, size_t size, off64_t at), (int, void *, size_t, off64_t), (fd, data, size, at))
ON_FD(ssize_t, preadv2, READS, (int fd, const struct iovec *v, int n, off_t at, int flags), (int, const struct iovec *, int, off_t, int), (fd, v, n, at, flags))
ON_FD(ssize_t, preadv64v2, READS, (int fd, const struct iovec *v, int n, off64_t at, int flags), (int, const struct iovec *, int, off64_t, int), (fd, v, n, at, flags))
ON_FD(ssize_t, preadv, READS, (int fd, const struct iovec *v, int n, off_t at), (int, const struct iovec *, int, off_t), (fd, v, n, at))
ON_FD(ssize_t, preadv64, READS, (int fd, const struct iovec *v, int n, off64_t at), (int, const struct iovec *, int, off64_t), (fd, v, n, at))

ON_FD(ssize_t, write, WRITES, (int fd, const void *data, size_t size), (int, const void *, size_t), (fd, data, size))
ON_FD(ssize_t, pwrite, WRITES, (int fd, const void *data, size_t size, off_t at), (int, const void *, size_t, off_t), (fd, data, size, at))
ON_FD(ssize_t, pwrite64, WRITES, (int fd, const void *data, size_t size, off64_t at), (int, const void *, size_t, off64_t), (fd, data, size, at))
ON_FD(int, fsync, WRITES, (int fd), (int), (fd))
ON_FD(int, fdatasync, WRITES, (int fd), (int), (fd))
ON_FD(int, ftruncate, WRITES, (int fd, off_t size), (int, off_t), (fd, size))
ON_FD(int, ftruncate64, WRITES, (int fd, off64_t size), (int, off64_t), (fd, size))
ON_FD(ssize_t, copy_file_range, READS, (int fd, off64_t *a, int to, off64_t *b, size_t size, unsigned flags), (int, off64_t *, int, off64_t *, size_t, unsigned), (fd, a, to, b, size, flags))

ON_PATH(truncate, (const char *path, off_t size), (const char *, off_t), (path, size))
ON_PATH(truncate64, (const char *path, off64_t size), (const char *, off64_t), (path, size))
ON_PATH(rename, (const char *path, const char *to), (const char *, const char *), (path, to))
ON_PATH(link, (const char *path, const char *to), (const char *, const char *), (path, to))
ON_PATH(unlink, (const char *path), (const char *), (path))
ON_PATH(mkdir, (const char *path, mode_t mode), (const char *, mode_t), (path, mode))

/* A wall clock that a test may set: preloaded into a program, it adds the seconds that a file holds.
 *
 * What the kernel does for a timerfd of CLOCK_REALTIME (timerfd_create(2)) is done here against that clock: an
 * absolute timer becomes readable when its moment has come, and a read of one with TFD_TIMER_CANCEL_ON_SET fails with
 * ECANCELED once after the clock was set. Underneath ticks a timer of 10 ms. One timer at a time.
 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

static volatile int64_t *offset;
static int timer = -1;
static struct timespec due;
static int64_t seen;
static int cancels;

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("FAKECLOCK");
    int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    void *map = fd < 0 ? MAP_FAILED : mmap(NULL, sizeof *offset, PROT_READ, MAP_SHARED, fd, 0);
    if (fd >= 0) close(fd);
    if (map != MAP_FAILED) offset = map;
}

int clock_gettime(clockid_t id, struct timespec *at) {
    int (*real)(clockid_t, struct timespec *) = dlsym(RTLD_NEXT, "clock_gettime");
    int failed = real(id, at);
    if (!failed && id == CLOCK_REALTIME && offset) at->tv_sec += *offset;
    return failed;
}

time_t time(time_t *where) {
    struct timespec at;
    clock_gettime(CLOCK_REALTIME, &at);
    if (where) *where = at.tv_sec;
    return at.tv_sec;
}

int timerfd_settime(int fd, int flags, const struct itimerspec *new, struct itimerspec *old) {
    int (*real)(int, int, const struct itimerspec *, struct itimerspec *) = dlsym(RTLD_NEXT, "timerfd_settime");
    if (!offset || !(flags & TFD_TIMER_ABSTIME)) return real(fd, flags, new, old);
    struct itimerspec tick = {{0, 10000000}, {0, 10000000}};
    if (timer != fd) seen = *offset;
    timer = fd;
    due = new->it_value;
    cancels = flags & TFD_TIMER_CANCEL_ON_SET;
    return real(fd, 0, &tick, NULL);
}

ssize_t read(int fd, void *to, size_t size) {
    ssize_t (*real)(int, void *, size_t) = dlsym(RTLD_NEXT, "read");
    ssize_t got = real(fd, to, size);
    if (fd != timer || got < 0) return got;
    if (cancels && *offset != seen) {
        seen = *offset;
        errno = ECANCELED;
        return -1;
    }
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (now.tv_sec > due.tv_sec || (now.tv_sec == due.tv_sec && now.tv_nsec >= due.tv_nsec)) return got;
    errno = EAGAIN;
    return -1;
}

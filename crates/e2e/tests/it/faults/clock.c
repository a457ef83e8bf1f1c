/* Preloaded, it sets the wall clock of a process an hour back as soon as the file CLOCK_BACK_ONCE exists. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) {
        real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    }
    int result = real(clock, now);
    const char *file = getenv("CLOCK_BACK_ONCE");
    if (clock == CLOCK_REALTIME && file && access(file, F_OK) == 0) {
        now->tv_sec -= 3600;
    }
    return result;
}

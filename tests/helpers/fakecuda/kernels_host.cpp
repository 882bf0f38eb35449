/* calibrators/kernels.cu for the CPU: its very source, compiled by g++.
 *
 * run_observe() takes what cuLaunchKernel takes. `view` turns a device address and a number of bytes into a host
 * pointer, or NULL where they are not all allocated; without it addresses are the host's own. */
#include "shim.h"
#include "kernels.cu"

typedef unsigned long long u64;
static struct {
    const float *x; u64 n; unsigned fine_from, fine_to; int exponent; unsigned streamed_from, streamed_to;
    float limit, scale; u64 *fine, *streamed, *summary; int own_fine;
} a;

/* Bytes of each parameter, 0 at the end: who puts a launch off has to copy them. */
extern "C" const unsigned char observe_sizes[] = { 8, 8, 4, 4, 4, 4, 4, 4, 4, 8, 8, 8, 4, 0 };

extern "C" int run_observe(unsigned grid, unsigned block, unsigned shared, void **args, void *(*view)(u64, size_t)) {
    u64 address[4]; const int place[4] = { 0, 9, 10, 11 };
    memcpy(&a.n, args[1], 8);
    const size_t sizes[4] = { a.n * 4, FINE_BINS * 8, STREAMED_BINS * 8, 16 };
    for (int i = 0; i < 4; i++) {
        memcpy(&address[i], args[place[i]], 8);
        if (view && !(address[i] = (u64)(uintptr_t)view(address[i], sizes[i]))) return 700;
    }
    memcpy(&a.fine_from, args[2], 4); memcpy(&a.fine_to, args[3], 4); memcpy(&a.exponent, args[4], 4);
    memcpy(&a.streamed_from, args[5], 4); memcpy(&a.streamed_to, args[6], 4);
    memcpy(&a.limit, args[7], 4); memcpy(&a.scale, args[8], 4); memcpy(&a.own_fine, args[12], 4);
    a.x = (const float *)address[0]; a.fine = (u64 *)address[1]; a.streamed = (u64 *)address[2]; a.summary = (u64 *)address[3];
    run_grid(grid, block, shared, [] {
        observe(a.x, a.n, a.fine_from, a.fine_to, a.exponent, a.streamed_from, a.streamed_to, a.limit, a.scale,
                a.fine, a.streamed, a.summary, a.own_fine);
    });
    return 0;
}

/* What g++ needs to take a CUDA kernel for a plain function, and to run its grid on one thread.
 *
 * A block's threads are fibres: each runs until __syncthreads(), then the next one does, in an order drawn anew for each
 * round, so that a result which hangs on the order of threads shows. Shared memory is filled with rubbish before each
 * block; what lies behind the part that was asked for is watched. */
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>
#include <ucontext.h>

#define __global__
#define __device__ static
#define __shared__ thread_local
#define __launch_bounds__(most)

struct dim3 { unsigned x = 1, y = 1, z = 1; };
static dim3 threadIdx, blockIdx, blockDim, gridDim;

template <class T> static T atomicAdd(T *place, T value) { T old = *place; *place += value; return old; }
template <class T> static T atomicMax(T *place, T value) { T old = *place; if (value > old) *place = value; return old; }
template <class T> static T atomicCAS(T *place, T expected, T value) { T old = *place; if (old == expected) *place = value; return old; }
/* volatile: each operation is rounded to float32, whatever g++ would rather do. */
static float __fdiv_rn(float a, float b) { volatile float r = a / b; return r; }
static float __fmul_rn(float a, float b) { volatile float r = a * b; return r; }
static float __uint_as_float(unsigned bits) { float x; memcpy(&x, &bits, 4); return x; }
static unsigned __float_as_uint(float x) { unsigned bits; memcpy(&bits, &x, 4); return bits; }

enum { TABLE_WORDS = 60000, WATCHED = 64, STACK = 64 << 10 };
thread_local unsigned table[TABLE_WORDS + WATCHED];  /* the kernel's dynamic shared memory, under the name it has there */

static ucontext_t scheduler;
static std::vector<ucontext_t> fibres;
static std::vector<char> stacks;
static std::vector<unsigned char> finished;
static unsigned running;
static void (*body)();

static void __syncthreads() { swapcontext(&fibres[running], &scheduler); }
static void fibre() { body(); finished[running] = 1; }

static void run_grid(unsigned grid, unsigned block, unsigned shared, void (*kernel)()) {
    if (shared / 4 > TABLE_WORDS) { fprintf(stderr, "shim: %u bytes of shared memory\n", shared); abort(); }
    static uint32_t random = 1;
    body = kernel; gridDim.x = grid; blockDim.x = block;
    fibres.resize(block); stacks.resize((size_t)block * STACK);
    for (unsigned b = 0; b < grid; b++) {
        blockIdx.x = b; finished.assign(block, 0);
        memset(table, 0xA5, sizeof table);
        for (unsigned t = 0; t < block; t++) {
            getcontext(&fibres[t]);
            fibres[t].uc_stack.ss_sp = &stacks[(size_t)t * STACK]; fibres[t].uc_stack.ss_size = STACK; fibres[t].uc_link = &scheduler;
            makecontext(&fibres[t], fibre, 0);
        }
        for (unsigned left = block; left;) {
            random = random * 1664525u + 1013904223u;
            const unsigned start = random >> 16;
            left = 0;
            for (unsigned k = 0; k < block; k++) {
                const unsigned t = (start + k * ((random & 1) ? block - 1 : 1)) % block;
                if (finished[t]) continue;
                running = t; threadIdx.x = t;
                swapcontext(&scheduler, &fibres[t]);
                left += !finished[t];
            }
        }
        for (unsigned i = shared / 4; i < shared / 4 + WATCHED; i++)
            if (table[i] != 0xA5A5A5A5u) { fprintf(stderr, "shim: written behind shared memory\n"); abort(); }
    }
}

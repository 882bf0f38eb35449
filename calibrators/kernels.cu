// One read of a tensor of floats: its largest |x|, how many elements have it, and counts of |x| on two grids.
//
// Compiled by NVRTC at run time (device_kernels.py), and by g++ in the tests, where it counts against the CPU's loops.
// A magnitude is compared as the bits of its float, which order like the numbers: zero, subnormals, normals, inf, nan.
// Each grid counts the magnitudes in [from, to) and no others, so that a second call counts what a first one had no
// bin for. Elements equal to the streamed grid's limit, which is its `to`, have no bin: who knows the maximum and how
// many have it knows how many they are.

#define FINE_BINS 32768
#define STREAMED_BINS 2048
#define LOADS 8  // of a thread under way at once

// |x| < 2**exponent as bits -> floor(|x| * FINE_BINS / 2**exponent), in integers: no rounding, subnormals as they are.
__device__ unsigned fine_bin(unsigned bits, int exponent)
{
    const unsigned raised = bits >> 23;
    const unsigned mantissa = raised ? (bits & 0x7fffffu) | 0x800000u : bits;
    const int shift = exponent - 15 + 150 - (raised ? (int)raised : 1);  // |x| is mantissa * 2**(raised - 150)
    if (shift > 31)
        return 0;
    return shift < 0 ? mantissa << -shift : mantissa >> shift;
}

// |x| < limit as bits -> its bin as TensorRT finds it: two float32 operations, each rounded. No compiler option may
// join or approximate them.
__device__ unsigned streamed_bin(unsigned bits, float limit, float scale)
{
    const unsigned bin = (unsigned)__fmul_rn(__fdiv_rn(__uint_as_float(bits), limit), scale);
    return bin < STREAMED_BINS ? bin : STREAMED_BINS - 1;
}

// summary[0]: bits of the largest magnitude << 32 | how many have it. summary[1]: how many are
// +inf. All of summary, fine and streamed are added to; n < 2**32.
// `own_fine`: whether dynamic shared memory has room for a fine grid of the block's own behind the streamed one.
extern "C" __global__ void __launch_bounds__(1024) observe(
    const float *x, unsigned long long n,
    unsigned fine_from, unsigned fine_to, int exponent,
    unsigned streamed_from, unsigned streamed_to, float limit, float scale,
    unsigned long long *fine, unsigned long long *streamed, unsigned long long *summary, int own_fine)
{
    extern __shared__ unsigned table[];
    __shared__ unsigned block_largest, block_peaks, block_inf, block_fine_0, block_streamed_0;
    unsigned *const streamed_table = table;
    unsigned *const fine_table = table + STREAMED_BINS;
    const unsigned bins = STREAMED_BINS + (own_fine ? FINE_BINS : 0);
    for (unsigned i = threadIdx.x; i < bins; i += blockDim.x)
        table[i] = 0;
    if (threadIdx.x == 0)
        block_largest = block_peaks = block_inf = block_fine_0 = block_streamed_0 = 0;
    __syncthreads();

    unsigned largest = 0, peaks = 0, inf = 0;
    unsigned fine_0 = 0, streamed_0 = 0;  // bin 0 is the one that many share, after every ReLU
    const unsigned long long stride = (unsigned long long)gridDim.x * blockDim.x;
    for (unsigned long long first = (unsigned long long)blockIdx.x * blockDim.x + threadIdx.x; first < n;
         first += LOADS * stride) {
        unsigned loaded[LOADS];
        for (int k = 0; k < LOADS; k++)
            loaded[k] = first + k * stride < n ? __float_as_uint(x[first + k * stride]) : 0;
        for (int k = 0; k < LOADS && first + k * stride < n; k++) {
            const unsigned bits = loaded[k] & 0x7fffffffu;
            if (bits > largest) {
                largest = bits;
                peaks = 0;
            }
            peaks += bits == largest;
            inf += loaded[k] == 0x7f800000u;
            if (bits >= fine_from && bits < fine_to) {
                const unsigned bin = fine_bin(bits, exponent);
                if (bin == 0)
                    fine_0++;
                else if (own_fine)
                    atomicAdd(&fine_table[bin], 1u);
                else
                    atomicAdd(&fine[bin], 1ull);
            }
            if (bits >= streamed_from && bits < streamed_to) {
                const unsigned bin = streamed_bin(bits, limit, scale);
                if (bin == 0)
                    streamed_0++;
                else
                    atomicAdd(&streamed_table[bin], 1u);
            }
        }
    }

    atomicMax(&block_largest, largest);
    atomicAdd(&block_inf, inf);
    atomicAdd(&block_fine_0, fine_0);
    atomicAdd(&block_streamed_0, streamed_0);
    __syncthreads();
    if (largest == block_largest)
        atomicAdd(&block_peaks, peaks);
    for (unsigned i = threadIdx.x; i < bins; i += blockDim.x)
        if (table[i])
            atomicAdd(i < STREAMED_BINS ? &streamed[i] : &fine[i - STREAMED_BINS], (unsigned long long)table[i]);
    __syncthreads();
    if (threadIdx.x)
        return;
    atomicAdd(&fine[0], (unsigned long long)block_fine_0);
    atomicAdd(&streamed[0], (unsigned long long)block_streamed_0);
    atomicAdd(&summary[1], (unsigned long long)block_inf);
    // The largest of two pairs wins; where they are equal, their peaks add up.
    unsigned long long before = atomicAdd(&summary[0], 0ull), seen;
    do {
        seen = before;
        const unsigned other = (unsigned)(seen >> 32);
        const unsigned best = other > block_largest ? other : block_largest;
        const unsigned long long number = (other == best ? (unsigned)seen : 0u) + (block_largest == best ? block_peaks : 0u);
        before = atomicCAS(&summary[0], seen, (unsigned long long)best << 32 | number);
    } while (before != seen);
}

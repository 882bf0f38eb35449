"""Slow, plain reference of TensorRT's entropy (1 and 2) INT8 calibration.

float32 where TensorRT's bits demand it, float64 for the KL divergence. An oracle for tests, not product code."""
import numpy as np
NB, NL = 2048, 128


class Hist:
    """|x| histogram, 2048 bins, range = max of the first non-zero batch, then doubled as needed."""
    def __init__(self): self.R = np.float32(0); self.h = np.zeros(NB, np.float64); self.zeros = 0.; self.doublings = 0
    def update(self, x):
        a = np.abs(np.asarray(x, np.float32)).ravel()
        if a.size == 0: return
        m = a.max()
        if m == 0: self.zeros += a.size; return          # ASSUMPTION: zero-only batches go to bin 0
        if self.R == 0: self.R = m
        while m > self.R:
            self.R = np.float32(self.R * 2); self.doublings += 1
            self.h = np.concatenate([self.h.reshape(-1, 2).sum(1), np.zeros(NB // 2)])
        idx = np.minimum((a / self.R * np.float32(NB)).astype(np.int64), NB - 1)
        self.h += np.bincount(idx, minlength=NB)


def entropy_bin(h, start=NL):
    """Last m in [start, NB] minimising KL(P||Q)."""
    h = np.array(h, np.float64); h[0] = h[1]             # bin 0 counts as bin 1 does (as in NVIDIA's pytorch-quantization)
    n = len(h); nz = h > 0; tot = h.sum()
    if tot == 0: return None
    cum = np.concatenate([[0], np.cumsum(h)])
    best, bm = np.inf, n
    for i in range(start, n + 1):
        lev = np.minimum((np.digitize(np.arange(i), np.linspace(0, i, NL + 1)) - 1), NL - 1)
        z = nz[:i]; s = np.bincount(lev, weights=h[:i], minlength=NL); c = np.bincount(lev, weights=z, minlength=NL)
        q = np.where(c > 0, s / np.maximum(c, 1), 0)[lev] * z
        qs = q.sum()
        if qs == 0: continue
        if np.count_nonzero(z) == 1 and tot > cum[i]: continue   # a window of one bin that clips is no candidate (seen on TensorRT 7.0 and 8.5.1)
        p = h[:i].copy(); p[i - 1] += tot - cum[i]
        k = p > 0
        if (q[k] <= 0).any(): continue                    # KL = inf: top bin empty but outliers piled on it
        kl = float((p[k] / tot * np.log((p[k] / tot) / (q[k] / qs))).sum())
        if kl < best + 1e-12: best, bm = min(best, kl), i   # within 1e-12 is a tie: the largest wins (seen on TensorRT 8.5 to 10.14)
    return bm


def scale_from_bin(m, R):
    f = np.float32
    return f(f(f(m) + f(.5)) * f(f(R) / f(NB))) / f(127)


def minmax_scale(amax): return np.float32(amax) / np.float32(127)
def hexf(s): return format(int(np.float32(s).view(np.uint32)), 'x')   # TensorRT: no zero padding ("0" for 0.0)

/* A test double for the CUDA driver library (libcuda.so.1).
 *
 * No GPU: "device" memory is ordinary host memory behind opaque addresses; contexts, streams and events are checked
 * handles; a kernel that is launched is looked for in a library made of its source by g++ (kernels_host.cpp).  Real PyCUDA and cuda-bindings run on it, so that our
 * handling of memory, contexts and streams is tested on machines without a GPU: every copy is bounds-checked,
 * live allocations are counted, faults are injected.  build.sh compiles it with gcc alone (no cuda.h, no toolkit);
 * Linux x86-64 only, because entry points that are not written here get a machine-code thunk.
 *
 *   FAKECUDA_LOG=1|PATH   logs every call (1: stderr)
 *   FAKECUDA_FAIL=NAME:N[:CODE[:COUNT]][,...]  the Nth call whose symbol starts with NAME, and COUNT-1 more,
 *                         fail with CODE (2: out of memory)
 *   FAKECUDA_MEM=BYTES    device memory (default 80 GiB)
 *   FAKECUDA_CC=80        compute capability
 *   FAKECUDA_DEVICES=N    number of devices (default 1)
 *   FAKECUDA_VERSION=N    driver version (default 13000)
 *   FAKECUDA_LAZY=1       asynchronous work on pinned memory is done only when its stream is synchronised:
 *                         shows a synchronisation that is missing
 *   FAKECUDA_KERNELS=PATH library of kernels: run_NAME, and NAME_sizes with the bytes of its parameters; a launch of
 *                         what is not in it fails with 801
 *   FAKECUDA_UNIMPL=CODE  result of entry points that are not written here (default 801)
 *
 * NVIDIA's runtime library (libcudart, inside every real libnvinfer too) does not start on this, and must not be
 * made to: a real TensorRT is never run on a driver that only pretends.
 * Tests reach the counters through ctypes.CDLL("libcuda.so.1"): see fakelib.py and the end of this file.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

typedef int CUresult, CUdevice;
typedef unsigned long long CUdeviceptr;
typedef unsigned int uint;
enum { OK = 0, E_VALUE = 1, E_OOM = 2, E_NOTINIT = 3, E_NODEVICE = 100, E_DEVICE = 101,
       E_CONTEXT = 201, E_HANDLE = 400, E_NOTFOUND = 500, E_NOTREADY = 600,
       E_ILLEGAL = 700, E_REG_ALREADY = 712, E_REG_NOT = 713, E_UNSUPPORTED = 801 };

#define API __attribute__((visibility("default")))
#define DEVBIT (1ull << 52)          /* device addresses are never host addresses */

/* ---------------------------------------------------------------- state --- */
static pthread_mutex_t mtx = PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP;
static int lock_(void) { pthread_mutex_lock(&mtx); return 0; }
static void unlock_(int *x) { (void)x; pthread_mutex_unlock(&mtx); }

static int inited, lazy, cc = 80, ndev = 1, drvver = 13000, unimpl_code = E_UNSUPPORTED;
static size_t total_mem = 80ull << 30, live_dev_bytes, peak_dev_bytes;
static FILE *logf_;
static unsigned long long fake_clock, next_id;

struct site { const char *name; unsigned long calls; struct site *next; int linked; };
static struct site *sites;
struct fault { char name[64]; long nth, count, seen; int code; };
static struct fault faults[32]; static int nfaults;

static void parse_faults(const char *s) {
    nfaults = 0;
    while (s && *s && nfaults < 32) {
        struct fault f = { .nth = 1, .code = E_OOM, .count = 1 };
        if (sscanf(s, "%63[^:,]:%ld:%d:%ld", f.name, &f.nth, &f.code, &f.count) >= 1)
            faults[nfaults++] = f;
        s = strchr(s, ','); if (s) s++;
    }
}
__attribute__((constructor)) static void setup(void) {
    const char *e;
    if ((e = getenv("FAKECUDA_LOG")) && *e)
        logf_ = strcmp(e, "1") ? fopen(e, "a") : stderr;
    if (logf_) setvbuf(logf_, 0, _IOLBF, 0);
    if ((e = getenv("FAKECUDA_MEM"))) total_mem = strtoull(e, 0, 0);
    if ((e = getenv("FAKECUDA_CC"))) cc = atoi(e);
    if ((e = getenv("FAKECUDA_DEVICES"))) ndev = atoi(e);
    if ((e = getenv("FAKECUDA_VERSION"))) drvver = atoi(e);
    if ((e = getenv("FAKECUDA_LAZY"))) lazy = atoi(e);
    if ((e = getenv("FAKECUDA_UNIMPL"))) unimpl_code = atoi(e);
    parse_faults(getenv("FAKECUDA_FAIL"));
}
static void logmsg(const char *fmt, ...) {
    if (!logf_) return;
    va_list ap; va_start(ap, fmt);
    fprintf(logf_, "[fakecuda %d] ", (int)gettid()); vfprintf(logf_, fmt, ap); fputc('\n', logf_);
    va_end(ap);
}
static CUresult enter(struct site *s, int need_init) {
    if (!s->linked) { s->linked = 1; s->next = sites; sites = s; }
    s->calls++;
    logmsg("%s", s->name);
    for (int i = 0; i < nfaults; i++) {
        struct fault *f = &faults[i];
        if (strncmp(s->name, f->name, strlen(f->name))) continue;
        f->seen++;
        if (f->seen >= f->nth && f->seen < f->nth + f->count) {
            logmsg("  -> injected error %d", f->code); return f->code;
        }
    }
    return need_init && !inited ? E_NOTINIT : OK;
}
#define ENTER_(fn, ini) static struct site s_ = { #fn }; \
    __attribute__((cleanup(unlock_), unused)) int g_ = lock_(); \
    CUresult r_ = enter(&s_, ini); if (r_) return r_
#define ENTER0(fn) ENTER_(fn, 0)                     /* works before cuInit  */
#define ENTER(fn) ENTER_(fn, 1)                      /* needs cuInit         */
#define ENTERC(fn) ENTER_(fn, 1); if (!current()) return E_CONTEXT
#define REQ(c, e) do { if (!(c)) return (e); } while (0)

/* -------------------------------------------------------------- handles --- */
enum kind { K_CTX = 1, K_STREAM, K_EVENT, K_MODULE, K_FUNC, K_POOL, K_GRAPH, K_GEXEC, K_LAST };
struct op { struct op *next; int type; void *dst; const void *src; size_t n; int val, esz;
            struct obj *ev; void (*fn)(void *); void *arg; };
typedef struct obj {
    uint32_t magic; enum kind kind; struct obj *ctx; int dev; uint flags; long refs;
    int prio, capturing, dynshared; char *name;
    struct op *head, *tail;                               /* stream queue */
    int recorded, done; unsigned long long stamp; struct obj *ev_stream;   /* event */
    unsigned long long id; struct obj *all;
} *H;
static long live_obj[K_LAST]; static H all_objs;
static H new_obj(enum kind k, H ctx) {
    H o = calloc(1, sizeof *o); o->magic = 0xFA4Eu; o->kind = k; o->ctx = ctx; o->refs = 1;
    o->id = ++next_id; o->all = all_objs; all_objs = o; live_obj[k]++; return o;
}
/* Objects are never really freed, so that use after destruction is noticed. */
static void kill_obj(H o) { o->magic = 0xDEAD; live_obj[o->kind]--; }
static int is(H o, enum kind k) { return o && !((uintptr_t)o & 7) && o->magic == 0xFA4Eu && o->kind == k; }

#define MAXCTX 64
static __thread H ctxstack[MAXCTX]; static __thread int ctxn;
static H primary[16]; static long primary_refs[16]; static uint primary_flags[16];
static H current(void) { return ctxn ? ctxstack[ctxn - 1] : 0; }

/* --------------------------------------------------------------- memory --- */
enum akind { A_DEV, A_HOST, A_REG, A_MANAGED, A_LAST };
struct alloc { uintptr_t addr; size_t size; char *host; enum akind kind; H ctx; uint flags; unsigned long long id; };
static struct alloc *tab; static size_t ntab, captab;
static long live_alloc[A_LAST], total_alloc[A_LAST];

static size_t slot(uintptr_t a) {                 /* first entry with addr > a */
    size_t lo = 0, hi = ntab;
    while (lo < hi) { size_t m = (lo + hi) / 2; if (tab[m].addr > a) hi = m; else lo = m + 1; }
    return lo;
}
static struct alloc *find(uintptr_t a) {
    size_t i = slot(a);
    return i && a - tab[i - 1].addr < tab[i - 1].size ? &tab[i - 1] : 0;
}
static void add(uintptr_t addr, size_t size, char *host, enum akind k, uint flags) {
    if (ntab == captab) tab = realloc(tab, (captab = captab ? captab * 2 : 64) * sizeof *tab);
    size_t i = slot(addr);
    memmove(tab + i + 1, tab + i, (ntab - i) * sizeof *tab); ntab++;
    tab[i] = (struct alloc){ addr, size, host, k, current(), flags, ++next_id };
    live_alloc[k]++; total_alloc[k]++;
    if (k == A_DEV || k == A_MANAGED) {
        live_dev_bytes += size; if (live_dev_bytes > peak_dev_bytes) peak_dev_bytes = live_dev_bytes;
    }
}
static size_t pages(size_t n) { return ((n + 4095) & ~(size_t)4095) + 4096; }  /* + guard page */
static void *map_(size_t n) {
    char *p = mmap(0, pages(n), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) return 0;
    mprotect(p + pages(n) - 4096, 4096, PROT_NONE);
    return p;
}
static void drop(struct alloc *a) {
    live_alloc[a->kind]--;
    if (a->kind == A_DEV || a->kind == A_MANAGED) live_dev_bytes -= a->size;
    if (a->kind != A_REG) munmap(a->host, pages(a->size));
    size_t i = a - tab; memmove(tab + i, tab + i + 1, (ntab - i - 1) * sizeof *tab); ntab--;
}
static CUresult dev_alloc(CUdeviceptr *out, size_t n, enum akind k) {
    REQ(out && n, E_VALUE);
    if (live_dev_bytes + n > total_mem) return E_OOM;
    char *h = map_(n); if (!h) return E_OOM;
    *out = (uintptr_t)h | (k == A_DEV ? DEVBIT : 0);
    add(*out, n, h, k, 0);
    return OK;
}
/* Host view of [p, p+n): NULL unless it lies inside one live allocation. */
static void *view(CUdeviceptr p, size_t n) {
    struct alloc *a = find(p);
    if (!a || p - a->addr + n > a->size) { logmsg("  -> BAD DEVICE RANGE %#llx+%zu", p, n); return 0; }
    return a->host + (p - a->addr);
}
static int pinned(const void *p) {
    struct alloc *a = find((uintptr_t)p); return a && a->kind != A_DEV;
}
static void *any(CUdeviceptr p, size_t n) {       /* unified address: device or any host pointer */
    return (p & DEVBIT) ? view(p, n) : (void *)(uintptr_t)p;
}

/* --------------------------------------------------------- stream queues --- */
enum { OP_COPY = 1, OP_SET, OP_EVENT, OP_WAIT, OP_CALL };
static void flush(H s);
static void run_op(struct op *o) {
    fake_clock++;
    switch (o->type) {
    case OP_COPY: memmove(o->dst, o->src, o->n); break;
    case OP_SET:
        if (o->esz == 1) memset(o->dst, o->val, o->n);
        else if (o->esz == 2) for (size_t i = 0; i < o->n; i++) ((uint16_t *)o->dst)[i] = o->val;
        else for (size_t i = 0; i < o->n; i++) ((uint32_t *)o->dst)[i] = o->val;
        break;
    case OP_EVENT: o->ev->done = 1; o->ev->stamp = fake_clock; break;
    case OP_WAIT: if (is(o->ev, K_EVENT) && !o->ev->done && is(o->ev->ev_stream, K_STREAM)) flush(o->ev->ev_stream); break;
    case OP_CALL: o->fn(o->arg); break;
    }
}
static void flush(H s) {
    while (s->head) {
        struct op *o = s->head; s->head = o->next; if (!s->head) s->tail = 0;
        run_op(o); free(o);
    }
}
static void flush_all(int blocking_only) {
    for (H o = all_objs; o; o = o->all)
        if (is(o, K_STREAM) && o->head && !(blocking_only && (o->flags & 1))) flush(o);
}
static int special(H s) { return (uintptr_t)s <= 2; }           /* 0, legacy, per-thread */
static CUresult submit(H s, struct op o, int defer) {
    if (!special(s) && !is(s, K_STREAM)) return E_HANDLE;
    if (special(s)) { flush_all(1); run_op(&o); return OK; }
    if (!lazy || !defer) { flush(s); run_op(&o); return OK; }
    struct op *p = malloc(sizeof *p); *p = o; p->next = 0;
    if (s->tail) s->tail->next = p; else s->head = p;
    s->tail = p;
    return OK;
}
static CUresult copy(void *d, const void *s, size_t n, H st, int async) {
    if (!n) return OK;
    REQ(d && s, E_VALUE);
    struct op o = { .type = OP_COPY, .dst = d, .src = s, .n = n };
    return submit(async ? st : 0, o, async);
}

/* ------------------------------------------------------ init and devices --- */
API CUresult cuInit(uint flags) { ENTER0(cuInit); REQ(!flags, E_VALUE); REQ(ndev, E_NODEVICE); inited = 1; return OK; }
API CUresult cuDriverGetVersion(int *v) { ENTER0(cuDriverGetVersion); REQ(v, E_VALUE); *v = drvver; return OK; }
API CUresult cuDeviceGetCount(int *n) { ENTER(cuDeviceGetCount); *n = ndev; return OK; }
API CUresult cuDeviceGet(CUdevice *d, int i) { ENTER(cuDeviceGet); REQ(i >= 0 && i < ndev, E_DEVICE); *d = i; return OK; }
#define DEVOK(d) REQ((d) >= 0 && (d) < ndev, E_DEVICE)
API CUresult cuDeviceGetName(char *s, int n, CUdevice d) {
    ENTER(cuDeviceGetName); DEVOK(d);
    if (d) snprintf(s, n, "FakeCUDA test double %d (sm_%d)", d, cc);
    else snprintf(s, n, "FakeCUDA test double (sm_%d)", cc);
    return OK; }
API CUresult cuDeviceTotalMem_v2(size_t *n, CUdevice d) { ENTER(cuDeviceTotalMem_v2); DEVOK(d); *n = total_mem; return OK; }
static CUresult uuid_(unsigned char *u, int d) { memcpy(u, "FAKECUDA-DEVICE", 15); u[15] = d; return OK; }
API CUresult cuDeviceGetUuid(unsigned char *u, CUdevice d) { ENTER(cuDeviceGetUuid); DEVOK(d); return uuid_(u, d); }
API CUresult cuDeviceGetUuid_v2(unsigned char *u, CUdevice d) { ENTER(cuDeviceGetUuid_v2); DEVOK(d); return uuid_(u, d); }
API CUresult cuDeviceGetLuid(char *l, uint *m, CUdevice d) { ENTER(cuDeviceGetLuid); memset(l, 0, 8); *m = 0; return OK; }
API CUresult cuDeviceComputeCapability(int *a, int *b, CUdevice d) {
    ENTER(cuDeviceComputeCapability); DEVOK(d); *a = cc / 10; *b = cc % 10; return OK; }
API CUresult cuDeviceGetPCIBusId(char *s, int n, CUdevice d) {
    ENTER(cuDeviceGetPCIBusId); DEVOK(d); snprintf(s, n, "0000:%02x:00.0", 1 + d); return OK; }
API CUresult cuDeviceGetByPCIBusId(CUdevice *d, const char *s) {
    ENTER(cuDeviceGetByPCIBusId); uint b; REQ(sscanf(s, "%*x:%x", &b) == 1 && b >= 1 && (int)b <= ndev, E_VALUE); *d = b - 1; return OK; }
/* attribute number -> value; roughly a data-centre GPU.  Anything else is 0. */
static const struct { short a; int v; } attrs[] = {
    {1,1024},{2,1024},{3,1024},{4,64},{5,2147483647},{6,65535},{7,65535},{8,49152},{9,65536},{10,32},
    {11,2147483647},{12,65536},{13,1410000},{14,512},{15,1},{16,108},{19,1},{21,131072},{22,131072},{23,65536},
    {24,16384},{25,16384},{26,16384},{27,32768},{28,32768},{29,2048},{30,512},{31,1},{32,1},{36,1215000},
    {37,5120},{38,41943040},{39,2048},{40,3},{41,1},{51,32},{69,268435456},{70,131072},{71,65000},{72,2097120},
    {78,1},{79,1},{80,1},{81,167936},{82,65536},{83,1},{87,2},{89,1},{90,1},{91,1},{92,1},{93,1},{94,1},
    {95,1},{96,1},{98,1},{99,1},{102,1},{103,1},{106,32},{107,1},{108,31457280},{109,134213632},
    {110,1},{111,1024},{112,1},{113,1},{114,1},{115,1},{116,1},{119,1},{122,1},{123,1},{125,1},{126,1} };
API CUresult cuDeviceGetAttribute(int *v, int a, CUdevice d) {
    ENTER(cuDeviceGetAttribute); DEVOK(d); REQ(v, E_VALUE);
    *v = 0;
    if (a == 33) *v = 1 + d;
    else if (a == 75) *v = cc / 10;
    else if (a == 76) *v = cc % 10;
    else if (a == 97) *v = cc < 80 ? 65536 : cc == 86 || cc == 89 ? 101376 : cc < 90 ? 166912 : 232448;   /* shared memory */
    else if (a == 120 || a == 127) *v = cc >= 90;
    else for (size_t i = 0; i < sizeof attrs / sizeof *attrs; i++) if (attrs[i].a == a) *v = attrs[i].v;
    logmsg("  attribute %d = %d", a, *v);
    return OK;
}
API CUresult cuDeviceCanAccessPeer(int *r, CUdevice a, CUdevice b) { ENTER(cuDeviceCanAccessPeer); *r = a != b; return OK; }
API CUresult cuDeviceGetDefaultMemPool(H *p, CUdevice d) {
    ENTER(cuDeviceGetDefaultMemPool); DEVOK(d); static H pool[16];
    if (!pool[d]) { pool[d] = new_obj(K_POOL, 0); live_obj[K_POOL]--; } *p = pool[d]; return OK; }
API CUresult cuDeviceGetMemPool(H *p, CUdevice d) { return cuDeviceGetDefaultMemPool(p, d); }

/* -------------------------------------------------------------- contexts --- */
API CUresult cuDevicePrimaryCtxRetain(H *c, CUdevice d) {
    ENTER(cuDevicePrimaryCtxRetain); DEVOK(d);
    if (!primary[d]) { primary[d] = new_obj(K_CTX, 0); primary[d]->dev = d; primary[d]->flags = primary_flags[d]; }
    primary_refs[d]++; *c = primary[d]; return OK;
}
static void destroy_ctx(H c) {                   /* like the driver: frees what belongs to it */
    flush_all(0);
    for (size_t i = ntab; i-- > 0;) if (tab[i].ctx == c) { logmsg("  leaked by context: %#lx+%zu", tab[i].addr, tab[i].size); drop(&tab[i]); }
    for (H o = all_objs; o; o = o->all) if (o->magic == 0xFA4Eu && o->ctx == c && o->kind != K_CTX) kill_obj(o);
    kill_obj(c);
}
static CUresult release_(CUdevice d) {
    DEVOK(d); REQ(primary_refs[d] > 0, E_CONTEXT);
    if (--primary_refs[d] == 0) { destroy_ctx(primary[d]); primary[d] = 0; }
    return OK;
}
API CUresult cuDevicePrimaryCtxRelease_v2(CUdevice d) { ENTER(cuDevicePrimaryCtxRelease_v2); return release_(d); }
API CUresult cuDevicePrimaryCtxRelease(CUdevice d) { ENTER(cuDevicePrimaryCtxRelease); return release_(d); }
static CUresult reset_(CUdevice d) { DEVOK(d); if (primary[d]) { destroy_ctx(primary[d]); primary[d] = 0; primary_refs[d] = 0; } return OK; }
API CUresult cuDevicePrimaryCtxReset_v2(CUdevice d) { ENTER(cuDevicePrimaryCtxReset_v2); return reset_(d); }
API CUresult cuDevicePrimaryCtxReset(CUdevice d) { ENTER(cuDevicePrimaryCtxReset); return reset_(d); }
static CUresult pflags_(CUdevice d, uint f) { DEVOK(d); primary_flags[d] = f; if (primary[d]) primary[d]->flags = f; return OK; }
API CUresult cuDevicePrimaryCtxSetFlags_v2(CUdevice d, uint f) { ENTER(cuDevicePrimaryCtxSetFlags_v2); return pflags_(d, f); }
API CUresult cuDevicePrimaryCtxSetFlags(CUdevice d, uint f) { ENTER(cuDevicePrimaryCtxSetFlags); return pflags_(d, f); }
API CUresult cuDevicePrimaryCtxGetState(CUdevice d, uint *f, int *active) {
    ENTER(cuDevicePrimaryCtxGetState); DEVOK(d); *f = primary_flags[d]; *active = primary[d] != 0; return OK; }
static CUresult create_ctx(H *c, uint flags, CUdevice d) {
    DEVOK(d); REQ(ctxn < MAXCTX, E_VALUE);
    *c = new_obj(K_CTX, 0); (*c)->dev = d; (*c)->flags = flags; ctxstack[ctxn++] = *c; return OK; }
API CUresult cuCtxCreate_v2(H *c, uint f, CUdevice d) { ENTER(cuCtxCreate_v2); return create_ctx(c, f, d); }
API CUresult cuCtxCreate_v3(H *c, void *p, int n, uint f, CUdevice d) { ENTER(cuCtxCreate_v3); return create_ctx(c, f, d); }
API CUresult cuCtxCreate_v4(H *c, void *p, uint f, CUdevice d) { ENTER(cuCtxCreate_v4); return create_ctx(c, f, d); }
API CUresult cuCtxDestroy_v2(H c) {
    ENTER(cuCtxDestroy_v2); REQ(is(c, K_CTX) && primary[c->dev] != c, E_CONTEXT);      /* never a primary context */
    if (current() == c) ctxn--; destroy_ctx(c); return OK; }
API CUresult cuCtxAttach(H *c, uint f) { ENTERC(cuCtxAttach); *c = current(); (*c)->refs++; return OK; }
API CUresult cuCtxDetach(H c) {
    ENTER(cuCtxDetach); REQ(is(c, K_CTX) && primary[c->dev] != c, E_CONTEXT);
    if (--c->refs == 0) { if (current() == c) ctxn--; destroy_ctx(c); } return OK; }
API CUresult cuCtxPushCurrent_v2(H c) { ENTER(cuCtxPushCurrent_v2); REQ(is(c, K_CTX) && ctxn < MAXCTX, E_CONTEXT); ctxstack[ctxn++] = c; return OK; }
API CUresult cuCtxPopCurrent_v2(H *c) { ENTERC(cuCtxPopCurrent_v2); H t = ctxstack[--ctxn]; if (c) *c = t; return OK; }
API CUresult cuCtxSetCurrent(H c) {
    ENTER(cuCtxSetCurrent);
    if (!c) { if (ctxn) ctxn--; return OK; }
    REQ(is(c, K_CTX), E_CONTEXT); if (ctxn) ctxstack[ctxn - 1] = c; else ctxstack[ctxn++] = c; return OK; }
API CUresult cuCtxGetCurrent(H *c) { ENTER(cuCtxGetCurrent); *c = current(); return OK; }
API CUresult cuCtxGetDevice(CUdevice *d) { ENTERC(cuCtxGetDevice); *d = current()->dev; return OK; }
API CUresult cuCtxGetDevice_v2(CUdevice *d, H c) { ENTERC(cuCtxGetDevice_v2); if (!c) c = current(); REQ(is(c, K_CTX), E_CONTEXT); *d = c->dev; return OK; }
API CUresult cuCtxSynchronize(void) { ENTERC(cuCtxSynchronize); flush_all(0); return OK; }
API CUresult cuCtxSynchronize_v2(H c) { ENTER(cuCtxSynchronize_v2); flush_all(0); return OK; }
API CUresult cuCtxGetFlags(uint *f) { ENTERC(cuCtxGetFlags); *f = current()->flags; return OK; }
API CUresult cuCtxSetFlags(uint f) { ENTERC(cuCtxSetFlags); current()->flags = f; return OK; }
API CUresult cuCtxGetId(H c, unsigned long long *id) { ENTER(cuCtxGetId); if (!c) c = current(); REQ(is(c, K_CTX), E_CONTEXT); *id = c->id; return OK; }
API CUresult cuCtxGetApiVersion(H c, uint *v) { ENTER(cuCtxGetApiVersion); *v = 3020; return OK; }
static size_t limits[16] = { 1024, 1048576, 8388608, 2, 2048 };
API CUresult cuCtxGetLimit(size_t *v, int l) { ENTERC(cuCtxGetLimit); REQ(l >= 0 && l < 16, E_UNSUPPORTED); *v = limits[l]; return OK; }
API CUresult cuCtxSetLimit(int l, size_t v) { ENTERC(cuCtxSetLimit); REQ(l >= 0 && l < 16, E_UNSUPPORTED); limits[l] = v; return OK; }
API CUresult cuCtxGetCacheConfig(int *v) { ENTERC(cuCtxGetCacheConfig); *v = 0; return OK; }
API CUresult cuCtxSetCacheConfig(int v) { ENTERC(cuCtxSetCacheConfig); return OK; }
API CUresult cuCtxGetSharedMemConfig(int *v) { ENTERC(cuCtxGetSharedMemConfig); *v = 1; return OK; }
API CUresult cuCtxSetSharedMemConfig(int v) { ENTERC(cuCtxSetSharedMemConfig); return OK; }
API CUresult cuCtxGetStreamPriorityRange(int *a, int *b) { ENTERC(cuCtxGetStreamPriorityRange); if (a) *a = 0; if (b) *b = -5; return OK; }
API CUresult cuCtxEnablePeerAccess(H c, uint f) { ENTERC(cuCtxEnablePeerAccess); return OK; }
API CUresult cuCtxDisablePeerAccess(H c) { ENTERC(cuCtxDisablePeerAccess); return OK; }
API CUresult cuCtxResetPersistingL2Cache(void) { ENTERC(cuCtxResetPersistingL2Cache); return OK; }

/* ---------------------------------------------------------------- memory --- */
API CUresult cuMemGetInfo_v2(size_t *f, size_t *t) { ENTERC(cuMemGetInfo_v2); *f = total_mem - live_dev_bytes; *t = total_mem; return OK; }
API CUresult cuMemAlloc_v2(CUdeviceptr *p, size_t n) {
    ENTERC(cuMemAlloc_v2); CUresult r = dev_alloc(p, n, A_DEV); logmsg("  alloc %zu -> %#llx (%d)", n, r ? 0ull : *p, r); return r; }
API CUresult cuMemAllocPitch_v2(CUdeviceptr *p, size_t *pitch, size_t w, size_t h, uint e) {
    ENTERC(cuMemAllocPitch_v2); *pitch = (w + 511) & ~(size_t)511; return dev_alloc(p, *pitch * h, A_DEV); }
API CUresult cuMemAllocManaged(CUdeviceptr *p, size_t n, uint f) { ENTERC(cuMemAllocManaged); return dev_alloc(p, n, A_MANAGED); }
API CUresult cuMemFree_v2(CUdeviceptr p) {
    ENTERC(cuMemFree_v2); if (!p) return OK;
    struct alloc *a = find(p); logmsg("  free %#llx", p);
    REQ(a && a->addr == p && (a->kind == A_DEV || a->kind == A_MANAGED), E_VALUE);
    flush_all(0); drop(find(p)); return OK; }
API CUresult cuMemGetAddressRange_v2(CUdeviceptr *b, size_t *n, CUdeviceptr p) {
    ENTERC(cuMemGetAddressRange_v2); struct alloc *a = find(p); REQ(a, E_NOTFOUND);
    if (b) *b = a->addr; if (n) *n = a->size; return OK; }
static CUresult host_alloc(void **p, size_t n, uint f) {
    REQ(p && n, E_VALUE); *p = map_(n); REQ(*p, E_OOM); add((uintptr_t)*p, n, *p, A_HOST, f); return OK; }
API CUresult cuMemHostAlloc(void **p, size_t n, uint f) { ENTERC(cuMemHostAlloc); return host_alloc(p, n, f); }
API CUresult cuMemAllocHost_v2(void **p, size_t n) { ENTERC(cuMemAllocHost_v2); return host_alloc(p, n, 0); }
API CUresult cuMemFreeHost(void *p) {
    ENTERC(cuMemFreeHost); struct alloc *a = find((uintptr_t)p); REQ(a && a->host == p && a->kind == A_HOST, E_VALUE);
    flush_all(0); drop(find((uintptr_t)p)); return OK; }
API CUresult cuMemHostRegister_v2(void *p, size_t n, uint f) {
    ENTERC(cuMemHostRegister_v2); REQ(p && n, E_VALUE);
    size_t i = slot((uintptr_t)p);
    REQ(!find((uintptr_t)p) && !(i < ntab && tab[i].addr < (uintptr_t)p + n), E_REG_ALREADY);
    add((uintptr_t)p, n, p, A_REG, f); return OK; }
API CUresult cuMemHostUnregister(void *p) {
    ENTERC(cuMemHostUnregister); struct alloc *a = find((uintptr_t)p); REQ(a && a->host == p && a->kind == A_REG, E_REG_NOT);
    flush_all(0); drop(find((uintptr_t)p)); return OK; }
API CUresult cuMemHostGetDevicePointer_v2(CUdeviceptr *d, void *p, uint f) {
    ENTERC(cuMemHostGetDevicePointer_v2); REQ(find((uintptr_t)p), E_VALUE); *d = (uintptr_t)p; return OK; }
API CUresult cuMemHostGetFlags(uint *f, void *p) {
    ENTERC(cuMemHostGetFlags); struct alloc *a = find((uintptr_t)p); REQ(a, E_VALUE); *f = a->flags; return OK; }

API CUresult cuMemcpyHtoD_v2(CUdeviceptr d, const void *s, size_t n) { ENTERC(cuMemcpyHtoD_v2); return copy(view(d, n), s, n, 0, 0); }
API CUresult cuMemcpyDtoH_v2(void *d, CUdeviceptr s, size_t n) { ENTERC(cuMemcpyDtoH_v2); return copy(d, view(s, n), n, 0, 0); }
API CUresult cuMemcpyDtoD_v2(CUdeviceptr d, CUdeviceptr s, size_t n) { ENTERC(cuMemcpyDtoD_v2); return copy(view(d, n), view(s, n), n, 0, 0); }
API CUresult cuMemcpy(CUdeviceptr d, CUdeviceptr s, size_t n) { ENTERC(cuMemcpy); return copy(any(d, n), any(s, n), n, 0, 0); }
static CUresult acopy(void *d, const void *s, size_t n, H st, int defer) {
    if (!n) return OK; REQ(d && s, E_VALUE);
    struct op o = { .type = OP_COPY, .dst = d, .src = s, .n = n }; return submit(st, o, defer); }
API CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr d, const void *s, size_t n, H st) { ENTERC(cuMemcpyHtoDAsync_v2); return acopy(view(d, n), s, n, st, pinned(s)); }
API CUresult cuMemcpyDtoHAsync_v2(void *d, CUdeviceptr s, size_t n, H st) { ENTERC(cuMemcpyDtoHAsync_v2); return acopy(d, view(s, n), n, st, pinned(d)); }
API CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr d, CUdeviceptr s, size_t n, H st) { ENTERC(cuMemcpyDtoDAsync_v2); return acopy(view(d, n), view(s, n), n, st, 1); }
API CUresult cuMemcpyAsync(CUdeviceptr d, CUdeviceptr s, size_t n, H st) {
    ENTERC(cuMemcpyAsync);
    return acopy(any(d, n), any(s, n), n, st, ((d & DEVBIT) || pinned((void *)(uintptr_t)d)) && ((s & DEVBIT) || pinned((void *)(uintptr_t)s))); }
API CUresult cuMemcpyPeer(CUdeviceptr d, H dc, CUdeviceptr s, H sc, size_t n) { ENTERC(cuMemcpyPeer); return copy(view(d, n), view(s, n), n, 0, 0); }
API CUresult cuMemcpyPeerAsync(CUdeviceptr d, H dc, CUdeviceptr s, H sc, size_t n, H st) { ENTERC(cuMemcpyPeerAsync); return acopy(view(d, n), view(s, n), n, st, 1); }

/* CUDA_MEMCPY2D_v2 / CUDA_MEMCPY3D_v2, linear memory only */
struct side2 { size_t x, y; int type; void *host; CUdeviceptr dev; void *array; size_t pitch; };
struct m2 { struct side2 s, d; size_t w, h; };
static char *base2(struct side2 *q, size_t w, size_t h) {
    size_t off = q->y * q->pitch + q->x, span = (h - 1) * q->pitch + w;
    if (q->type == 1) return (char *)q->host + off;
    if (q->type == 2) return view(q->dev + off, span);
    if (q->type == 4) return any(q->dev + off, span);
    return 0;
}
static CUresult copy2(struct m2 *m, H st) {
    if (!m->w || !m->h) return OK;
    char *s = base2(&m->s, m->w, m->h), *d = base2(&m->d, m->w, m->h);
    REQ(s && d, m->s.type == 3 || m->d.type == 3 ? E_UNSUPPORTED : E_VALUE);
    for (size_t i = 0; i < m->h; i++) {
        CUresult r = acopy(d + i * m->d.pitch, s + i * m->s.pitch, m->w, st,
                           (m->s.type != 1 || pinned(s)) && (m->d.type != 1 || pinned(d)));
        if (r) return r;
    }
    return OK;
}
API CUresult cuMemcpy2D_v2(struct m2 *m) { ENTERC(cuMemcpy2D_v2); return copy2(m, 0); }
API CUresult cuMemcpy2DUnaligned_v2(struct m2 *m) { ENTERC(cuMemcpy2DUnaligned_v2); return copy2(m, 0); }
API CUresult cuMemcpy2DAsync_v2(struct m2 *m, H st) { ENTERC(cuMemcpy2DAsync_v2); return copy2(m, st); }
struct side3 { size_t x, y, z, lod; int type; void *host; CUdeviceptr dev; void *array; void *reserved; size_t pitch, height; };
struct m3 { struct side3 s, d; size_t w, h, depth; };
static CUresult copy3(struct m3 *m, H st) {
    for (size_t k = 0; k < m->depth; k++) {
        struct m2 t = { { m->s.x, m->s.y + (m->s.z + k) * m->s.height, m->s.type, m->s.host, m->s.dev, m->s.array, m->s.pitch },
                        { m->d.x, m->d.y + (m->d.z + k) * m->d.height, m->d.type, m->d.host, m->d.dev, m->d.array, m->d.pitch }, m->w, m->h };
        CUresult r = copy2(&t, st); if (r) return r;
    }
    return OK;
}
API CUresult cuMemcpy3D_v2(struct m3 *m) { ENTERC(cuMemcpy3D_v2); return copy3(m, 0); }
API CUresult cuMemcpy3DAsync_v2(struct m3 *m, H st) { ENTERC(cuMemcpy3DAsync_v2); return copy3(m, st); }

static CUresult set_(CUdeviceptr p, int v, size_t n, int esz, H st) {
    if (!n) return OK; void *d = view(p, n * esz); REQ(d, E_VALUE);
    struct op o = { .type = OP_SET, .dst = d, .val = v, .n = n, .esz = esz }; return submit(st, o, 1); }
static CUresult set2(CUdeviceptr p, size_t pitch, int v, size_t w, size_t h, int esz, H st) {
    for (size_t i = 0; i < h; i++) { CUresult r = set_(p + i * pitch, v, w, esz, st); if (r) return r; } return OK; }
#define MEMSET(B, T, E) \
  API CUresult cuMemsetD##B##_v2(CUdeviceptr p, T v, size_t n) { ENTERC(cuMemsetD##B##_v2); return set_(p, v, n, E, 0); } \
  API CUresult cuMemsetD##B##Async(CUdeviceptr p, T v, size_t n, H s) { ENTERC(cuMemsetD##B##Async); return set_(p, v, n, E, s); } \
  API CUresult cuMemsetD2D##B##_v2(CUdeviceptr p, size_t q, T v, size_t w, size_t h) { ENTERC(cuMemsetD2D##B##_v2); return set2(p, q, v, w, h, E, 0); } \
  API CUresult cuMemsetD2D##B##Async(CUdeviceptr p, size_t q, T v, size_t w, size_t h, H s) { ENTERC(cuMemsetD2D##B##Async); return set2(p, q, v, w, h, E, s); }
MEMSET(8, unsigned char, 1) MEMSET(16, unsigned short, 2) MEMSET(32, uint, 4)

static CUresult ptr_attr(void *out, int a, CUdeviceptr p) {
    struct alloc *m = find(p);
    if (!m) return E_VALUE;
    int host = m->kind == A_HOST || m->kind == A_REG;
    switch (a) {
    case 1: *(H *)out = m->ctx; return OK;
    case 2: *(uint *)out = host ? 1 : 2; return OK;
    case 3: *(CUdeviceptr *)out = p; return OK;
    case 4: if (m->kind == A_DEV) return E_VALUE; *(void **)out = m->host + (p - m->addr); return OK;
    case 6: case 10: case 15: *(uint *)out = 0; return OK;
    case 7: *(unsigned long long *)out = m->id; return OK;
    case 8: *(uint *)out = m->kind == A_MANAGED; return OK;
    case 9: *(int *)out = m->ctx ? m->ctx->dev : 0; return OK;
    case 11: *(CUdeviceptr *)out = m->addr; return OK;
    case 12: *(size_t *)out = m->size; return OK;
    case 13: *(uint *)out = 1; return OK;
    case 14: case 16: case 17: *(unsigned long long *)out = 0; return OK;
    default: return E_VALUE;
    }
}
API CUresult cuPointerGetAttribute(void *out, int a, CUdeviceptr p) { ENTERC(cuPointerGetAttribute); return ptr_attr(out, a, p); }
API CUresult cuPointerGetAttributes(uint n, int *a, void **out, CUdeviceptr p) {
    ENTERC(cuPointerGetAttributes);           /* unlike the single form: unknown pointers give zeros */
    for (uint i = 0; i < n; i++)
        if (ptr_attr(out[i], a[i], p)) {
            if (a[i] == 9) *(int *)out[i] = -2;
            else memset(out[i], 0, a[i] == 2 || a[i] == 8 || a[i] == 6 || a[i] == 13 || a[i] == 10 || a[i] == 15 ? 4 : 8);
        }
    return OK; }

/* pools: stream-ordered allocation, done at once */
static H cur_pool(void) { H p; cuDeviceGetDefaultMemPool(&p, 0); return p; }
API CUresult cuMemPoolCreate(H *p, const void *props) { ENTER(cuMemPoolCreate); *p = new_obj(K_POOL, 0); return OK; }
API CUresult cuMemPoolDestroy(H p) { ENTER(cuMemPoolDestroy); REQ(is(p, K_POOL) && p != cur_pool(), E_VALUE); kill_obj(p); return OK; }
API CUresult cuMemPoolTrimTo(H p, size_t n) { ENTER(cuMemPoolTrimTo); return OK; }
API CUresult cuMemPoolSetAttribute(H p, int a, void *v) { ENTER(cuMemPoolSetAttribute); REQ(is(p, K_POOL), E_VALUE); if (a == 4) p->id = *(unsigned long long *)v; return OK; }
API CUresult cuMemPoolGetAttribute(H p, int a, void *v) {
    ENTER(cuMemPoolGetAttribute); REQ(is(p, K_POOL), E_VALUE);
    if (a <= 3) *(int *)v = 1; else if (a == 4) *(unsigned long long *)v = p->id;
    else *(unsigned long long *)v = a == 6 || a == 8 ? peak_dev_bytes : live_dev_bytes;
    return OK; }
API CUresult cuMemPoolSetAccess(H p, const void *d, size_t n) { ENTER(cuMemPoolSetAccess); return OK; }
API CUresult cuMemPoolGetAccess(int *f, H p, void *loc) { ENTER(cuMemPoolGetAccess); *f = 3; return OK; }
API CUresult cuMemAllocAsync(CUdeviceptr *p, size_t n, H s) { ENTERC(cuMemAllocAsync); REQ(special(s) || is(s, K_STREAM), E_HANDLE); return dev_alloc(p, n, A_DEV); }
API CUresult cuMemAllocFromPoolAsync(CUdeviceptr *p, size_t n, H pool, H s) {
    ENTERC(cuMemAllocFromPoolAsync); REQ(special(s) || is(s, K_STREAM), E_HANDLE); REQ(is(pool, K_POOL), E_VALUE); return dev_alloc(p, n, A_DEV); }
API CUresult cuMemFreeAsync(CUdeviceptr p, H s) {
    ENTERC(cuMemFreeAsync); REQ(special(s) || is(s, K_STREAM), E_HANDLE);
    struct alloc *a = find(p); REQ(a && a->addr == p && a->kind == A_DEV, E_VALUE); flush_all(0); drop(find(p)); return OK; }

/* ---------------------------------------------------- streams and events --- */
static CUresult new_stream(H *s, uint f, int prio) { REQ(s, E_VALUE); *s = new_obj(K_STREAM, current()); (*s)->flags = f; (*s)->prio = prio; return OK; }
API CUresult cuStreamCreate(H *s, uint f) { ENTERC(cuStreamCreate); return new_stream(s, f, 0); }
API CUresult cuStreamCreateWithPriority(H *s, uint f, int p) { ENTERC(cuStreamCreateWithPriority); return new_stream(s, f, p); }
#define STREAM(s) REQ(special(s) || is(s, K_STREAM), E_HANDLE)
API CUresult cuStreamDestroy_v2(H s) { ENTERC(cuStreamDestroy_v2); REQ(is(s, K_STREAM), E_HANDLE); flush(s); kill_obj(s); return OK; }
static CUresult launch_error;   /* of a kernel that was launched before; every launch and wait repeats it, as on a GPU */
API CUresult cuStreamSynchronize(H s) { ENTERC(cuStreamSynchronize); STREAM(s); if (special(s)) flush_all(1); else flush(s); return launch_error; }
API CUresult cuStreamQuery(H s) { ENTERC(cuStreamQuery); STREAM(s); return !special(s) && s->head ? E_NOTREADY : OK; }
API CUresult cuStreamGetFlags(H s, uint *f) { ENTERC(cuStreamGetFlags); STREAM(s); *f = special(s) ? 0 : s->flags; return OK; }
API CUresult cuStreamGetPriority(H s, int *p) { ENTERC(cuStreamGetPriority); STREAM(s); *p = special(s) ? 0 : s->prio; return OK; }
API CUresult cuStreamGetId(H s, unsigned long long *i) { ENTERC(cuStreamGetId); STREAM(s); *i = special(s) ? (uintptr_t)s : s->id; return OK; }
API CUresult cuStreamGetCtx(H s, H *c) { ENTERC(cuStreamGetCtx); STREAM(s); *c = special(s) ? current() : s->ctx; return OK; }
API CUresult cuStreamGetCtx_v2(H s, H *c, H *g) { ENTERC(cuStreamGetCtx_v2); STREAM(s); *c = special(s) ? current() : s->ctx; if (g) *g = 0; return OK; }
API CUresult cuStreamGetDevice(H s, CUdevice *d) { ENTERC(cuStreamGetDevice); STREAM(s); *d = (special(s) ? current() : s->ctx)->dev; return OK; }
API CUresult cuStreamWaitEvent(H s, H e, uint f) {
    ENTERC(cuStreamWaitEvent); REQ(is(e, K_EVENT), E_HANDLE); struct op o = { .type = OP_WAIT, .ev = e }; return submit(s, o, 1); }
API CUresult cuStreamAddCallback(H s, void (*fn)(H, CUresult, void *), void *arg, uint f) {
    ENTERC(cuStreamAddCallback); STREAM(s); if (special(s)) flush_all(1); else flush(s); fn(s, OK, arg); return OK; }
API CUresult cuLaunchHostFunc(H s, void (*fn)(void *), void *arg) { ENTERC(cuLaunchHostFunc); struct op o = { .type = OP_CALL, .fn = fn, .arg = arg }; return submit(s, o, 1); }
API CUresult cuStreamAttachMemAsync(H s, CUdeviceptr p, size_t n, uint f) { ENTERC(cuStreamAttachMemAsync); return OK; }
API CUresult cuStreamSetAttribute(H s, int a, const void *v) { ENTERC(cuStreamSetAttribute); return OK; }
API CUresult cuStreamGetAttribute(H s, int a, void *v) { ENTERC(cuStreamGetAttribute); memset(v, 0, 64); return OK; }
API CUresult cuStreamIsCapturing(H s, int *st) { ENTERC(cuStreamIsCapturing); STREAM(s); *st = !special(s) && s->capturing; return OK; }
API CUresult cuStreamGetCaptureInfo_v2(H s, int *st, unsigned long long *id, H *g, void **dep, size_t *nd) {
    ENTERC(cuStreamGetCaptureInfo_v2); STREAM(s); *st = !special(s) && s->capturing; if (id) *id = special(s) ? 0 : s->id; if (g) *g = 0; if (dep) *dep = 0; if (nd) *nd = 0; return OK; }
API CUresult cuStreamGetCaptureInfo_v3(H s, int *st, unsigned long long *id, H *g, void **dep, void **ed, size_t *nd) {
    ENTERC(cuStreamGetCaptureInfo_v3); STREAM(s); *st = !special(s) && s->capturing; if (id) *id = special(s) ? 0 : s->id; if (g) *g = 0; if (dep) *dep = 0; if (ed) *ed = 0; if (nd) *nd = 0; return OK; }
API CUresult cuStreamGetCaptureInfo(H s, int *st, unsigned long long *id) { ENTERC(cuStreamGetCaptureInfo); STREAM(s); *st = !special(s) && s->capturing; if (id) *id = 0; return OK; }
API CUresult cuStreamBeginCapture_v2(H s, int mode) { ENTERC(cuStreamBeginCapture_v2); REQ(is(s, K_STREAM), 900); s->capturing = 1; return OK; }
API CUresult cuStreamEndCapture(H s, H *g) { ENTERC(cuStreamEndCapture); REQ(is(s, K_STREAM) && s->capturing, 901); s->capturing = 0; *g = new_obj(K_GRAPH, current()); return OK; }
API CUresult cuThreadExchangeStreamCaptureMode(int *m) { ENTERC(cuThreadExchangeStreamCaptureMode); return OK; }

API CUresult cuEventCreate(H *e, uint f) { ENTERC(cuEventCreate); *e = new_obj(K_EVENT, current()); (*e)->flags = f; return OK; }
API CUresult cuEventDestroy_v2(H e) { ENTERC(cuEventDestroy_v2); REQ(is(e, K_EVENT), E_HANDLE);
    if (e->recorded && !e->done && is(e->ev_stream, K_STREAM)) flush(e->ev_stream);
    kill_obj(e); return OK; }
static CUresult record_(H e, H s) {
    REQ(is(e, K_EVENT), E_HANDLE); STREAM(s); e->recorded = 1; e->done = 0; e->ev_stream = s;
    struct op o = { .type = OP_EVENT, .ev = e }; return submit(s, o, 1); }
API CUresult cuEventRecord(H e, H s) { ENTERC(cuEventRecord); return record_(e, s); }
API CUresult cuEventRecordWithFlags(H e, H s, uint f) { ENTERC(cuEventRecordWithFlags); return record_(e, s); }
API CUresult cuEventQuery(H e) { ENTERC(cuEventQuery); REQ(is(e, K_EVENT), E_HANDLE); return e->recorded && !e->done ? E_NOTREADY : OK; }
API CUresult cuEventSynchronize(H e) { ENTERC(cuEventSynchronize); REQ(is(e, K_EVENT), E_HANDLE);
    if (e->recorded && !e->done && is(e->ev_stream, K_STREAM)) flush(e->ev_stream);
    return OK; }
static CUresult elapsed_(float *ms, H a, H b) {                   /* deterministic: 10 us per operation */
    REQ(is(a, K_EVENT) && is(b, K_EVENT) && a->recorded && b->recorded && !((a->flags | b->flags) & 2), E_HANDLE);
    if (!a->done || !b->done) return E_NOTREADY;
    *ms = ((double)b->stamp - (double)a->stamp) * 0.01; return OK; }
API CUresult cuEventElapsedTime(float *ms, H a, H b) { ENTERC(cuEventElapsedTime); return elapsed_(ms, a, b); }
API CUresult cuEventElapsedTime_v2(float *ms, H a, H b) { ENTERC(cuEventElapsedTime_v2); return elapsed_(ms, a, b); }

/* ------------------------------------------- modules, functions, launches --- */
static CUresult new_module(H *m) { *m = new_obj(K_MODULE, current()); return OK; }
API CUresult cuModuleLoad(H *m, const char *f) { ENTERC(cuModuleLoad); REQ(!access(f, R_OK), 301); return new_module(m); }
API CUresult cuModuleLoadData(H *m, const void *d) { ENTERC(cuModuleLoadData); return new_module(m); }
API CUresult cuModuleLoadDataEx(H *m, const void *d, uint n, int *o, void **v) { ENTERC(cuModuleLoadDataEx); return new_module(m); }
API CUresult cuModuleLoadFatBinary(H *m, const void *d) { ENTERC(cuModuleLoadFatBinary); return new_module(m); }
API CUresult cuModuleUnload(H m) { ENTERC(cuModuleUnload); REQ(is(m, K_MODULE), E_HANDLE); kill_obj(m); return OK; }
API CUresult cuModuleGetLoadingMode(int *m) { ENTER(cuModuleGetLoadingMode); *m = 1; return OK; }
static CUresult new_func(H *f, H m, const char *n) { REQ(is(m, K_MODULE), E_HANDLE); *f = new_obj(K_FUNC, current()); live_obj[K_FUNC]--; (*f)->name = strdup(n); return OK; }
API CUresult cuModuleGetFunction(H *f, H m, const char *n) { ENTERC(cuModuleGetFunction); logmsg("  %s", n); return new_func(f, m, n); }
API CUresult cuModuleGetGlobal_v2(CUdeviceptr *p, size_t *n, H m, const char *name) {
    ENTERC(cuModuleGetGlobal_v2); logmsg("  %s", name); CUdeviceptr q; CUresult r = dev_alloc(&q, 65536, A_DEV);
    if (!r) { if (p) *p = q; if (n) *n = 65536; } return r; }
API CUresult cuFuncGetAttribute(int *v, int a, H f) {
    ENTERC(cuFuncGetAttribute); static const int d[] = { 1024, 0, 0, 0, 32, 80, 80, 0, 49152, -1 };
    *v = a >= 0 && a < 10 ? d[a] : 0; if (a == 5 || a == 6) *v = cc; if (a == 8 && f && f->dynshared) *v = f->dynshared; return OK; }
API CUresult cuFuncSetAttribute(H f, int a, int v) { ENTERC(cuFuncSetAttribute); if (a == 8 && f) f->dynshared = v; return OK; }
API CUresult cuFuncSetCacheConfig(H f, int c) { ENTERC(cuFuncSetCacheConfig); return OK; }
API CUresult cuFuncSetSharedMemConfig(H f, int c) { ENTERC(cuFuncSetSharedMemConfig); return OK; }
API CUresult cuFuncSetBlockShape(H f, int x, int y, int z) { ENTERC(cuFuncSetBlockShape); return OK; }
API CUresult cuFuncSetSharedSize(H f, uint n) { ENTERC(cuFuncSetSharedSize); return OK; }
API CUresult cuFuncGetModule(H *m, H f) { ENTERC(cuFuncGetModule); *m = 0; return OK; }
API CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int *n, H f, int b, size_t s) { ENTERC(cuOccupancyMaxActiveBlocksPerMultiprocessor); *n = b > 1024 ? 1 : 2; return OK; }
API CUresult cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *n, H f, int b, size_t s, uint fl) { ENTERC(cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags); *n = 2; return OK; }
API CUresult cuOccupancyMaxPotentialBlockSize(int *g, int *b, H f, void *cb, size_t s, int l) { ENTERC(cuOccupancyMaxPotentialBlockSize); *g = 216; *b = 256; return OK; }
/* A kernel compiled for the host: run_NAME(blocks, threads, shared bytes, parameters, view). */
typedef int (*runner)(uint, uint, uint, void **, void *(*)(unsigned long long, size_t));
struct launch { runner run; uint grid, block, shared; void *args[32]; char *held; H func; };
static void *kernel_symbol(const char *prefix, const char *name, const char *suffix) {
    static void *library; char symbol[160]; const char *path = getenv("FAKECUDA_KERNELS");
    if (!library && path && !(library = dlopen(path, RTLD_NOW))) { logmsg("  -> %s", dlerror()); return 0; }
    snprintf(symbol, sizeof symbol, "%s%s%s", prefix, name, suffix);
    return library ? dlsym(library, symbol) : 0; }
static void run_launch(void *p) {
    struct launch *l = p; CUresult r = l->run(l->grid, l->block, l->shared, l->args, view);
    if (r) { logmsg("  -> kernel %s failed with %d", l->func->name, r); launch_error = r; }
    free(l->held); free(l); }
API CUresult cuLaunchKernel(H f, uint gx, uint gy, uint gz, uint bx, uint by, uint bz, uint sh, H s, void **a, void **e) {
    ENTERC(cuLaunchKernel); STREAM(s); REQ(is(f, K_FUNC) && gx && gy && gz && bx && by && bz, E_VALUE); fake_clock++;
    logmsg("  %s <<<%u,%u,%u>>>", f->name, gx, bx, sh);
    runner run = (runner)kernel_symbol("run_", f->name, ""); const unsigned char *sizes = kernel_symbol("", f->name, "_sizes");
    if (!run || !sizes) return E_UNSUPPORTED;
    if (launch_error) return launch_error;
    if (bx > 1024 || gy * gz * by * bz != 1) return E_VALUE;
    if (sh > 49152 && sh > (uint)f->dynshared) return E_VALUE;   /* more only after cuFuncSetAttribute */
    struct launch *l = calloc(1, sizeof *l); *l = (struct launch){ .run = run, .grid = gx, .block = bx, .shared = sh, .func = f };
    size_t total = 0; for (int i = 0; sizes[i]; i++) total += 8;
    l->held = malloc(total);                                     /* parameters are copied at the launch */
    if (e) { /* CU_LAUNCH_PARAM_BUFFER_POINTER: one packed buffer, each parameter aligned to its size */
        char *packed = e[1]; size_t at = 0;
        for (int i = 0; sizes[i]; i++) {
            at = (at + sizes[i] - 1) / sizes[i] * sizes[i];
            memcpy(l->held + 8 * i, packed + at, sizes[i]); at += sizes[i]; l->args[i] = l->held + 8 * i; }
    } else for (int i = 0; sizes[i]; i++) { memcpy(l->held + 8 * i, a[i], sizes[i]); l->args[i] = l->held + 8 * i; }
    struct op o = { .type = OP_CALL, .fn = run_launch, .arg = l }; CUresult r = submit(s, o, 1);
    return r ? r : lazy ? OK : launch_error; }
API CUresult cuLaunchKernelEx(const void *c, H f, void **a, void **e) { ENTERC(cuLaunchKernelEx); fake_clock++; return OK; }
API CUresult cuLaunchCooperativeKernel(H f, uint gx, uint gy, uint gz, uint bx, uint by, uint bz, uint sh, H s, void **a) { ENTERC(cuLaunchCooperativeKernel); fake_clock++; return OK; }
API CUresult cuGraphCreate(H *g, uint f) { ENTERC(cuGraphCreate); *g = new_obj(K_GRAPH, current()); return OK; }
API CUresult cuGraphDestroy(H g) { ENTER(cuGraphDestroy); REQ(is(g, K_GRAPH), E_HANDLE); kill_obj(g); return OK; }
API CUresult cuGraphInstantiateWithFlags(H *e, H g, unsigned long long f) { ENTERC(cuGraphInstantiateWithFlags); *e = new_obj(K_GEXEC, current()); return OK; }
API CUresult cuGraphInstantiate_v2(H *e, H g, void *n, char *l, size_t s) { ENTERC(cuGraphInstantiate_v2); *e = new_obj(K_GEXEC, current()); return OK; }
API CUresult cuGraphExecDestroy(H e) { ENTER(cuGraphExecDestroy); REQ(is(e, K_GEXEC), E_HANDLE); kill_obj(e); return OK; }
API CUresult cuGraphLaunch(H e, H s) { ENTERC(cuGraphLaunch); REQ(is(e, K_GEXEC), E_HANDLE); STREAM(s); fake_clock++; return OK; }
API CUresult cuGraphUpload(H e, H s) { ENTERC(cuGraphUpload); return OK; }
API CUresult cuProfilerStart(void) { ENTER(cuProfilerStart); return OK; }
API CUresult cuProfilerStop(void) { ENTER(cuProfilerStop); return OK; }

/* ---------------------------------------------------------------- errors --- */
static const struct { int c; const char *n, *s; } errs[] = {
    {0,"CUDA_SUCCESS","no error"},{1,"CUDA_ERROR_INVALID_VALUE","invalid argument"},{2,"CUDA_ERROR_OUT_OF_MEMORY","out of memory"},
    {3,"CUDA_ERROR_NOT_INITIALIZED","initialization error"},{4,"CUDA_ERROR_DEINITIALIZED","driver shutting down"},
    {100,"CUDA_ERROR_NO_DEVICE","no CUDA-capable device is detected"},{101,"CUDA_ERROR_INVALID_DEVICE","invalid device ordinal"},
    {201,"CUDA_ERROR_INVALID_CONTEXT","invalid device context"},{301,"CUDA_ERROR_FILE_NOT_FOUND","file not found"},
    {400,"CUDA_ERROR_INVALID_HANDLE","invalid resource handle"},{500,"CUDA_ERROR_NOT_FOUND","named symbol not found"},
    {600,"CUDA_ERROR_NOT_READY","device not ready"},{700,"CUDA_ERROR_ILLEGAL_ADDRESS","an illegal memory access was encountered"},
    {712,"CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED","part or all of the requested memory range is already mapped"},
    {713,"CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED","pointer does not correspond to a registered memory region"},
    {719,"CUDA_ERROR_LAUNCH_FAILED","unspecified launch failure"},{801,"CUDA_ERROR_NOT_SUPPORTED","operation not supported"},{999,"CUDA_ERROR_UNKNOWN","unknown error"} };
static CUresult err_(int c, const char **o, int name) {
    for (size_t i = 0; i < sizeof errs / sizeof *errs; i++) if (errs[i].c == c) { *o = name ? errs[i].n : errs[i].s; return OK; }
    *o = 0; return E_VALUE; }
API CUresult cuGetErrorName(int c, const char **o) { return err_(c, o, 1); }
API CUresult cuGetErrorString(int c, const char **o) { return err_(c, o, 0); }

/* --------------------------------------------- entry points not written here --- */
static CUresult unimpl(struct site *s) {
    __attribute__((cleanup(unlock_), unused)) int g = lock_();
    CUresult r = enter(s, 0); if (r) return r;
    logmsg("  -> NOT IMPLEMENTED, returning %d", unimpl_code); return unimpl_code; }
/* mov rdi, site ; mov rax, unimpl ; jmp rax  - a function per unknown name */
static void *make_thunk(const char *name) {
    static unsigned char *page; static size_t used;
    if (!page || used + 32 > 65536) { page = mmap(0, 65536, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0); used = 0; }
    struct site *s = calloc(1, sizeof *s); s->name = strdup(name);
    unsigned char *p = page + used; used += 32; void *f = (void *)unimpl;
    memcpy(p, "\x48\xbf", 2); memcpy(p + 2, &s, 8); memcpy(p + 10, "\x48\xb8", 2); memcpy(p + 12, &f, 8); memcpy(p + 20, "\xff\xe0", 2);
    return p;
}
static const struct { const char *n; int min; const char *sym; } versions[] = {   /* newest first */
    {"cuGetProcAddress",12000,"cuGetProcAddress_v2"},{"cuGetProcAddress",0,"cuGetProcAddress"},
    {"cuCtxCreate",12050,"cuCtxCreate_v4"},{"cuCtxCreate",11040,"cuCtxCreate_v3"},{"cuCtxCreate",0,"cuCtxCreate_v2"},
    {"cuDeviceGetUuid",11040,"cuDeviceGetUuid_v2"},{"cuDeviceGetUuid",0,"cuDeviceGetUuid"},
    {"cuEventElapsedTime",12080,"cuEventElapsedTime_v2"},{"cuEventElapsedTime",0,"cuEventElapsedTime"},
    {"cuCtxGetDevice",13000,"cuCtxGetDevice_v2"},{"cuCtxGetDevice",0,"cuCtxGetDevice"},
    {"cuCtxSynchronize",13000,"cuCtxSynchronize_v2"},{"cuCtxSynchronize",0,"cuCtxSynchronize"},
    {"cuStreamGetCtx",12050,"cuStreamGetCtx_v2"},{"cuStreamGetCtx",0,"cuStreamGetCtx"},
    {"cuStreamGetCaptureInfo",12030,"cuStreamGetCaptureInfo_v3"},{"cuStreamGetCaptureInfo",11030,"cuStreamGetCaptureInfo_v2"},
    {"cuStreamGetCaptureInfo",0,"cuStreamGetCaptureInfo"},
    {"cuGraphInstantiate",11000,"cuGraphInstantiateWithFlags"},{"cuGraphInstantiate",0,"cuGraphInstantiate_v2"} };
static void *resolve(const char *name, int ver) {
    static void *self; char buf[128]; void *p = 0;
    if (!self) { Dl_info i; dladdr((void *)resolve, &i); self = dlopen(i.dli_fname, RTLD_LAZY | RTLD_NOLOAD); }
    for (size_t i = 0; i < sizeof versions / sizeof *versions; i++)
        if (!strcmp(name, versions[i].n) && ver >= versions[i].min) return dlsym(self, versions[i].sym);
    snprintf(buf, sizeof buf, "%s_v2", name);
    if ((p = dlsym(self, buf)) || (p = dlsym(self, name))) return p;
    return 0;
}
static CUresult gpa(const char *n, void **f, int ver, int *st) {
    *f = resolve(n, ver);
    logmsg("  want %s (%d): %s", n, ver, *f ? "ours" : "thunk");
    if (!*f) *f = make_thunk(n);
    if (st) *st = 0;
    return OK; }
API CUresult cuGetProcAddress(const char *n, void **f, int v, unsigned long long fl) { ENTER0(cuGetProcAddress); return gpa(n, f, v, 0); }
API CUresult cuGetProcAddress_v2(const char *n, void **f, int v, unsigned long long fl, int *st) { ENTER0(cuGetProcAddress_v2); return gpa(n, f, v, st); }
/* Asked for by NVRTC, which needs no driver: whether a profiler listens. There is none. */
API CUresult cuGetExportTable(const void **table, const void *id) { ENTER0(cuGetExportTable); (void)id; if (table) *table = 0; return E_NOTFOUND; }

/* Exported so that directly linked extensions load (pycuda 2026.1 needs these names). */
#define STUB(fn) API CUresult fn(void) { static struct site s = { #fn }; return unimpl(&s); }
STUB(cuArray3DCreate_v2) STUB(cuArray3DGetDescriptor_v2) STUB(cuArrayCreate_v2) STUB(cuArrayDestroy)
STUB(cuArrayGetDescriptor_v2) STUB(cuIpcCloseMemHandle)
STUB(cuIpcGetEventHandle) STUB(cuIpcGetMemHandle) STUB(cuIpcOpenEventHandle) STUB(cuIpcOpenMemHandle_v2)
STUB(cuLaunch) STUB(cuLaunchGrid) STUB(cuLaunchGridAsync) STUB(cuLinkAddData_v2) STUB(cuLinkAddFile_v2)
STUB(cuLinkComplete) STUB(cuLinkCreate_v2) STUB(cuLinkDestroy) STUB(cuMemcpy3DPeer) STUB(cuMemcpy3DPeerAsync)
STUB(cuMemcpyAtoA_v2) STUB(cuMemcpyAtoD_v2) STUB(cuMemcpyAtoH_v2) STUB(cuMemcpyDtoA_v2) STUB(cuMemcpyHtoA_v2)
STUB(cuModuleGetSurfRef) STUB(cuModuleGetTexRef) STUB(cuParamSetSize) STUB(cuParamSetTexRef)
STUB(cuParamSetf) STUB(cuParamSeti) STUB(cuParamSetv) STUB(cuProfilerInitialize) STUB(cuSurfRefGetArray)
STUB(cuSurfRefSetArray) STUB(cuTexRefCreate) STUB(cuTexRefDestroy) STUB(cuTexRefGetAddressMode)
STUB(cuTexRefGetAddress_v2) STUB(cuTexRefGetArray) STUB(cuTexRefGetFilterMode) STUB(cuTexRefGetFlags)
STUB(cuTexRefGetFormat) STUB(cuTexRefSetAddress2D_v3) STUB(cuTexRefSetAddressMode)
STUB(cuTexRefSetAddress_v2) STUB(cuTexRefSetArray) STUB(cuTexRefSetFilterMode) STUB(cuTexRefSetFlags)
STUB(cuTexRefSetFormat)

/* -------------------------------------------------------------- test API --- */
API void fakecuda_fail(const char *spec) { lock_(); parse_faults(spec); unlock_(0); }
API void fakecuda_set_lazy(int on) { lock_(); flush_all(0); lazy = on; unlock_(0); }
API long fakecuda_live(const char *what) {
    static const char *an[] = { "device", "host", "registered", "managed" };
    static const char *on[] = { 0, "context", "stream", "event", "module", 0, "pool", "graph", "graphexec" };
    for (int i = 0; i < A_LAST; i++) if (!strcmp(what, an[i])) return live_alloc[i];
    for (int i = 1; i < K_LAST; i++) if (on[i] && !strcmp(what, on[i])) return live_obj[i];
    if (!strcmp(what, "bytes")) return live_dev_bytes;
    if (!strcmp(what, "peak")) return peak_dev_bytes;
    if (!strcmp(what, "total")) return total_alloc[A_DEV];
    return -1; }
API long fakecuda_calls(const char *name) { for (struct site *s = sites; s; s = s->next) if (!strcmp(s->name, name)) return s->calls; return 0; }
API int fakecuda_entry_points(char *out, size_t n) {    /* "name count\n" for every entry point used so far */
    int k = 0; size_t u = 0; for (struct site *s = sites; s; s = s->next, k++) if (out && u < n) u += snprintf(out + u, n - u, "%s %lu\n", s->name, s->calls); return k; }
